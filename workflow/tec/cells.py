"""The cells of a comparison: one metric of one series each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from tec.exact import EXACT, compare_exact
from tec.history import HistoryRecord, Series
from tec.regression import Comparison, Finding, Metric
from tec.trends import value_of

Launches = Sequence[HistoryRecord]


class Cell(NamedTuple):
    """One metric of one series."""

    series: Series
    metric: Metric


def exact_cells(series: Series, old: Launches, new: Launches) -> list[Comparison]:
    """Return the cells of a series that are compared exactly."""
    found: list[Comparison] = []
    for metric in EXACT:
        if old and new and (exact := compare_exact(old, new, metric)):
            outcome = (exact.finding, exact.detail)
            cell = plain_cell(Cell(series, metric), old, new, outcome)
            ratio = exact.new / exact.old if exact.old and exact.new else None
            found.append(
                cell.model_copy(update={"old": exact.old, "new": exact.new, "ratio": ratio})
            )
    return found


def plain_cell(
    cell: Cell, old: Launches, new: Launches, outcome: tuple[Finding, str]
) -> Comparison:
    """Return a cell without numbers."""
    evidence = (*new, *old)[0].evidence
    return Comparison(
        **cell.series._asdict(),
        evidence=evidence,
        metric=cell.metric,
        finding=outcome[0],
        old=middle(old, cell.metric),
        new=middle(new, cell.metric),
        ratio=None,
        lo=None,
        hi=None,
        noise=None,
        p=None,
        p_adjusted=None,
        confirmed=None,
        old_launches=len(old),
        new_launches=len(new),
        detail=outcome[1],
    )


def middle(launches: Launches, metric: Metric) -> float | None:
    """Return the median over launches of a metric that is a number; None without any."""
    if metric in ("victims", "parity"):
        return None
    values = [value for launch in launches if (value := value_of(launch, metric)) is not None]
    return median(values) if values else None


def by_series(launches: Iterable[HistoryRecord]) -> dict[Series, list[HistoryRecord]]:
    """Return the launches of every series, in their order."""
    found: dict[Series, list[HistoryRecord]] = {}
    for launch in launches:
        found.setdefault(launch.series, []).append(launch)
    return found
