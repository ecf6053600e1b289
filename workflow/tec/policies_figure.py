"""The figure of policies: which one to use with slots for how many of the experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tec.figure_data import Results, functional_rows
from tec.figure_style import (
    FAINT,
    INK,
    NOT_EVIDENCE,
    Look,
    label_axes,
    label_functional,
    looks,
    panels,
)
from tec.policies import ON_CPU
from tec.policies_table import BELADY, RESIDENT, STOCK

_COLUMNS = (
    *("row", "policy", "capacity_share", "vram_limit_gib", "tps", "lo", "hi"),
    *("against_stock", "evidence"),
)
_RUN = ("lru", "hybrid", "hot", STOCK)
"""Policies that are measured, from dark to light."""
_LOOKS = {**looks(_RUN), BELADY: Look(to_rgb(INK), "", (1, 1.2))}
_NAMES = {
    "lru": "lru",
    "hybrid": "hybrid*",
    "hot": "hot*",
    STOCK: "stock's best",
    BELADY: "Belady's bound\nof copying",
    RESIDENT: "whole model\nin VRAM",
}
_SHORT = {STOCK: "stock"}
_NOTE = "* the CPU computes misses: outputs not equal to the bit"
_HEIGHTS = (3.2, 2.9)
"""Inches of a panel: of one row, of several."""
_ACROSS = 2
_HEADROOM = 1.06
_LINE = 0.068
"""Height of a line of text, as a share of a panel's."""
_ABOVE, _POINTS = 6, 8.5
"""Points between a panel and its title: for what is fastest so many, and more for each line."""


def policies(results: Results) -> Figure:
    """Decoding speed of every policy where so many experts have a slot, beside stock and bounds.

    All points above one share had the same VRAM, which stands below it. Above the panel stands what
    is fastest there, and how many times as fast as the stock engine's best it is.
    """
    table = results.table("policies", _COLUMNS)
    rows = [row for row in results.shown() if row in set(table["row"])]
    figure, axes = panels(rows, height=_HEIGHTS[len(rows) > 1], across=_ACROSS)
    for axis, row in zip(axes, rows, strict=True):
        part = table[table["row"] == row]
        shares = sorted(part["capacity_share"].dropna().unique())
        part = part.assign(place=part["capacity_share"].map(shares.index, na_action="ignore"))
        ends = _lines(axis, part) | _ceiling(axis, part)
        top = _HEADROOM * float(part[["tps", "hi"]].max().max())
        axis.set(xlim=(-0.3, len(shares) - 0.88), ylim=(0, top))
        axis.grid(visible=False, axis="x")
        _memory_axis(axis, part)
        _names(axis, ends, top)
        _fastest(axis, part)
    label_axes(axes, "experts with a slot / VRAM, GiB", "decoding, tokens/s")
    if set(table["policy"]) & set(ON_CPU):
        figure.supxlabel(_NOTE, fontsize="medium", style="italic")
    failed = list(results.failures())
    label_functional(figure, NOT_EVIDENCE, functional_rows(table), rows, failed)
    return figure


def fastest(part: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of one row and capacity that nothing measured there is faster than.

    The first is the fastest. Others follow whose range over rounds reaches into its range: the
    rounds do not tell them apart.
    """
    measured = part[part["policy"].isin(_RUN)].sort_values("tps", ascending=False)
    level: pd.DataFrame = measured[measured["hi"] >= measured["lo"].iloc[0]]
    return level


def _lines(axis: Axes, part: pd.DataFrame) -> dict[str, float]:
    """Draw every policy with its range over rounds; return its speed at the last capacity."""
    ends: dict[str, float] = {}
    for policy, look in _LOOKS.items():
        points = part[part["policy"] == policy]
        if points.empty:
            continue
        points = points.loc[points.groupby("place")["tps"].idxmax()]  # of several arms the best
        axis.plot(
            points["place"], points["tps"],
            color=look.color, marker=look.marker, dashes=look.dashes, zorder=3, label=policy,
        )  # fmt: skip
        axis.vlines(points["place"], points["lo"], points["hi"], color=look.color, linewidth=1.2)
        ends[policy] = float(points["tps"].iloc[-1])
    return ends


def _ceiling(axis: Axes, part: pd.DataFrame) -> dict[str, float]:
    """Draw the speed of the whole model in VRAM, where it was measured."""
    speeds = part.loc[part["policy"] == RESIDENT, "tps"]
    if speeds.empty:
        return {}
    axis.axhline(speeds.iloc[0], color=FAINT, linewidth=1.2, zorder=1)
    return {RESIDENT: float(speeds.iloc[0])}


def _memory_axis(axis: Axes, part: pd.DataFrame) -> None:
    """Label the places with shares of the experts, and below each with the VRAM of its arms."""
    points = part.dropna(subset=["place"]).drop_duplicates("place").sort_values("place")
    shares = [f"{100 * share:.3g} %" for share in points["capacity_share"]]
    limits = [f"{limit:.3g}" for limit in points["vram_limit_gib"]]
    axis.set_xticks(points["place"], ["\n".join(pair) for pair in zip(shares, limits, strict=True)])


class _Name(NamedTuple):
    """A name beside a panel; heights are shares of the panel's."""

    text: str
    end: float
    """Where its line ends."""
    height: float


def _names(axis: Axes, ends: Mapping[str, float], top: float) -> None:
    """Write every name beside the end of its line, or near it where another one stands."""
    names = sorted(
        (
            _Name(_NAMES[policy], end / top, _LINE * (1 + _NAMES[policy].count("\n")))
            for policy, end in ends.items()
        ),
        key=lambda name: name.end,
    )
    for name, place in zip(names, _places(names), strict=True):
        axis.annotate(
            name.text, (1, name.end), (1.09, place), "axes fraction", "axes fraction",
            va="center", linespacing=1.0, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 1,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def _places(names: Sequence[_Name]) -> list[float]:
    """Return heights for names, from below, that do not overlap, as near to their lines as can be.

    The least squares under that condition: without the room that the names below take, the heights
    must not decrease, and neighbours that would are pooled to their mean. None reaches above 1.
    """
    gaps = [0.0, *((a.height + b.height) / 2 for a, b in pairwise(names))]
    room = list(accumulate(gaps))
    pools: list[list[float]] = []
    for name, below in zip(names, room, strict=True):
        pools.append([name.end - below])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    highest = 1 - names[-1].height / 2 - room[-1]
    wanted = [min(fmean(pool), highest) for pool in pools for _ in pool]
    return [place + below for place, below in zip(wanted, room, strict=True)]


def _fastest(axis: Axes, part: pd.DataFrame) -> None:
    """Write above each capacity what is fastest; a claim of speed, so on a graphics card only."""
    if (part["evidence"] != "gpu").any():
        return
    most = 0
    for place, found in part.dropna(subset=["place"]).groupby("place"):
        best = fastest(found)
        lines = [_SHORT.get(policy, _NAMES[policy]) for policy in best["policy"]]
        ratio = best["against_stock"].iloc[0]
        lines += [] if np.isnan(ratio) else [f"{ratio:.2f}\N{MULTIPLICATION SIGN}"]
        most = max(most, len(lines))
        axis.annotate(
            "\n".join(lines), (float(str(place)), 1), (0, 3), ("data", "axes fraction"),
            "offset points", ha="center", va="bottom", fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    title = f"{axis.get_title()}\nfastest, and times the stock engine's best:"
    axis.set_title(title, pad=_ABOVE + _POINTS * most)
