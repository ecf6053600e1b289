"""The figure of losses: what the time of a cached arm above its bound goes to."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tec.figure_data import Results, functional_rows
from tec.figure_style import (
    INK,
    NOT_EVIDENCE,
    add_legend,
    in_words,
    label_axes,
    label_functional,
    panels,
    share_ticks,
)

_PARTS = {
    "hit": "cached graph, no miss",
    "fill": "misses slower than a plain copy",
    "cold": "first tokens",
    "rest": "rest",
}
_SHADES = ("0.45", "0.15", "0.75", "0.9")
_HEIGHTS = (2.3, 1.7)
"""Inches of a panel: of one row, of several."""
_HEADROOM = 1.15


def loss(results: Results) -> Figure:
    """Time per token above the bound by capacity, in its parts; above a bar its share of the time.

    What noise makes negative stands below the axis.
    """
    columns = ("row", "capacity_share", "ms_per_token", "loss_ms", "evidence")
    table = results.table("loss", [*columns, *(f"{part}_ms" for part in _PARTS)])
    table = table.dropna(subset=["capacity_share", "loss_ms"])
    rows = [row for row in results.shown() if row in set(table["row"])]
    if not rows:
        return in_words("no row was measured with the whole model in VRAM")
    figure, axes = panels(rows, height=_HEIGHTS[len(rows) > 1])
    for axis, row in zip(axes, rows, strict=True):
        _bars(axis, table[table["row"] == row].sort_values("capacity_share"))
    label_axes(axes, "experts with a slot, %", "ms above the bound")
    shades = zip(_PARTS.values(), _SHADES, strict=True)
    handles = [Patch(facecolor=s, edgecolor=INK, linewidth=0.4, label=part) for part, s in shades]
    add_legend(figure, handles)
    failed = list(results.failures())
    label_functional(figure, NOT_EVIDENCE, functional_rows(table), rows, failed)
    return figure


def _bars(axis: Axes, part: pd.DataFrame) -> None:
    places = range(len(part))
    above, below = (pd.Series(0.0, index=part.index) for _ in range(2))
    for name, shade in zip(_PARTS, _SHADES, strict=True):
        height = part[f"{name}_ms"]
        bottom = above.where(height >= 0, below)
        axis.bar(
            places, height, bottom=bottom, color=shade, width=0.75, edgecolor=INK, linewidth=0.4
        )
        above, below = above + height.clip(lower=0), below + height.clip(upper=0)
    shares = part["loss_ms"] / part["ms_per_token"]
    for place, top, share in zip(places, above, shares, strict=True):
        axis.annotate(
            f"{share:.0%}", (place, top), (0, 1.5), textcoords="offset points", ha="center"
        )
    axis.axhline(0, color=INK, linewidth=0.6)
    axis.set_ylim(_HEADROOM * float(below.min()), _HEADROOM * float(above.max()))
    share_ticks(axis, part["capacity_share"])
