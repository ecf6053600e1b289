"""A new session after its history, cell by cell: see `tec.detection` for the test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from tec.cells import Cell, Launches, by_series, exact_cells, plain_cell
from tec.change_points import change_points
from tec.detection import LEVEL, MIN_SESSIONS, holm, predicted
from tec.history import Series
from tec.regression import TIMED, Comparison, Finding, Metric
from tec.trends import value_of


def compare_history(past: Launches, new: Launches, whole: bool = True) -> list[Comparison]:
    """Return what a new session shows beside the history of its series.

    Without a confirmation the chance of an alarm is `tec.detection.LEVEL` where sessions of one
    build differ like a normal sample.

    Args:
        past: earlier launches, in the order of the history.
        new: launches of the new session or sessions.
        whole: whether an arm that the last session had and the new one lacks is missed.
    """
    earlier, now = by_series(past), by_series(new)
    found: list[Comparison] = []
    for series, launches in now.items():
        found += _after(series, earlier, launches)
    if whole:
        found += _missing(past, now)
    return _decided(found)


def _after(series: Series, earlier: Mapping[Series, Launches], new: Launches) -> list[Comparison]:
    """Return the cells of a new session's series, timed ones not decided yet."""
    work = {(r.test, r.settings, r.model) for r in new}
    same = [r for r in earlier.get(series, ()) if (r.test, r.settings, r.model) in work]
    metrics = [m for m in TIMED if any(value_of(r, m) is not None for r in new)]
    if not same:
        why = _why_not(series, earlier, new)
        others: list[Metric] = ["parity" if new[0].values.parity else "hit_rate"]
        return [plain_cell(Cell(series, m), (), new, why) for m in metrics or others if why]
    newest = (same[-1].session, same[-1].build)
    last = [r for r in same if (r.session, r.build) == newest]
    timed = [_next_session(Cell(series, metric), same, new) for metric in metrics]
    return timed + exact_cells(series, last, new)


def _why_not(
    series: Series, earlier: Mapping[Series, Launches], new: Launches
) -> tuple[Finding, str] | None:
    """Return why a series cannot be compared; None if it is new."""
    if series in earlier:
        return "not comparable", "its settings or its model changed since the last session"
    others = [r for s, launches in earlier.items() if s[:3] == series[:3] for r in launches]
    if not others:
        return None
    was, is_now = others[-1].machine, new[0].machine
    changes = [f"{k} {was.get(k)} became {v}" for k, v in is_now.items() if was.get(k) != v]
    return "not comparable", f"another machine: {'; '.join(changes) or 'its fingerprint changed'}"


def _next_session(cell: Cell, past: Launches, new: Launches) -> Comparison:
    """Return a timed cell with its p-value; the finding is `no change` until all are known."""
    rounds = len({r.round for r in new})
    current = _sessions(new, cell.metric, rounds)
    sessions = _stable(_sessions(past, cell.metric, rounds))
    if len(sessions) < MIN_SESSIONS:
        what = f"{len(sessions)} earlier sessions at this level; {MIN_SESSIONS} are needed"
        hint = "to know how much sessions differ; compare interleaved: --against REV"
        return plain_cell(cell, past, new, ("measured nothing", f"{what} {hint}"))
    value = fmean(current)
    p, half = predicted(sessions, value)
    log = value - fmean(sessions)
    empty = plain_cell(cell, past, new, ("no change", f"{len(sessions)} earlier sessions"))
    return empty.model_copy(
        update={
            "ratio": math.exp(log),
            "lo": math.exp(log - half),
            "hi": math.exp(log + half),
            "noise": math.expm1(half),
            "p": p,
        }
    )


def _sessions(launches: Launches, metric: Metric, rounds: int) -> list[float]:
    """Return the median log throughput of each session, of as many rounds as the new one has."""
    found: dict[tuple[str, str], list[float]] = {}
    for launch in launches:
        if (value := value_of(launch, metric)) is not None and launch.round < rounds:
            found.setdefault((launch.session, launch.build), []).append(math.log(value))
    return [median(logs) for logs in found.values()]


def _stable(sessions: Sequence[float]) -> Sequence[float]:
    """Return the sessions since the last change point."""
    cuts = change_points(sessions)
    return sessions[cuts[-1][0] :] if cuts else sessions


def _missing(past: Launches, now: Mapping[Series, Launches]) -> list[Comparison]:
    """Return a cell for every arm that the last session of a new session's row had alone."""
    rows = {(s.row, s.protocol, s.system) for s in now}
    last = {(r.row, r.protocol, r.system): r.session for r in past}
    gone = [r for r in past if last[r.row, r.protocol, r.system] == r.session]
    return [
        plain_cell(
            Cell(series, "tg_tps"),
            launches,
            (),
            ("measured nothing", "the last session had this arm, and the new one has not"),
        )
        for series, launches in by_series(gone).items()
        if series not in now and (series.row, series.protocol, series.system) in rows
    ]


def _decided(found: Sequence[Comparison]) -> list[Comparison]:
    """Return the cells, those with p-values decided together."""
    adjusted = iter(holm([c.p for c in found if c.p is not None]))
    return [c if c.p is None else _decide(c, next(adjusted)) for c in found]


def _decide(cell: Comparison, adjusted: float) -> Comparison:
    update: dict[str, object] = {"p_adjusted": adjusted}
    if adjusted <= LEVEL and cell.ratio is not None:
        update["finding"] = "regressed" if cell.ratio < 1 else "improved"
        update["detail"] = f"{cell.detail}; to confirm: --against the commit before"
    return cell.model_copy(update=update)
