"""Where the level of a long series changed.

Binary segmentation (Scott & Knott, Biometrics 30, 1974) with the largest standardised rank-sum
statistic over all places at which a segment can be cut (Pettitt, Applied Statistics 28, 1979;
Ross, Tasoulis & Adams, Technometrics 53, 2011). MongoDB's E-divisive (Daly et al., ICPE 2020) and
Hunter (Fleming et al., ICPE 2023) follow the same plan with other statistics. Ranks are enough for
a change of level, a disturbed session moves them by one place only, and their distribution without
a change depends on the length alone: it is drawn once for each length instead of by permuting every
series.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from tec.stats import Floats

LEVEL = 0.01
"""Chance that a series without a change is cut."""
SHORTEST = 4
"""Points on either side of a cut."""

_DRAWS = 2000
_GROWTH = 1.1
_SEED = 20260101


def change_points(values: Sequence[float], level: float = LEVEL) -> list[tuple[int, float]]:
    """Return (index of the first point after a change, p-value), by index.

    Args:
        values: points of a series, oldest first [n].
        level: chance of a change that is none, for the whole series.
    """
    found: list[tuple[int, float]] = []
    segments = [(0, len(values))]
    while segments:
        begin, end = segments.pop()
        if end - begin < 2 * SHORTEST:
            continue
        cut, statistic = _best_cut(np.asarray(values[begin:end], dtype=np.float64))
        null = _null(_length(end - begin))
        p = float((1 + (null >= statistic).sum()) / (1 + len(null)))
        if p <= level:
            found.append((begin + cut, p))
            segments += [(begin, begin + cut), (begin + cut, end)]
    return sorted(found)


def _best_cut(values: Floats) -> tuple[int, float]:
    """Return the cut with the largest statistic, and that [n]."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(1, len(values) + 1)
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.bincount(group, weights=ranks) / count)[group]  # ties share their mean rank
    statistics = _statistics(ranks[None, :])[0]
    best = int(statistics.argmax())
    return best + SHORTEST, float(statistics[best])


def _statistics(ranks: Floats) -> Floats:
    """Return the statistic of every cut of every row [m, n] -> [m, n + 1 - 2 SHORTEST]."""
    n = ranks.shape[1]
    left = np.arange(SHORTEST, n - SHORTEST + 1)
    sums = ranks.cumsum(axis=1)[:, left - 1]
    expected, variance = left * (n + 1) / 2, left * (n - left) * (n + 1) / 12
    scaled: Floats = np.abs(sums - expected) / np.sqrt(variance)
    return scaled


def _length(n: int) -> int:
    """Return the next of a few lengths: longer series have larger statistics, so it is cautious."""
    length = 2 * SHORTEST
    while length < n:
        length = max(length + 1, int(length * _GROWTH))
    return length


@cache
def _null(n: int) -> Floats:
    """Return the largest statistics of series of n points without a change [_DRAWS]."""
    rng = np.random.default_rng(_SEED)
    largest = np.empty(_DRAWS)
    for index in range(_DRAWS):
        ranks = rng.permutation(n).astype(np.float64) + 1
        largest[index] = _statistics(ranks[None, :]).max()
    return largest
