"""The figure of parity verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tec.figure_data import Results, functional_rows
from tec.figure_style import CHECKED_ON_CPU, FAINT, INK, arm_title, label_functional, panels

CHECKS = ("self", "bitwise", "greedy", "ppl", "kl")

_VERDICT_LOOKS = {
    "pass": ("0.9", INK, "normal"),
    "fail": ("0.0", "1.0", "bold"),
    "not_run": ("1.0", "0.4", "normal"),
}
"""Face, colour and weight of a verdict's cell."""


def parity(results: Results) -> Figure:
    """The verdict of every check, arm by arm."""
    table = results.table("parity", ["row", "arm", "check", "verdict", "evidence"])
    rows = list(dict.fromkeys(table["row"]))
    arms = table.groupby("row")["arm"].nunique().max()
    figure, axes = panels(rows, height=0.6 + 0.19 * arms, across=2)
    for axis, row in zip(axes, rows, strict=True):
        _verdict_panel(axis, table[table["row"] == row])
    label_functional(figure, CHECKED_ON_CPU, functional_rows(table), rows)
    return figure


def _verdict_panel(axis: Axes, table: pd.DataFrame) -> None:
    """Draw a grid of arms and checks; a failure is black, a pass grey, not run white."""
    arms = list(dict.fromkeys(table["arm"]))
    for line in table.itertuples():
        x, y = CHECKS.index(str(line.check)), arms.index(line.arm)
        face, ink, weight = _VERDICT_LOOKS[str(line.verdict)]
        axis.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor=FAINT, linewidth=0.4))
        text = str(line.verdict).replace("_", " ")
        axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, weight=weight)
    axis.set(xlim=(0, len(CHECKS)), ylim=(len(arms), 0))
    axis.set_xticks(np.arange(len(CHECKS)) + 0.5, CHECKS)
    axis.set_yticks(np.arange(len(arms)) + 0.5, [arm_title(arm) for arm in arms])
    axis.tick_params(length=0)
    axis.grid(visible=False)
