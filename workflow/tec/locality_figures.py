"""Figures of the locality study, drawn from its tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tec.figure_data import Results
from tec.figure_style import (
    CURVE_HEIGHT,
    FAINT,
    INK,
    Look,
    add_legend,
    handle,
    label_axes,
    looks,
    panels,
    percent_axis,
)
from tec.paths import PAPER

INPUT_TITLES = {
    "text": "real text",
    "repetitive": "repetitive text",
    "random": "random tokens",
}
POLICY_TITLES = {
    "lru": "LRU",
    "lfu": "LFU",
    "hot": "hot: top C of 60 tokens",
    "belady": "Belady's bound",
}

_LONGEST_WINDOW = 64
_MARKED_WINDOWS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
_BOUNDARY = "0.75"
_ACROSS = 3
"""Panels side by side: an input each. With more rows than that, only the first input is shown."""


def overlap(results: Results) -> Figure:
    """Overlap with the last W tokens by input, beside the published point and random routing."""
    table = results.table("overlap", ["row", "trace", "window", "overlap", "uniform"])
    table = table[table["window"] <= _LONGEST_WINDOW]
    rows = list(dict.fromkeys(table["row"]))
    figure, axes = panels([_overlap_title(table[table["row"] == row]) for row in rows])
    series = _looks(table["trace"], INPUT_TITLES)
    published = json.loads((PAPER / "published.json").read_text())["overlap"]
    place = (published["window"], published["overlap"])
    for axis, row in zip(axes, rows, strict=True):
        part = table[table["row"] == row]
        uniform = part[part["trace"] == part["trace"].iloc[0]]
        axis.plot(uniform["window"], uniform["uniform"], color=FAINT, dashes=(3, 2), zorder=1)
        for trace, look in series.items():
            line = part[part["trace"] == trace]
            _curve(axis, line["window"], line["overlap"], look, _MARKED_WINDOWS)
        axis.plot(*place, color=INK, marker="*", markersize=8, linestyle="none", zorder=4)
        axis.annotate(f"{place[1]:.0%}", place, (-4, 2), textcoords="offset points", ha="right")
        axis.set_xlim(0, _LONGEST_WINDOW)
        axis.set_xticks([1, 8, 16, 32, 48, 64])
        _share_axis(axis)
    label_axes(axes, "last W tokens", "overlap")
    random = Line2D([], [], color=FAINT, dashes=(3, 2), label="uniformly random routing")
    label = f"published: {published['model']}"
    point = Line2D([], [], color=INK, marker="*", markersize=8, linestyle="none", label=label)
    add_legend(figure, [*_handles(series, INPUT_TITLES), random, point])
    return figure


def reuse(results: Results) -> Figure:
    """How many tokens ago a selected expert was last used: the share up to each distance."""
    table = results.table("overlap", ["row", "trace", "window", "reused"])
    rows = list(dict.fromkeys(table["row"]))
    figure, axes = panels(rows)
    series = _looks(table["trace"], INPUT_TITLES)
    for axis, row in zip(axes, rows, strict=True):
        part = table[table["row"] == row]
        axis.axhline(0.5, color=_BOUNDARY, linewidth=0.8, zorder=1)
        for trace, look in series.items():
            line = part[part["trace"] == trace]
            _curve(axis, line["window"], line["reused"], look, _doublings(line["window"].max()))
        axis.set_xscale("log", base=2)
        axis.set_xlim(left=1)
        axis.xaxis.set_major_formatter("{x:.0f}")
        _share_axis(axis)
    label_axes(axes, "tokens since the expert's last use", "selections")
    half = Line2D([], [], color=_BOUNDARY, linewidth=0.8, label="half of all selections")
    add_legend(figure, [*_handles(series, INPUT_TITLES), half])
    return figure


def policy_hits(results: Results) -> Figure:
    """Hit rate against capacity by policy, a panel per row and input; counted hits as points."""
    columns = ["row", "trace", "policy", "capacity", "hit_rate", "counted_hit_rate"]
    table = results.table("locality", columns)
    if table["row"].nunique() > _ACROSS:
        table = table[table["trace"] == table["trace"].iloc[0]]
    pairs = list(dict.fromkeys(zip(table["row"], table["trace"], strict=True)))
    titles = [_policy_title(table, row, trace) for row, trace in pairs]
    figure, axes = panels(titles, CURVE_HEIGHT if len(pairs) <= _ACROSS else None, _ACROSS)
    series = {
        policy: look._replace(marker="")
        for policy, look in _looks(table["policy"], POLICY_TITLES).items()
    }
    for axis, (row, trace) in zip(axes, pairs, strict=True):
        part = table[(table["row"] == row) & (table["trace"] == trace)]
        n_expert = part["capacity"].max()
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=1)
        for policy, look in series.items():
            line = part[part["policy"] == policy]
            _curve(axis, line["capacity"] / n_expert, line["hit_rate"], look)
        counted = part.dropna(subset=["counted_hit_rate"])
        axis.plot(
            counted["capacity"] / n_expert, counted["counted_hit_rate"],
            color=INK, marker="o", markersize=3.5, linestyle="none", zorder=4,
        )  # fmt: skip
        axis.set_xlim(0, 1.03)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
        percent_axis(axis.xaxis)
        _share_axis(axis)
    label_axes(axes, "capacity C / N", "hit rate")
    points = Line2D(
        [], [], color=INK, marker="o", markersize=3.5, linestyle="none", label="LRU as counted"
    )
    uniform = Line2D([], [], color=FAINT, linewidth=0.8, label="uniform routing: C / N")
    add_legend(figure, [*_handles(series, POLICY_TITLES), points, uniform], columns=6)
    return figure


def _overlap_title(part: pd.DataFrame) -> str:
    """Return the row's name and K / N, which is what random routing overlaps with one token."""
    return f"{part['row'].iloc[0]} (K / N = {part['uniform'].min():.1%})"


def _policy_title(table: pd.DataFrame, row: str, trace: str) -> str:
    title = INPUT_TITLES.get(trace, trace)
    return title if table["row"].nunique() == 1 else f"{row}\n{title}"


def _looks(names: pd.Series[str], titles: dict[str, str]) -> dict[str, Look]:
    """Return a look for each name that occurs: those with a title first, in their order."""
    present = list(dict.fromkeys(names))
    known = [name for name in titles if name in present]
    return looks([*known, *(name for name in present if name not in titles)])


def _handles(series: dict[str, Look], titles: dict[str, str]) -> list[Line2D]:
    return [handle(titles.get(name, name), look) for name, look in series.items()]


def _doublings(largest: int) -> list[int]:
    """Return 1, 2, 4, ... up to the largest."""
    return [1 << i for i in range(int(largest).bit_length())]


def _curve(
    axis: Axes, x: pd.Series[Any], y: pd.Series[Any], look: Look, marked: Sequence[int] = ()
) -> None:
    """Draw a curve with the look's mark where `x` is among the marked values."""
    axis.plot(
        x, y, color=look.color, marker=look.marker, dashes=look.dashes,
        markevery=x.isin(marked).to_list(),
    )  # fmt: skip


def _share_axis(axis: Axes) -> None:
    percent_axis(axis.yaxis)
    axis.set_ylim(0, 1.03)
