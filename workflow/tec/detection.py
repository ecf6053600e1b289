"""Is it slower? Tests whose false-alarm rate does not rest on the shape of the noise.

The unit is the process launch, never the token: launches differ by memory layout and placement, and
more tokens of one launch say nothing about that (Kalibera & Jones, Rigorous Benchmarking in
Reasonable Time, ISMM 2013; Maricq et al., Taming Performance Variability, OSDI 2018).

*Interleaved builds* are compared by the log ratio of each round. Builds that do not differ can be
swapped within a round, so the ratios are symmetric about 0 whatever the noise, its tails or its
drift from round to round: the signed-rank test (Wilcoxon, Biometrics Bulletin 1, 1945) is exact.
With few rounds a bootstrap is not, hence it gives the interval that is shown and not the verdict.

*Many cells* are corrected by Holm's method (Scandinavian Journal of Statistics 6, 1979): the stated
level is the chance of one false alarm or more in a whole report, because that is what makes people
switch a bot off. Benjamini and Hochberg's method bounds the share of false ones among the alarms,
and where nothing has changed that share is all of them or none.

*Confirmation.* What a first session suspects is measured again, fresh launches of these cells only.
The second session knows nothing of the first, so its level multiplies with the first one's: two
weak tests are one strong test, and the many cells without a change cost one session.

*A build after its history* has other days behind it, and days differ. There the unit is the
session, and the test a prediction interval for one more of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt

from tec.stats import Floats

SCREEN_LEVEL = 0.1
CONFIRM_LEVEL = 0.1
LEVEL = SCREEN_LEVEL * CONFIRM_LEVEL
"""Chance that a report without any change has an alarm: of both sessions together."""

MIN_SESSIONS = 4
"""Fewer earlier sessions say too little about how much sessions differ."""

_SEED = 20260101
_DRAWS = 1000
_PERCENTILES = (2.5, 97.5)


def signed_rank(logs: Sequence[float]) -> float:
    """Return the two-sided p-value of log ratios being symmetric about 0; 1 without any.

    Exact, ties and all: the distribution of the sum of positive mid-ranks over all signs, by
    convolution. Zeros take no part.

    Args:
        logs: log ratios of rounds [n], finite.
    """
    values = np.asarray([value for value in logs if value != 0], dtype=np.float64)
    if not len(values):
        return 1.0
    ranks = _double_ranks(np.abs(values))
    total = int(ranks.sum())
    ways = np.zeros(total + 1)
    ways[0] = 1
    for rank in ranks:
        ways[rank:] = ways[rank:] + ways[: total + 1 - rank]
        ways /= 2
    positive = int(ranks[values > 0].sum())
    low = min(positive, total - positive)
    return float(min(1.0, 2 * ways[: low + 1].sum()))


def _double_ranks(values: Floats) -> npt.NDArray[np.int64]:
    """Return twice the mid-rank of every value, a whole number [n]."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    ranks: npt.NDArray[np.int64] = (2 * below + equal + 1).astype(np.int64)
    return ranks


def centre(logs: Sequence[float]) -> float:
    """Return the Hodges-Lehmann estimate: the median of the means of all pairs [n (n + 1) / 2].

    It belongs to the signed-rank test, and a launch that was disturbed does not move it far
    (Hodges & Lehmann, Annals of Mathematical Statistics 34, 1963).
    """
    return float(_centres(np.asarray([logs], dtype=np.float64))[0])


def _centres(samples: Floats) -> Floats:
    """Return the estimate of each sample [m, n] -> [m]."""
    first, second = np.triu_indices(samples.shape[1])
    centres: Floats = np.median((samples[:, first] + samples[:, second]) / 2, axis=1)
    return centres


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the given order."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = largest
    return adjusted


def rounds_needed(cells: int, level: float) -> int:
    """Return with how many rounds the clearest difference in one of the cells is found at all."""
    return math.ceil(1 - math.log2(level / max(cells, 1)))


def interval(sessions: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the 95 % interval of the centre of log ratios, by the hierarchical bootstrap.

    Sessions are drawn with replacement, then rounds within each (Kalibera & Jones 2013, section 5;
    Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). One session
    leaves the rounds.

    Args:
        sessions: log ratios of the rounds of each session, none empty.
    """
    rng = np.random.default_rng(_SEED)
    arrays = [np.asarray(session, dtype=np.float64) for session in sessions]
    if len(arrays) == 1:
        centres = _centres(rng.choice(arrays[0], (_DRAWS, len(arrays[0]))))
    else:
        picks = rng.integers(len(arrays), size=(_DRAWS, len(arrays)))
        centres = np.array([_redrawn(rng, [arrays[index] for index in pick]) for pick in picks])
    lo, hi = np.percentile(centres, _PERCENTILES)
    return float(lo), float(hi)


def _redrawn(rng: np.random.Generator, sessions: Sequence[Floats]) -> float:
    drawn = np.concatenate([rng.choice(one, len(one)) for one in sessions])
    return float(_centres(drawn[None, :])[0])


def noise_floor(sessions: Sequence[Sequence[float]]) -> float:
    """Return the largest |log ratio| that A/A rounds do not rule out; none counts below it.

    Args:
        sessions: log ratios of a build to itself, of the rounds of each session.
    """
    lo, hi = interval(sessions)
    return max(abs(lo), abs(hi))


def predicted(past: Sequence[float], new: float) -> tuple[float, float]:
    """Return the p-value of one more session like the past ones, and half its 95 % interval.

    The prediction interval of a normal sample (Hahn & Meeker, Statistical Intervals, 1991, section
    4.7): |new - mean| / (s sqrt(1 + 1/n)) against Student's t with n - 1 degrees of freedom. Of
    many launches' medians; heavy tails widen s and make it cautious.

    Args:
        past: median log throughput of each earlier session, two at least.
        new: that of the new one.
    """
    spread = stdev(past) * math.sqrt(1 + 1 / len(past))
    distance = abs(new - fmean(past))
    degrees = len(past) - 1
    half = spread * _quantile(degrees)
    if not spread:
        return (1.0 if not distance else 0.0), half
    return student_p(distance / spread, degrees), half


def student_p(t: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t; Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - inside)


@cache
def _quantile(degrees: int) -> float:
    """Return t with a two-sided p-value of 5 %, by bisection."""
    lo, hi = 0.0, 100.0
    while hi - lo > 1e-6:
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if student_p(middle, degrees) > 0.05 else (lo, middle)
    return hi
