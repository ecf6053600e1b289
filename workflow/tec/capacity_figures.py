"""Figures against capacity, drawn from the tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tec.figure_data import Results, functional_rows
from tec.figure_style import (
    COUNTED_ON_CPU,
    FAINT,
    INK,
    NOT_EVIDENCE,
    Look,
    add_legend,
    handle,
    label_axes,
    label_functional,
    looks,
    panels,
    percent_axis,
)

PROTOCOL_TITLES = {"prompts": "real prompts", "random": "random tokens"}

_COLUMNS = ("row", "arm", "protocol", "capacity", "capacity_share", "evidence")
_SPEEDS = ("tg_tps", "tg_tps_lo", "tg_tps_hi", "resident_tps", "bound_tps")
_HEADROOM = 1.15
"""Of the speed axis above the largest speed; a noise band may reach beyond it."""
_SHARE_LABEL = "capacity C / N"
_BASELINE_DASHES = ("-", (0, (3, 1)), (0, (1, 1)), (0, (6, 1, 1, 1)))


def hit_rate(results: Results) -> Figure:
    """Hit rate against capacity: a series per protocol, and what uniform routing would give."""
    rows = results.shown()
    cached = _swept(_of(results.table("capacity", [*_COLUMNS, "hit_rate"]), rows))
    figure, axes = panels([_row_title(cached[cached["row"] == row]) for row in rows])
    series = _series(cached)
    for axis, row in zip(axes, rows, strict=True):
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=1)
        for (sweep, protocol), look in series.items():
            line = (cached["sweep"] == sweep) & (cached["protocol"] == protocol)
            _line(axis, cached[line & (cached["row"] == row)], "hit_rate", look)
        _share_axis(axis, [0, 0.25, 0.5, 0.75, 1])
        percent_axis(axis.yaxis)
        axis.set_ylim(0, 1.03)
    label_axes(axes, _SHARE_LABEL, "hit rate")
    uniform = Line2D([], [], color=FAINT, linewidth=0.8, label="uniform routing: C / N")
    add_legend(figure, [*(handle(_title(*key, series), series[key]) for key in series), uniform])
    failed = list(results.failures("full"))
    label_functional(figure, COUNTED_ON_CPU, functional_rows(cached), rows, failed)
    return figure


def throughput(results: Results) -> Figure:
    """Decoding speed against capacity, beside the arms without a cache and the A/A band."""
    rows = results.shown()
    table = _of(results.table("capacity", [*_COLUMNS, *_SPEEDS]), rows)
    noise = results.table("overhead", ["row", "protocol", "aa_lo", "aa_hi", "off_arm"])
    pairs = list(dict.fromkeys(zip(table["row"], table["protocol"], strict=True)))
    titles = [f"{row}\n{PROTOCOL_TITLES[protocol]}" for row, protocol in pairs]
    figure, axes = panels(titles, across=4, in_column=2)
    drawn: dict[str, Line2D | Patch] = {}
    for axis, (row, protocol) in zip(axes, pairs, strict=True):
        part = table[(table["row"] == row) & (table["protocol"] == protocol)]
        band = noise[(noise["row"] == row) & (noise["protocol"] == protocol)]
        drawn |= _noise_band(axis, part, band) | _baselines(axis, part) | _speed_lines(axis, part)
        _share_axis(axis, [0, 0.5, 1])
        axis.set_ylim(0, _HEADROOM * part[list(_SPEEDS[2:])].max(axis=None))
    label_axes(axes, _SHARE_LABEL, "decoding, tokens/s")
    add_legend(figure, list(drawn.values()))
    failed = list(results.failures("full"))
    label_functional(figure, NOT_EVIDENCE, functional_rows(table), rows, failed)
    return figure


def _noise_band(axis: Axes, part: pd.DataFrame, noise: pd.DataFrame) -> dict[str, Line2D | Patch]:
    """Draw the band around the cache switched off within which two identical arms differ."""
    band = noise.dropna(subset=["aa_lo", "aa_hi"])
    if band.empty:
        return {}
    off = part.loc[part["arm"] == band["off_arm"].iloc[0], "tg_tps"].iloc[0]
    low, high = off * band[["aa_lo", "aa_hi"]].iloc[0]
    axis.axhspan(low, high, color="0.8", linewidth=0)
    return {"noise": Patch(color="0.8", label="A/A noise")}


def _baselines(axis: Axes, part: pd.DataFrame) -> dict[str, Line2D | Patch]:
    """Draw a level for every arm without a cache, except the repeated one."""
    without = part[part["capacity"].isna() & part["tg_tps"].notna()]
    levels = without[~without["arm"].str.endswith("-aa")]
    return {
        str(line.arm): axis.axhline(
            float(str(line.tg_tps)),
            color=INK,
            linewidth=0.9,
            linestyle=_BASELINE_DASHES[index % len(_BASELINE_DASHES)],
            label="cache off" if line.arm == "off" else str(line.arm),
        )
        for index, line in enumerate(levels.itertuples())
    }


def _speed_lines(axis: Axes, part: pd.DataFrame) -> dict[str, Line2D | Patch]:
    """Draw each sweep with its range over rounds, and the resident ceiling and the bound."""
    swept = _swept(part)
    names = [*dict.fromkeys(swept["sweep"]), "resident", "bound"]
    axis.vlines(
        swept["capacity_share"], swept["tg_tps_lo"], swept["tg_tps_hi"], color=INK, linewidth=0.8
    )
    drawn: dict[str, Line2D | Patch] = {}
    for name, look in looks(names).items():
        column = f"{name}_tps" if name in ("resident", "bound") else "tg_tps"
        points = swept if column != "tg_tps" else swept[swept["sweep"] == name]
        points = points.dropna(subset=[column])
        if not points.empty:
            _line(axis, points, column, look)
            drawn[name] = handle(name, look)
    return drawn


def _of(table: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    """Return the lines of some rows."""
    return table[table["row"].isin(rows)]


def _swept(table: pd.DataFrame) -> pd.DataFrame:
    """Return the lines with a capacity, and the name of the sweep that each belongs to."""
    swept = table.dropna(subset=["capacity_share"])
    return swept.assign(sweep=[re.sub(r"-c\d+$", "", arm) for arm in swept["arm"]])


def _series(table: pd.DataFrame) -> dict[tuple[str, str], Look]:
    """Return a look for every sweep and protocol; protocols are never mixed in a series."""
    keys = list(product(dict.fromkeys(table["sweep"]), PROTOCOL_TITLES))
    present = set(zip(table["sweep"], table["protocol"], strict=True))
    names = {f"{sweep} {protocol}": (sweep, protocol) for sweep, protocol in keys}
    shown = [name for name, key in names.items() if key in present]
    return {names[name]: look for name, look in looks(shown).items()}


def _title(sweep: str, protocol: str, series: dict[tuple[str, str], Look]) -> str:
    several = len({name for name, _ in series}) > 1
    return f"{sweep}, {PROTOCOL_TITLES[protocol]}" if several else PROTOCOL_TITLES[protocol]


def _line(axis: Axes, points: pd.DataFrame, column: str, look: Look) -> None:
    """Draw a column against the share of experts that have a slot."""
    ordered = points.sort_values("capacity_share")
    axis.plot(
        ordered["capacity_share"], ordered[column],
        color=look.color, marker=look.marker, dashes=look.dashes,
    )  # fmt: skip


def _row_title(part: pd.DataFrame) -> str:
    """Return the row's name with its number of experts, which a capacity and its share imply."""
    last = part.nlargest(1, "capacity").iloc[0]
    return f"{last['row']} (N = {last['capacity'] / last['capacity_share']:.0f})"


def _share_axis(axis: Axes, ticks: list[float]) -> None:
    axis.set_xlim(0, 1.03)
    axis.set_xticks(ticks)
    percent_axis(axis.xaxis)
