"""Builds that ran interleaved, cell by cell: see `tec.detection` for the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tec.cells import Cell, Launches, by_series, exact_cells, middle
from tec.detection import (
    CONFIRM_LEVEL,
    LEVEL,
    SCREEN_LEVEL,
    centre,
    holm,
    interval,
    noise_floor,
    rounds_needed,
    signed_rank,
)
from tec.history import HistoryRecord
from tec.regression import TIMED, Comparison, Finding, Metric
from tec.trends import value_of


@dataclass(frozen=True)
class Timed:
    """What the launches of one cell say about its throughput."""

    ratios: tuple[tuple[float, ...], ...]
    """Log ratios new / old of the rounds of each session."""
    same: tuple[tuple[float, ...], ...]
    """The same of the old build to itself (A/A)."""

    @property
    def logs(self) -> list[float]:
        """The log ratios of all rounds."""
        return [log for session in self.ratios for log in session]

    @cached_property
    def p(self) -> float:
        """The chance of such ratios without a change."""
        return signed_rank(self.logs)

    @cached_property
    def floor(self) -> float:
        """The noise floor, as a log ratio; 0 without A/A runs."""
        return noise_floor(self.same) if self.same else 0.0


def compare_paired(
    screen: Launches, confirm: Launches | None, old_build: str, new_build: str
) -> list[Comparison]:
    """Return what launches of two builds show that ran interleaved.

    The chance of an alarm without a change is `tec.detection.LEVEL` for all cells together, with
    and without a confirmation.

    Args:
        screen: launches of the first session.
        confirm: launches of a second one, of the suspected cells (`suspects`); None without one.
        old_build: the engine's hash.
        new_build: the same.
    """
    cells = _timed_cells(screen, old_build, new_build)
    again = _timed_cells(confirm or (), old_build, new_build)
    level = LEVEL if confirm is None else SCREEN_LEVEL
    adjusted = _adjusted(cells)
    suspected = suspected_of(cells, level)
    confirmed = confirmed_of(cells, {cell: again[cell] for cell in suspected if cell in again})
    found: list[Comparison] = []
    for series, launches in by_series(screen).items():
        old = [launch for launch in launches if launch.build == old_build]
        new = [launch for launch in launches if launch.build == new_build]
        for metric in TIMED:
            cell = Cell(series, metric)
            if cell in cells:
                judged = None if confirm is None or cell not in suspected else cell in confirmed
                shown = again.get(cell, cells[cell]) if judged else cells[cell]
                outcome = _judge(cells[cell], len(cells), level, cell in suspected, judged)
                found.append(_timed(cell, old, new, shown, adjusted[cell], outcome, judged))
        found += exact_cells(series, old, new)
    return found


def suspects(screen: Launches, old_build: str, new_build: str) -> list[Cell]:
    """Return the cells that a first session of interleaved builds gives reason to confirm."""
    return sorted(suspected_of(_timed_cells(screen, old_build, new_build), SCREEN_LEVEL))


def suspected_of(cells: Mapping[Cell, Timed], level: float) -> set[Cell]:
    """Return the cells with a difference, beyond the noise floor, at a level for all together."""
    adjusted = _adjusted(cells)
    return {
        cell
        for cell, timed in cells.items()
        if adjusted[cell] <= level and abs(centre(timed.logs)) > timed.floor
    }


def confirmed_of(first: Mapping[Cell, Timed], again: Mapping[Cell, Timed]) -> set[Cell]:
    """Return the suspected cells that fresh launches show again, in the same direction."""
    return {
        cell
        for cell in suspected_of(again, CONFIRM_LEVEL)
        if centre(again[cell].logs) * centre(first[cell].logs) > 0
    }


def _adjusted(cells: Mapping[Cell, Timed]) -> dict[Cell, float]:
    return dict(zip(cells, holm([timed.p for timed in cells.values()]), strict=True))


def _judge(
    timed: Timed, cells: int, level: float, suspected: bool, confirmed: bool | None
) -> tuple[Finding, str]:
    """Return the finding about one cell of interleaved builds, and why."""
    rounds, needed = len(timed.logs), rounds_needed(cells, level)
    if rounds < needed:
        what = f"{rounds} round{'s' * (rounds != 1)}; {needed} are needed to find anything"
        return "measured nothing", f"{what} in {cells} cells"
    if not suspected:
        return "no change", f"{rounds} rounds"
    if confirmed is False:
        return "no change", "suspected at first; fresh launches did not show it again"
    finding: Finding = "regressed" if centre(timed.logs) < 0 else "improved"
    return finding, f"{rounds} rounds" + ("; fresh launches showed it again" if confirmed else "")


def _timed(
    cell: Cell,
    old: Launches,
    new: Launches,
    shown: Timed,
    adjusted: float,
    outcome: tuple[Finding, str],
    confirmed: bool | None,
) -> Comparison:
    lo, hi = interval(shown.ratios)
    return Comparison(
        **cell.series._asdict(),
        evidence=new[0].evidence,
        metric=cell.metric,
        finding=outcome[0],
        old=middle(old, cell.metric),
        new=middle(new, cell.metric),
        ratio=math.exp(centre(shown.logs)),
        lo=math.exp(lo),
        hi=math.exp(hi),
        noise=math.expm1(shown.floor) if shown.same else None,
        p=shown.p,
        p_adjusted=adjusted,
        confirmed=confirmed,
        old_launches=len(old),
        new_launches=len(new),
        detail=outcome[1],
    )


def _timed_cells(launches: Launches, old_build: str, new_build: str) -> dict[Cell, Timed]:
    """Return the cells that both builds measured in the same rounds."""
    found: dict[Cell, Timed] = {}
    for series, of_series in by_series(launches).items():
        for metric in TIMED:
            timed = _ratios(of_series, metric, old_build, new_build)
            if timed.ratios:
                found[Cell(series, metric)] = timed
    return found


def _ratios(launches: Launches, metric: Metric, old_build: str, new_build: str) -> Timed:
    """Return the log ratios of a series' rounds, by session.

    Of two launches of the old build in a round the first is compared in one round and the second in
    the next, so that the order within rounds favours nobody; the other one is its A/A twin.
    """
    ratios: dict[str, list[float]] = {}
    same: dict[str, list[float]] = {}
    for (session, _, number), turn in _rounds(launches, metric).items():
        old = [value_of(launch, metric) for launch in turn if launch.build == old_build]
        new = [value_of(launch, metric) for launch in turn if launch.build == new_build]
        if not old or not new:
            continue
        reference = old.pop(number % len(old))
        ratios.setdefault(session, []).append(_log(new[0], reference))
        if old:
            same.setdefault(session, []).append(_log(old[0], reference))
    return Timed(_nested(ratios), _nested(same))


def _rounds(launches: Launches, metric: Metric) -> dict[tuple[str, str, int], list[HistoryRecord]]:
    """Return the launches of each (session, test, round) that measured a metric, as they ran."""
    found: dict[tuple[str, str, int], list[HistoryRecord]] = {}
    for launch in sorted(launches, key=lambda launch: launch.order):
        if value_of(launch, metric) is not None:
            found.setdefault((launch.session, launch.test, launch.round), []).append(launch)
    return found


def _log(new: float | None, old: float | None) -> float:
    if new is None or old is None:
        raise ValueError("a launch without a value was paired")
    return math.log(new / old)


def _nested(logs: Mapping[str, Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(session) for session in logs.values())
