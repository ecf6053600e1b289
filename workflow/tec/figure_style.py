"""How every figure looks: size, type, marks that differ in grey, and files that do not change.

A figure of one row is as wide as a column of the paper; a figure of several rows has one panel
per row and is as wide as the page.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from tec.files import replacing

COLUMN_WIDTH = 3.3
"""Inches; one column of the paper."""
PAGE_WIDTH = 6.9
"""Inches; both columns and the gap."""
CURVE_HEIGHT, SMALL_CURVE_HEIGHT = 2.3, 1.55
"""Inches; a panel with curves on a column-wide and on a page-wide figure."""
_LABELLED_SHARES = (0.25, 0.5, 0.75, 1.0)
_CHARACTERS = 14
"""Of a panel's title, per inch."""

NOT_EVIDENCE = "functional, not evidence: run on the CPU back end"
COUNTED_ON_CPU = "counted on the CPU back end"
CHECKED_ON_CPU = "checked on the CPU back end"

INK = "0.1"
FAINT = "0.6"

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (4, 1.5),
    (1.2, 1.2),
    (6, 1.5, 1.2, 1.5),
    (2.5, 1),
    (5, 1, 1, 1, 1, 1),
    (8, 2),
)

# Text becomes outlines in SVG, so that a figure looks the same wherever it is shown.
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 7,
    "figure.labelsize": 7,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "svg.fonttype": "path",
    "svg.hashsalt": "tec",
    "pdf.fonttype": 42,
}


class Look(NamedTuple):
    """How one series is drawn; any of the three tells it from the others."""

    color: tuple[float, float, float]
    marker: str
    dashes: tuple[float, ...]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look for each name, from dark to light in the order given."""
    colors = sns.color_palette("mako", as_cmap=True)(np.linspace(0.1, 0.72, len(names)))
    return {
        name: Look(tuple(color[:3]), _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)])
        for i, (name, color) in enumerate(zip(names, colors, strict=True))
    }


@contextmanager
def style() -> Iterator[None]:
    """Draw and save figures in TEC's style inside the block."""
    with sns.axes_style("whitegrid"), mpl.rc_context(_STYLE):
        yield


def panels(
    titles: Sequence[str], height: float | None = None, across: int = 3, in_column: int = 1
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one titled panel per title.

    Args:
        titles: one per panel, in reading order.
        height: of one panel, in inches; by default that of a panel with curves.
        across: panels side by side on a page-wide figure.
        in_column: up to this many panels share a column-wide figure.
    """
    narrow = len(titles) <= in_column
    columns = min(len(titles), in_column if narrow else across)
    lines = -(-len(titles) // columns)
    height = height or (CURVE_HEIGHT if narrow else SMALL_CURVE_HEIGHT)
    width = COLUMN_WIDTH if narrow else PAGE_WIDTH
    figure = Figure(figsize=(width, lines * height), layout="constrained")
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(len(titles))]
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(_wrapped(title, int(width / columns * _CHARACTERS)))
    return figure, axes


def _wrapped(title: str, width: int) -> str:
    """Break the lines of a title that are longer than `width` characters, at hyphens too."""
    return "\n".join(textwrap.fill(line, width) for line in title.splitlines())


def in_words(text: str) -> Figure:
    """Return a figure that says why there is nothing to see."""
    figure = Figure(figsize=(COLUMN_WIDTH, 0.5))
    figure.text(0.5, 0.5, text, ha="center", va="center", style="italic")
    return figure


def label_axes(axes: Sequence[Axes], x: str, y: str = "") -> None:
    """Label the x axis of every column's last panel and the y axis of every line's first."""
    first = axes[0].get_subplotspec()
    columns = first.get_gridspec().ncols if first else 1
    for index, panel in enumerate(axes):
        panel.set_xlabel(x if index + columns >= len(axes) else "")
        panel.set_ylabel(y if index % columns == 0 else "")


def add_legend(figure: Figure, handles: Sequence[Line2D | Patch], columns: int = 5) -> None:
    """Put a legend below the panels: in so many columns, or two on a column-wide figure."""
    columns = 2 if figure.get_figwidth() == COLUMN_WIDTH else columns
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns))


def handle(label: str, look: Look) -> Line2D:
    """Return the legend's entry for a series."""
    return Line2D([], [], label=label, color=look.color, marker=look.marker, dashes=look.dashes)


def label_functional(
    figure: Figure,
    text: str,
    functional: Sequence[str],
    rows: Sequence[str],
    failed: Sequence[str] = (),
) -> None:
    """Say on the figure what ran on the CPU back end: all of `rows`, or the `functional` ones.

    Rows that failed have no panel and are named here.
    """
    lines = []
    if functional:
        some = "" if len(functional) == len(rows) else f" ({', '.join(functional)})"
        lines.append(text + some)
    if failed:
        lines.append(f"failed, not shown: {', '.join(failed)}")
    if lines:
        width = int(figure.get_figwidth() * _CHARACTERS * 1.2)
        figure.suptitle("\n".join(_wrapped(line, width) for line in lines), style="italic")


def percent_axis(axis: Axis) -> None:
    """Write an axis of shares in percent."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def nearest_shares(places: pd.Series[float]) -> list[Any]:
    """Return the index of the places nearest to the shares of experts that axes show."""
    nearest = [(places - share).abs().idxmin() for share in _LABELLED_SHARES if len(places)]
    return list(dict.fromkeys(nearest))


def share_ticks(axis: Axes, shares: pd.Series[float]) -> None:
    """Label bars that stand side by side, one a capacity, with their shares in percent."""
    numbered = shares.reset_index(drop=True)
    ticks = nearest_shares(numbered)
    axis.set_xticks(ticks, [f"{100 * numbered[tick]:.3g}" for tick in ticks])
    axis.grid(visible=False, axis="x")


def arm_title(arm: str) -> str:
    """Return an arm's name for a figure; a cached arm is its capacity."""
    found = re.fullmatch(r"cached-c(\d+)", arm)
    return f"C = {found[1]}" if found else arm


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format its suffix names; the same figure gives the same bytes."""
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata=undated)
