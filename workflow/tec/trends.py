"""Long series: a point per session and build, with the change points of the level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

from tec.change_points import change_points
from tec.history import History, HistoryRecord
from tec.quantities import MIB
from tec.regression import TIMED, ChangePoint, Metric, Point, Trend

TRACED: Final[tuple[Metric, ...]] = (*TIMED, "hit_rate", "bytes_moved", "vram_bytes")
"""Metrics that are numbers."""

VRAM_TOLERANCE = MIB
"""What a driver's own use may differ by from launch to launch."""


def value_of(record: HistoryRecord, metric: Metric) -> float | None:
    """Return what a launch measured of a metric that is a number; None where it did not."""
    values = record.values
    if metric == "hit_rate":
        if values.hits is None or values.misses is None or not values.hits + values.misses:
            return None
        return values.hits / (values.hits + values.misses)
    found = getattr(values, metric)
    return None if found is None else float(found)


def trends(history: History, metrics: Sequence[Metric] = TRACED) -> Iterator[Trend]:
    """Yield every metric of every series that has points, in the order of the file."""
    for launches in history.by_series().values():
        for metric in metrics:
            if trend := trend_of(launches, metric):
                yield trend


def trend_of(launches: Sequence[HistoryRecord], metric: Metric) -> Trend | None:
    """Return one metric of one series; None if no launch measured it.

    Args:
        launches: of one series, in the order of the history.
        metric: one that is a number.
    """
    sessions: dict[tuple[str, str, str, str], list[HistoryRecord]] = {}
    for launch in launches:
        if value_of(launch, metric) is not None:
            key = (launch.session, launch.build, launch.settings, launch.model)
            sessions.setdefault(key, []).append(launch)
    if not sessions:
        return None
    points = [_point(index, group, metric) for index, group in enumerate(sessions.values())]
    first = launches[0]
    return Trend(
        **first.series._asdict(),
        evidence=first.evidence,
        metric=metric,
        machine=launches[-1].machine,
        points=tuple(points),
        change_points=tuple(_changes(points, metric)),
    )


def _point(index: int, launches: Sequence[HistoryRecord], metric: Metric) -> Point:
    values = sorted(v for launch in launches if (v := value_of(launch, metric)) is not None)
    lo, hi = median_interval(values)
    first = launches[0]
    return Point(
        index=index,
        started_at=first.started_at,
        commit=first.commit,
        build=first.build,
        session=first.session,
        value=median(values),
        lo=lo,
        hi=hi,
        launches=len(values),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval of the median that holds for any distribution.

    The order statistics between which it lies with 95 % or more (Hahn & Meeker, Statistical
    Intervals, 1991, section 5.2); of fewer than six values the smallest and the largest, which
    cover it with 1 - 2^(1 - n).

    Args:
        values: sorted, one at least.
    """
    n, outside, tail = len(values), 0, 0.0
    while (tail := tail + math.comb(n, outside) / 2**n) <= 0.025:
        outside += 1
    drop = max(outside - 1, 0)
    return values[drop], values[n - 1 - drop]


def _changes(points: Sequence[Point], metric: Metric) -> Iterator[ChangePoint]:
    """Yield the changes of the level; of exact values every difference is one."""
    values = [point.value for point in points]
    if metric in TIMED:
        found = change_points(values)
    else:
        slack = VRAM_TOLERANCE if metric == "vram_bytes" else 0
        pairs = enumerate(pairwise(values), start=1)
        found = [(index, 0.0) for index, (a, b) in pairs if abs(b - a) > slack]
    bounds = [0, *(index for index, _ in found), len(values)]
    for place, (index, p) in enumerate(found, start=1):
        before = median(values[bounds[place - 1] : index])
        after = median(values[index : bounds[place + 1]])
        yield ChangePoint(
            index=index,
            commit=points[index].commit,
            before=before,
            after=after,
            ratio=after / before if before else 1.0,
            p=p,
        )
