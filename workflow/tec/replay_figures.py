"""Figures of the replays: speed at each limit of VRAM, and where the time of a token goes."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tec.figure_data import Results, functional_rows
from tec.figure_style import (
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

_COLUMNS = ("row", "arm", "protocol", "capacity", "capacity_share", "n_expert", "evidence")
_SPEEDS = ("tg_tps", "tg_tps_lo", "tg_tps_hi", "resident_tps", "bound_tps")
_STATES = {"cold_tps": "cold start", "steady_tps": "steady state"}
_PARTS = ("compute", "resolve", "fill")
_HEADROOM = 1.08
_SPEED_HEIGHT = 2.1
"""Inches of a panel with seven series."""
_MS = 1e3

Handles = dict[str, Line2D | Patch]


def speed(results: Results) -> Figure:
    """Decoding speed against capacity: TEC, the resident model, the bound, every baseline.

    All points above one capacity had the same VRAM.
    """
    rows = results.shown()
    table = _replays(results, _SPEEDS)
    figure, axes = panels(rows, height=_SPEED_HEIGHT)
    drawn: Handles = {}
    for axis, row in zip(axes, rows, strict=True):
        part = table[table["row"] == row]
        drawn |= _levels(axis, part) | _series(axis, part)
        axis.set_ylim(0, _HEADROOM * float(part[["tg_tps_hi", "resident_tps"]].max().max()))
        axis.set_xlim(0, 1.03)
        percent_axis(axis.xaxis)
    label_axes(axes, "capacity C / N, and its VRAM", "decoding, tokens/s")
    add_legend(figure, list(drawn.values()))
    failed = list(results.failures())
    label_functional(figure, NOT_EVIDENCE, functional_rows(table), rows, failed)
    return figure


def split(results: Results) -> Figure:
    """Time per token by capacity: compute, resolve, fill; cold start and steady state apart.

    Compute is the resident model's time; resolve what the cached graph takes more where every
    expert has a slot; fill the rest.
    """
    rows = results.shown()
    table = _replays(results, tuple(_STATES))
    titles = [f"{row}\n{state}" for row in rows for state in _STATES.values()]
    figure, axes = panels(titles, across=4, in_column=2)
    shades = dict(zip(_PARTS, ("0.75", "0.45", "0.15"), strict=True))
    panel = iter(axes)
    for row in rows:
        for column in _STATES:
            _stack(next(panel), time_split(table[table["row"] == row], column), shades)
    label_axes(axes, "capacity C / N, %", "ms per token")
    add_legend(figure, [Patch(color=shade, label=part) for part, shade in shades.items()])
    failed = list(results.failures())
    label_functional(figure, NOT_EVIDENCE, functional_rows(table), rows, failed)
    return figure


def time_split(part: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return milliseconds per token by capacity share, in columns compute, resolve and fill.

    Without an arm with a slot for every expert, resolve is 0 and counted as fill; without a
    resident arm there is no compute, and the whole is fill. What noise makes negative is 0.

    Args:
        part: the replay's lines of the capacity table for one row.
        column: the speed in tokens per second that the times are made from.
    """
    cached = part.dropna(subset=["capacity_share", column]).sort_values("capacity_share")
    total = _MS / cached.set_index("capacity_share")[column]
    resident = part.loc[part["arm"] == "resident", column]
    compute = float(_MS / resident.iloc[0]) if len(resident) else 0.0
    full = total[total.index == 1]
    resolve = max(0.0, float(full.iloc[0]) - compute) if len(full) and compute else 0.0
    fill = (total - compute - resolve).clip(lower=0)
    return pd.DataFrame({"compute": compute, "resolve": resolve, "fill": fill}, index=total.index)


def _replays(results: Results, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return the replay's lines of the capacity table, with the kind of each arm."""
    table = results.table("capacity", [*_COLUMNS, *columns])
    table = table[table["protocol"] == "replay"]
    names = [re.fullmatch(r"(.+?)(?:-c(\d+))?", arm) for arm in table["arm"]]
    slots = [float(name[2]) if name and name[2] else None for name in names]
    return table.assign(
        kind=[name[1] if name else "" for name in names],
        place=pd.Series(slots, index=table.index, dtype=float) / table["n_expert"],
    )


def _levels(axis: Axes, part: pd.DataFrame) -> Handles:
    """Draw what does not depend on the capacity: the resident model and its like."""
    fixed = part[part["place"].isna() & ~part["arm"].str.endswith("-aa")]
    styles = {"resident": (INK, "-")}
    return {
        str(line.arm): axis.axhline(
            float(str(line.tg_tps)),
            color=styles.get(str(line.arm), (FAINT, ""))[0],
            linestyle=styles.get(str(line.arm), ("", (0, (1, 1))))[1],
            linewidth=0.9,
            label=_title(str(line.arm)),
        )
        for line in fixed.itertuples()
    }


def _series(axis: Axes, part: pd.DataFrame) -> Handles:
    """Draw every kind of arm that has a capacity, the cached ones with their range over rounds."""
    swept = part.dropna(subset=["place"]).sort_values("place")
    kinds = list(dict.fromkeys(["cached", *swept["kind"]]))
    drawn: Handles = {}
    for kind, look in looks([*kinds, "bound"]).items():
        points = swept[swept["kind"] == ("cached" if kind == "bound" else kind)]
        column = "bound_tps" if kind == "bound" else "tg_tps"
        points = points.dropna(subset=[column])
        if points.empty:
            continue
        drawn[kind] = _line(axis, points, column, look, kind)
        if column == "tg_tps":
            low, high = points["tg_tps_lo"], points["tg_tps_hi"]
            axis.vlines(points["place"], low, high, color=look.color, linewidth=0.8)
    return drawn


def _line(axis: Axes, points: pd.DataFrame, column: str, look: Look, kind: str) -> Line2D:
    marker = "" if kind == "bound" else look.marker
    axis.plot(points["place"], points[column], color=look.color, marker=marker, dashes=look.dashes)
    return handle(_title(kind), look._replace(marker=marker))


def _title(kind: str) -> str:
    titles = {
        "cached": "TEC",
        "bound": "bound (no overlap)",
        "ncmoe": "-ncmoe, best",
        "ngl": "-ngl, best",
        "fit": "--fit",
        "ncmoe-all": "-ncmoe 99",
    }
    return titles.get(kind, kind)


def _stack(axis: Axes, times: pd.DataFrame, shades: dict[str, str]) -> None:
    """Draw bars, one a capacity, of parts on top of each other."""
    places = range(len(times))
    bottom = pd.Series(0.0, index=times.index)
    for part, shade in shades.items():
        axis.bar(places, times[part], bottom=bottom, color=shade, width=0.75, linewidth=0)
        bottom += times[part]
    axis.set_xticks(places, [f"{100 * share:.0f}" for share in times.index])
    axis.grid(visible=False, axis="x")
