"""Figures of the replays: speed at each limit of VRAM, and where the time of a token goes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
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
    nearest_shares,
    panels,
    share_ticks,
)
from tec.policies import ON_CPU
from tec.stats import COLD_STEPS

_COLUMNS = (
    *("row", "arm", "protocol", "capacity", "capacity_share", "n_expert", "evidence", "policy"),
)
_SPEEDS = (
    *("tg_tps", "tg_tps_lo", "tg_tps_hi", "resident_tps", "bound_tps", "speedup"),
    *("vram_limit_gib",),
)
_STATES = {"cold_tps": f"first {COLD_STEPS} tokens", "steady_tps": "steady state"}
_PARTS = {
    "compute": "resident model",
    "resolve": "cached graph, no miss",
    "fill": "misses",
    "undivided": "not divided: no resident run",
}
"""Part of a token's time -> what it is called."""
_SHADES = ("0.75", "0.45", "0.15", "0.9")
_HEADROOM = 1.1
_SPEED_HEIGHTS = (3.0, 2.0)
"""Inches of a panel with eight series: of one row, of several."""
_MOST_NUMBERED_BARS = 5
_MS = 1e3
_TITLES = {
    "cached": "TEC",
    "bound": "TEC's bound (no overlap)",
    "resident": "whole model in VRAM",
    "ncmoe": "stock, best -ncmoe",
    "fit": "stock --fit",
    "ngl": "stock, best -ngl",
    "ncmoe-all": "stock -ncmoe 99",
}
"""Kinds of arms in the order of the legend."""

Handles = dict[str, Line2D | Patch]


def speed(results: Results) -> Figure:
    """Decoding speed against capacity: TEC, the resident model, the bound, every baseline.

    All points above one capacity had the same VRAM, which stands below it; beside TEC's is how many
    times as fast it is as the best baseline there. Bars are the range over rounds.
    """
    rows = results.shown()
    table = _replays(results, _SPEEDS)
    figure, axes = panels(rows, height=_SPEED_HEIGHTS[len(rows) > 1])
    drawn: Handles = {}
    for axis, row in zip(axes, rows, strict=True):
        part = table[table["row"] == row]
        drawn |= _cached(axis, part) | _levels(axis, part) | _stock(axis, part)
        axis.set_ylim(0, _HEADROOM * float(part[["tg_tps_hi", "resident_tps"]].max().max()))
        _memory_axis(axis, part)
    label_axes(axes, "experts with a slot / VRAM, GiB", "decoding, tokens/s")
    add_legend(figure, [drawn[name] for name in sorted(drawn, key=_legend_place)])
    failed = list(results.failures())
    label_functional(figure, NOT_EVIDENCE, functional_rows(table), rows, failed)
    return figure


def split(results: Results) -> Figure:
    """Time per token by capacity, first tokens and steady state apart.

    The resident model's time, what the cached graph takes more where every expert has a slot, and
    the rest, which is what misses take.
    """
    rows = results.shown()
    table = _replays(results, tuple(_STATES))
    titles = [f"{row}\n{state}" for row in rows for state in _STATES.values()]
    figure, axes = panels(titles, across=4, in_column=2)
    shades = dict(zip(_PARTS, _SHADES, strict=True))
    drawn: set[str] = set()
    for row, pair in zip(rows, zip(axes[::2], axes[1::2], strict=True), strict=True):
        for column, axis in zip(_STATES, pair, strict=True):
            times = time_split(table[table["row"] == row], column)
            _stack(axis, times, shades)
            drawn |= set(times.columns[times.any()])
        top = _HEADROOM * max(axis.dataLim.ymax for axis in pair)
        for axis in pair:
            axis.set_ylim(0, top)
    label_axes(axes, "experts with a slot, %", "ms per token")
    shown = [part for part in _PARTS if part in drawn]
    add_legend(figure, [Patch(color=shades[part], label=_PARTS[part]) for part in shown])
    failed = list(results.failures())
    label_functional(figure, NOT_EVIDENCE, functional_rows(table), rows, failed)
    return figure


def time_split(part: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return milliseconds per token by capacity share, in a column for each of `_PARTS`.

    Without an arm with a slot for every expert, resolve is 0 and counted as fill; without a
    resident arm the time is undivided. What noise makes negative is 0.

    Args:
        part: the replay's lines of the capacity table for one row.
        column: the speed in tokens per second that the times are made from.
    """
    cached = part.dropna(subset=["capacity_share", column]).sort_values("capacity_share")
    total = _MS / cached.set_index("capacity_share")[column]
    resident = part.loc[part["arm"] == "resident", column]
    parts = pd.DataFrame(0.0, index=total.index, columns=list(_PARTS))
    if resident.empty:
        return parts.assign(undivided=total)
    compute = float(_MS / resident.iloc[0])
    full = total[total.index == 1]
    resolve = max(0.0, float(full.iloc[0]) - compute) if len(full) else 0.0
    fill = (total - compute - resolve).clip(lower=0)
    return parts.assign(compute=compute, resolve=resolve, fill=fill)


def _replays(results: Results, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return the replay's lines of the capacity table, with the kind of each arm.

    Arms whose misses the CPU computes have a figure of their own (`tec.policies_figure`).
    """
    table = results.table("capacity", [*_COLUMNS, *columns])
    table = table[(table["protocol"] == "replay") & ~table["policy"].isin(ON_CPU)]
    names = [re.fullmatch(r"(.+?)(?:-c(\d+))?", arm) for arm in table["arm"]]
    slots = [float(name[2]) if name and name[2] else None for name in names]
    return table.assign(
        kind=[name[1] if name else "" for name in names],
        place=pd.Series(slots, index=table.index, dtype=float) / table["n_expert"],
    )


def _cached(axis: Axes, part: pd.DataFrame) -> Handles:
    """Draw TEC with its range over rounds and its speed-ups, and the bound above it."""
    points = part[part["kind"] == "cached"].sort_values("place")
    look = Look(to_rgb(INK), "o", ())
    _line(axis, points, "tg_tps", look, zorder=4)
    _ranges(axis, points, look)
    for _, point in _labelled(points.dropna(subset=["speedup"])).iterrows():
        axis.annotate(
            f"{point['speedup']:.2f}\N{MULTIPLICATION SIGN}", (point["place"], point["tg_tps"]),
            xytext=(0, -11), textcoords="offset points", ha="center", fontweight="bold", zorder=5,
            bbox={"facecolor": "white", "linewidth": 0, "alpha": 0.8, "pad": 0.6},
        )  # fmt: skip
    drawn: Handles = {"cached": handle(_TITLES["cached"], look)}
    bound = points.dropna(subset=["bound_tps"])
    if not bound.empty:
        look = Look(to_rgb(INK), "", (4, 1.5))
        _line(axis, bound, "bound_tps", look, zorder=3)
        drawn["bound"] = handle(_TITLES["bound"], look)
    return drawn


def _levels(axis: Axes, part: pd.DataFrame) -> Handles:
    """Draw what does not depend on the capacity: the resident model and its like."""
    fixed = part[part["place"].isna() & ~part["arm"].str.endswith("-aa")]
    drawn: Handles = {}
    for arm, tps in zip(fixed["arm"], fixed["tg_tps"], strict=True):
        dashes = "-" if arm == "resident" else (0, (1, 1))
        title = _TITLES.get(arm, arm)
        drawn[arm] = axis.axhline(tps, color=FAINT, linestyle=dashes, linewidth=1.2, label=title)
    return drawn


def _stock(axis: Axes, part: pd.DataFrame) -> Handles:
    """Draw every kind of searched arm with its range over rounds."""
    swept = part[part["place"].notna() & (part["kind"] != "cached")].sort_values("place")
    drawn: Handles = {}
    for kind, look in _stock_looks(sorted(set(swept["kind"]), key=_legend_place)).items():
        points = swept[swept["kind"] == kind]
        _line(axis, points, "tg_tps", look)
        _ranges(axis, points, look)
        drawn[kind] = handle(_TITLES.get(kind, kind), look)
    return drawn


def _stock_looks(kinds: Sequence[str]) -> dict[str, Look]:
    """Return looks that leave the darkest one, and its mark, to TEC."""
    return {kind: look for kind, look in looks(["cached", *kinds]).items() if kind != "cached"}


def _line(axis: Axes, points: pd.DataFrame, column: str, look: Look, zorder: float = 2) -> None:
    axis.plot(
        points["place"], points[column],
        color=look.color, marker=look.marker, dashes=look.dashes, zorder=zorder,
    )  # fmt: skip


def _ranges(axis: Axes, points: pd.DataFrame, look: Look) -> None:
    low, high = points["tg_tps_lo"], points["tg_tps_hi"]
    axis.vlines(points["place"], low, high, color=look.color, linewidth=1.2)


def _memory_axis(axis: Axes, part: pd.DataFrame) -> None:
    """Label the axis with shares of the experts, and below each with the VRAM of its arms."""
    axis.set_xlim(0, 1.1)  # room for the last speed-up
    points = _labelled(part[part["kind"] == "cached"])
    places = points["place"].to_list()
    limits = points["vram_limit_gib"].to_list()
    axis.set_xticks(
        places, [f"{place:.0%}\n{limit:.3g}" for place, limit in zip(places, limits, strict=True)]
    )


def _labelled(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points nearest to the shares that are labelled."""
    return points.loc[nearest_shares(points["place"])]


def _legend_place(kind: str) -> int:
    known = list(_TITLES)
    return known.index(kind) if kind in known else len(known)


def _stack(axis: Axes, times: pd.DataFrame, shades: Mapping[str, str]) -> None:
    """Draw bars, one a capacity, of parts on top of each other, with their sum."""
    places = range(len(times))
    bottom = pd.Series(0.0, index=times.index)
    for part, shade in shades.items():
        axis.bar(places, times[part], bottom=bottom, color=shade, width=0.75, linewidth=0)
        bottom += times[part]
    if len(times) <= _MOST_NUMBERED_BARS:
        for place, total in zip(places, bottom, strict=True):
            axis.annotate(
                f"{total:.1f}", (place, total), (0, 1.5), textcoords="offset points", ha="center"
            )
    share_ticks(axis, times.index.to_series())
