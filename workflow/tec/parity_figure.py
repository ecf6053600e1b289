"""The figure of parity verdicts: a matrix of rows, checks and numbers of sequences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tec.figure_data import Results, functional_rows
from tec.figure_style import (
    CHECKED_ON_CPU,
    FAINT,
    INK,
    PAGE_WIDTH,
    add_legend,
    arm_title,
    label_functional,
)
from tec.table import EMPTY
from tec.verdicts import BY_CPU, PAST

CHECKS = ("self", "bitwise", "greedy", "ppl", "kl")
_IN_PART = ("ppl", "kl")
"""Checks that are run at some capacities only, by design."""
"""In the detail of a verdict on steps too large for the cache, which took upstream's path."""

_LOOKS = {
    "pass": ("0.85", INK, "normal"),
    "part": ("0.95", INK, "normal"),
    "fail": ("0.0", "1.0", "bold"),
    "past": ("1.0", "0.4", "normal"),
    "not run": ("1.0", "0.4", "normal"),
}
"""Face, colour and weight of a cell by its state."""
_LEGEND = {
    "pass": "passed at every capacity that serves such steps",
    "part": "passed at n of m capacities, the others not run",
    "fail": "failed at a capacity or more",
    "past": f"past: too many tokens for the cache; {EMPTY}: not run",
}

_GAP = 0.35
"""Between two checks, in widths of a cell."""
_LINE_HEIGHT = 0.19
"""Inches per row."""
_HEAD_HEIGHT = 1.6
"""Inches: note, checks, batches and legend."""
_REASON_WIDTH = 100
"""Characters of a failed row's reason."""


@dataclass(frozen=True)
class _Column:
    """One check of so many sequences decoded together; 0 where that does not apply."""

    check: str
    batch: int
    x: float


def parity(results: Results) -> Figure:
    """Every check of every row; of a single row, of every arm.

    A comparison of bits that nobody asks for, as the CPU computed misses, is none.
    """
    columns = ["row", "arm", "check", "verdict", "detail", "evidence", "batch"]
    table = results.table("parity", columns)
    table = table.assign(batch=table["batch"].fillna(0).astype(int), past=_went_past(table))
    table = table[~table["detail"].astype(str).str.contains(BY_CPU, regex=False)]
    failed = results.failures()
    judged = table.dropna(subset=["arm"])
    rows = list(dict.fromkeys([*table["row"], *failed]))
    by = "row" if len(rows) > 1 else "arm"
    names = rows if by == "row" else list(dict.fromkeys(judged["arm"])) or rows
    figure = Figure(
        figsize=(PAGE_WIDTH, _HEAD_HEIGHT + _LINE_HEIGHT * len(names)), layout="constrained"
    )
    axis = figure.add_subplot()
    places = list(_columns(judged))
    for y, name in enumerate(names):
        lines = judged[judged[by] == name]
        if lines.empty:
            reason = textwrap.shorten(f"failed: {failed.get(name, 'not checked')}", _REASON_WIDTH)
            axis.text(0.1, y + 0.5, reason, va="center", style="italic", weight="bold")
        for column in places if not lines.empty else ():
            _cell(axis, column, y, _state(_of(lines, column), by))
    _label(axis, places, names)
    _head(axis, places, judged, rows)
    add_legend(figure, [_entry(state) for state in _LEGEND], columns=2)
    label_functional(figure, CHECKED_ON_CPU, functional_rows(judged), _measured(judged))
    return figure


def _went_past(table: pd.DataFrame) -> pd.Series[bool]:
    """Say of every line whether its steps went past the cache; `bitwise` says it for `greedy`."""
    said = table["detail"].astype(str).str.contains(PAST, regex=False)
    keys = pd.Series(
        zip(table["row"], table["arm"].astype(str), table["batch"].fillna(0), strict=True),
        index=table.index,
    )
    compared = table["check"].isin(("bitwise", "greedy"))
    return keys.isin(set(keys[said])) & compared


def _columns(table: pd.DataFrame) -> Iterator[_Column]:
    x = 0.0
    for check in CHECKS:
        batches = sorted(set(table.loc[table["check"] == check, "batch"]))
        for batch in batches:
            yield _Column(check, batch, x)
            x += 1
        x += _GAP if batches else 0


def _of(lines: pd.DataFrame, column: _Column) -> pd.DataFrame:
    return lines[(lines["check"] == column.check) & (lines["batch"] == column.batch)]


def _state(lines: pd.DataFrame, by: str) -> tuple[str, str]:
    """Return a cell's state and text; a failure past the cache is a failure too."""
    if (lines["verdict"] == "fail").any():
        return "fail", "fail"
    served = lines[~lines["past"]]
    passed = int((served["verdict"] == "pass").sum())
    if served.empty and not lines.empty:
        return "past", "past"
    if not passed:
        return "not run", EMPTY
    text = f"{passed}/{len(served)}" if by == "row" and set(lines["check"]) != {"self"} else "pass"
    return ("pass" if passed == len(served) else "part"), text


def _cell(axis: Axes, column: _Column, y: int, state: tuple[str, str]) -> None:
    face, ink, weight = _LOOKS[state[0]]
    axis.add_patch(Rectangle((column.x, y), 1, 1, facecolor=face, edgecolor=FAINT, linewidth=0.4))
    axis.text(column.x + 0.5, y + 0.5, state[1], ha="center", va="center", color=ink, weight=weight)


def _head(axis: Axes, columns: list[_Column], table: pd.DataFrame, rows: list[str]) -> None:
    """Write every check above the matrix, and how many of all rows passed it."""
    for check in dict.fromkeys(column.check for column in columns):
        own = [column.x for column in columns if column.check == check]
        middle = (own[0] + own[-1] + 1) / 2
        tally = _tally(table, check, rows, len(own) > 1)
        for text, height, weight in ((check, 13, "bold"), (tally, 3, "normal")):
            axis.annotate(
                text, (middle, 0), (0, height), textcoords="offset points", ha="center",
                weight=weight, annotation_clip=False,
            )  # fmt: skip


def _label(axis: Axes, columns: list[_Column], names: list[str]) -> None:
    """Write batches below and names beside the matrix."""
    batched = [column for column in columns if column.batch]
    axis.set_xticks([column.x + 0.5 for column in batched], [str(c.batch) for c in batched])
    if batched:
        axis.set_xlabel("sequences decoded together")
    axis.set_yticks([y + 0.5 for y in range(len(names))], [arm_title(name) for name in names])
    last = columns[-1].x + 1 if columns else 1
    axis.set(xlim=(0, last), ylim=(len(names) + 0.05, 0))
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _tally(table: pd.DataFrame, check: str, rows: list[str], words: bool) -> str:
    """Return how many of all rows passed a check wherever it had to be run."""
    good = sum(
        _passed(table[(table["row"] == row) & (table["check"] == check)], check) for row in rows
    )
    return f"{good}/{len(rows)}" + (f" {'row' if len(rows) == 1 else 'rows'}" if words else "")


def _passed(lines: pd.DataFrame, check: str) -> bool:
    found = set(lines["verdict"])
    return "pass" in found and found <= ({"pass", "not_run"} if check in _IN_PART else {"pass"})


def _measured(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["row"]))


def _entry(state: str) -> Patch:
    return Patch(facecolor=_LOOKS[state][0], edgecolor=FAINT, label=_LEGEND[state])
