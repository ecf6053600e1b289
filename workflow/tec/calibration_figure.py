"""Figure of pinning by frequency: what it gains over LRU on its own text and on text held out."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from tec.calibration_table import HELD_OUT, OWN
from tec.figure_data import Results, read_table
from tec.figure_style import (
    FAINT,
    INK,
    add_legend,
    handle,
    in_words,
    label_axes,
    looks,
    panels,
    percent_axis,
)

_POLICIES = {"pins": "pins alone", "pins+lru": "pins and LRU"}
_CALIBRATED_ON = {"prompt": "built-in prompt", "text": "same text, first half"}
_MARGIN = 0.01
_KEYS = ["row", "calibrated_on", "text", "capacity_share"]


def calibration(results: Results) -> Figure:
    """Hit rate above LRU's against capacity, a panel per row and calibration."""
    if read_table(results.folder / "tables" / "calibration.csv", empty=True).empty:
        return in_words("no row could be calibrated")
    gains = _above_lru(results.table("calibration", [*_KEYS, "policy", "hit_rate"]))
    pairs = list(dict.fromkeys(zip(gains["row"], gains["calibrated_on"], strict=True)))
    several = gains["row"].nunique() > 1
    names = [(row if several else "", _CALIBRATED_ON[on]) for row, on in pairs]
    figure, axes = panels(["\n".join(filter(None, name)) for name in names], across=2, in_column=2)
    series = looks(list(_POLICIES))
    for axis, (row, on) in zip(axes, pairs, strict=True):
        panel = gains[(gains["row"] == row) & (gains["calibrated_on"] == on)]
        axis.axhline(0, color=INK, linewidth=0.8, zorder=1)
        for policy, look in series.items():
            for text, color in ((OWN, FAINT), (HELD_OUT, look.color)):
                line = panel[(panel["text"] == text) & (panel["policy"] == policy)]
                axis.plot(
                    line["capacity_share"], line["gain"],
                    color=color, marker=look.marker, dashes=look.dashes,
                )  # fmt: skip
        axis.set_xlim(0, 0.8)
        axis.set_xticks([0, 0.25, 0.5, 0.75])
        percent_axis(axis.xaxis)
        axis.yaxis.set_major_formatter(FuncFormatter(_points))
        axis.set_ylim(gains["gain"].min() - _MARGIN, gains["gain"].max() + _MARGIN)
    label_axes(axes, "capacity C / N", "points above LRU")
    held_out = Line2D([], [], color=INK, label="text held out (in colour)")
    own = Line2D([], [], color=FAINT, label="its own text (grey)")
    policies = [handle(_POLICIES[policy], look) for policy, look in series.items()]
    add_legend(figure, [*policies, held_out, own])
    return figure


def _above_lru(table: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of the pins with their hit rate less LRU's on the same text, `gain`."""
    lru = table.loc[table["policy"] == "lru", [*_KEYS, "hit_rate"]]
    lines = table[table["policy"] != "lru"].merge(lru, on=_KEYS, suffixes=("", "_lru"))
    return lines.assign(gain=lines["hit_rate"] - lines["hit_rate_lru"])


def _points(share: float, _: float) -> str:
    """Write a difference of shares in percentage points."""
    points = round(100 * share)
    return f"{points:+d}" if points else "0"
