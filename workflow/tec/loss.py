"""What keeps a cached arm from its bound, from the times and misses of single tokens.

The bound of a token is the resident model's time for it + bytes missed / copy bandwidth. Time above
it is divided by a line fitted to steady-state tokens, over the arms of a row together:

    t - t_resident = hit + fill * bytes missed

where `hit` is what the cached graph costs when every expert is in its slot, and `fill` what a
missed byte really takes. The resident model's time is that of the same token, so that what grows
with the context does not count as a cost of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tec.stats import COLD_STEPS, Floats, steady_slice

_NORMAL_95 = 1.959964
"""Standard errors on either side of a 95 % interval."""
_FEWEST_POINTS = 3
_REBUILT = 1.5
"""Times its median that the resident model takes for a token at which its graph is built anew."""


@dataclass(frozen=True)
class Estimate:
    """A coefficient with its 95 % interval."""

    value: float
    lo: float
    hi: float

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate in another unit."""
        return Estimate(self.value * factor, self.lo * factor, self.hi * factor)


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x; a slope is missing where x is 0 throughout."""

    intercept: Estimate
    slope: Estimate | None


@dataclass(frozen=True)
class Tokens:
    """The decode steps of an arm's processes; arrays [n_process, n_step]."""

    ns: Floats
    missed_bytes: Floats

    @property
    def mean_ns(self) -> Floats:
        """Time of each step, mean over processes [n_step]."""
        return np.asarray(self.ns.mean(axis=0))


@dataclass(frozen=True)
class Loss:
    """Nanoseconds per token above the bound, over all decode steps; the parts sum to the whole.

    Noise can make a part negative.
    """

    total: float
    hit: float
    """What the cached graph costs without a miss, after the cold start."""
    fill: float
    """What missed bytes take beyond the measured copy bandwidth, after the cold start."""
    cold: float
    """All that the first steps of a process take beyond their bound."""
    rest: float
    """What the line does not say."""


def fit_line(x: Floats, y: Floats) -> Line | None:
    """Return the least-squares line through points; None where they do not determine one.

    Intervals are the normal ones of White's heteroskedasticity-consistent covariance (White,
    Econometrica 48, 1980): tokens with many misses vary more. They take tokens as independent.

    Args:
        x: of each point [n].
        y: of each point [n].
    """
    if len(x) < _FEWEST_POINTS or (np.ptp(x) == 0 and x[0] != 0):
        return None
    design = np.ones((len(x), 1)) if np.ptp(x) == 0 else np.column_stack([np.ones_like(x), x])
    scale = np.maximum(np.abs(design).max(axis=0), 1)  # bytes are large numbers
    scaled = design / scale
    inverse = np.linalg.inv(scaled.T @ scaled)
    solution = inverse @ scaled.T @ y
    residual = y - scaled @ solution
    covariance = inverse @ (scaled.T * residual**2) @ scaled @ inverse
    errors = _NORMAL_95 * np.sqrt(np.diag(covariance)) / scale
    found = [
        Estimate(float(value), float(value - error), float(value + error))
        for value, error in zip(solution / scale, errors, strict=True)
    ]
    return Line(found[0], found[1] if len(found) > 1 else None)


def fit_arms(arms: Sequence[Tokens], resident_ns: Floats | None) -> Line | None:
    """Return the line of time, in ns, on bytes missed over the steady-state steps of some arms.

    Left out are the steps at which the resident model's graph is built anew, as it is where the
    context outgrows its padding: what that costs with a cache is no cost of every token.

    Args:
        arms: with the same steps.
        resident_ns: the resident model's time of each step [n_step], which is taken off; without it
            the intercept is the whole time of a token that misses nothing.
    """
    steps = np.arange(arms[0].ns.shape[1])[steady_slice(arms[0].ns.shape[1])]
    base = np.zeros(len(steps))
    if resident_ns is not None:
        steps = steps[resident_ns[steps] <= _REBUILT * np.median(resident_ns[steps])]
        base = resident_ns[steps]
    return fit_line(
        np.concatenate([arm.missed_bytes[:, steps].ravel() for arm in arms]),
        np.concatenate([(arm.ns[:, steps] - base).ravel() for arm in arms]),
    )


def divide(arm: Tokens, resident_ns: Floats, bandwidth: float, line: Line) -> Loss:
    """Return an arm's time above its bound and the parts of it.

    Args:
        arm: the cached arm.
        resident_ns: the resident model's time of each step [n_step].
        bandwidth: measured, from host memory to the device, in bytes per second.
        line: the row's, from `fit_arms` with the same `resident_ns`.
    """
    copied = arm.missed_bytes.mean(axis=0)
    above = arm.mean_ns - resident_ns - copied / bandwidth * 1e9
    n_steps = len(above)
    warm = slice(min(COLD_STEPS, n_steps), n_steps)
    slower = line.slope.value - 1e9 / bandwidth if line.slope else 0.0
    total = float(above.mean())
    hit = line.intercept.value * (n_steps - warm.start) / n_steps
    fill = slower * float(copied[warm].sum()) / n_steps
    cold = float(above[: warm.start].sum()) / n_steps
    return Loss(total, hit, fill, cold, total - hit - fill - cold)
