"""The figure of the miniatures: what the cache hit, and how much their routing repeats."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tec.figure_data import Results, functional_rows
from tec.figure_style import (
    COUNTED_ON_CPU,
    FAINT,
    INK,
    PAGE_WIDTH,
    Look,
    add_legend,
    label_functional,
    looks,
    percent_axis,
)

_LINE_HEIGHT = 0.25
"""Inches per row."""
_HEAD_HEIGHT = 1.3
"""Inches: note, axes and legend."""
_SPREAD = 0.22
"""How far from a row's middle its first and last capacity are drawn."""


def miniatures(results: Results) -> Figure:
    """A line per miniature: hit rate by capacity, overlap; ticks say what chance would give."""
    capacity = results.table(
        "capacity", ["row", "protocol", "capacity_share", "hit_rate", "variant", "evidence"]
    )
    mine = (capacity["variant"] == "miniature") & (capacity["protocol"] == "prompts")
    cached = capacity[mine & (capacity["capacity_share"] < 1)]
    table = results.table("rows", ["row", "variant", "overlap_8", "overlap_8_uniform"])
    table = table[table["variant"] == "miniature"].set_index("row")
    failed = results.failures()
    figure = Figure(
        figsize=(PAGE_WIDTH, _HEAD_HEIGHT + _LINE_HEIGHT * len(table)), layout="constrained"
    )
    hits, overlap = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    series = _series(cached)
    for y, (row, line) in enumerate(table.iterrows()):
        if row in failed:
            hits.text(0.01, y, "failed", va="center", style="italic", weight="bold")
            continue
        _hit_rates(hits, cached[cached["row"] == row], y, series)
        _against(overlap, line["overlap_8"], line["overlap_8_uniform"], y, _OVERLAP)
    for axis, title in ((hits, "hit rate"), (overlap, "overlap with the last 8 tokens")):
        axis.set(xlim=(0, 1.02), xlabel=title)
        axis.grid(visible=False, axis="y")
        percent_axis(axis.xaxis)
    hits.set_yticks(np.arange(len(table)), list(table.index))
    hits.set_ylim(len(table) - 0.5, -0.5)
    marks = [_mark(name, look) for name, look in series.items()]
    tick = Line2D([], [], color=INK, marker="|", linestyle="none", label="chance: uniform routing")
    add_legend(figure, [*marks, tick])
    rows = [row for row in table.index if row not in failed]
    label_functional(figure, COUNTED_ON_CPU, functional_rows(cached), rows)
    return figure


_OVERLAP = Look((0.1, 0.1, 0.1), "o", ())


def _series(cached: pd.DataFrame) -> dict[str, Look]:
    """Return a look for each place a capacity can have; the least is K, whatever its share."""
    shares = sorted(set(cached.loc[~_is_least(cached), "capacity_share"].round(2)))
    return looks(["least C", *(f"C = {share:.0%} of N" for share in shares)])


def _is_least(cached: pd.DataFrame) -> pd.Series[bool]:
    least: pd.Series[bool] = cached["capacity_share"] == cached.groupby("row")[
        "capacity_share"
    ].transform("min")
    return least


def _hit_rates(axis: Axes, cached: pd.DataFrame, y: float, series: dict[str, Look]) -> None:
    """Draw a row's hit rates, one below the other by capacity."""
    ordered = cached.sort_values("capacity_share")
    heights = y + np.linspace(-_SPREAD, _SPREAD, len(ordered)) * (len(ordered) > 1)
    for place, (height, line) in enumerate(zip(heights, ordered.itertuples(), strict=True)):
        share = float(str(line.capacity_share))
        name = f"C = {share:.0%} of N" if place else "least C"
        _against(axis, float(str(line.hit_rate)), share, height, series[name])


def _against(axis: Axes, value: float, chance: float, y: float, look: Look) -> None:
    """Draw a value as a mark, joined to the tick of what chance would give."""
    axis.plot([chance, value], [y, y], color=FAINT, linewidth=0.8, zorder=1)
    axis.plot(chance, y, color=INK, marker="|", markersize=5, linestyle="none")
    axis.plot(value, y, color=look.color, marker=look.marker, linestyle="none", markersize=4)


def _mark(label: str, look: Look) -> Line2D:
    return Line2D([], [], label=label, color=look.color, marker=look.marker, linestyle="none")
