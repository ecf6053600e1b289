"""Statistics of repeated runs: paired ratios with bootstrap intervals, cold start, steady state.

A ratio compares two arms round by round (processes of one round ran next to each other), so slow
drifts of the machine cancel. The estimate is the geometric mean of the rounds' ratios; its interval
is the 95 % percentile bootstrap over rounds, of the mean log ratio (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). With few rounds such an interval is too narrow:
the number of rounds always stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 20_000
COLD_STEPS = 16
"""Decode steps of a fresh process that count as cold start."""

_SEED = 20260101
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """An estimate over `n` rounds; without an interval when there is only one round."""

    value: float
    lo: float | None
    hi: float | None
    n: int


@dataclass(frozen=True)
class LatencyCurve:
    """Time per decode step of a process, over processes; arrays [n_step], in milliseconds."""

    step: npt.NDArray[np.int64]
    median_ms: Floats
    lo_ms: Floats
    """Smallest over the processes."""
    hi_ms: Floats
    """Largest over the processes."""


def paired_ratio(numerator: Mapping[int, float], denominator: Mapping[int, float]) -> Interval:
    """Return the geometric mean of numerator / denominator over the rounds both have.

    Args:
        numerator: value by round, positive.
        denominator: value by round, positive.

    Raises:
        ValueError: no round in common.
    """
    rounds = sorted(numerator.keys() & denominator.keys())
    if not rounds:
        raise ValueError("the arms have no round in common")
    logs = np.log([numerator[r] / denominator[r] for r in rounds])
    value = float(np.exp(logs.mean()))
    if len(rounds) == 1:
        return Interval(value, None, None, 1)
    draws = np.random.default_rng(_SEED).integers(len(logs), size=(RESAMPLES, len(logs)))
    lo, hi = np.exp(np.percentile(logs[draws].mean(axis=1), _PERCENTILES))
    return Interval(value, float(lo), float(hi), len(rounds))


def decode_steps(result: Mapping[str, Any], what: str) -> list[int]:
    """Return a value of every decode step of an expert-bench result, prompts in order [n_step].

    A prompt's first token comes from the prompt's own logits and is no decode step, unless the
    tokens are given (`--forced`): then every one is decoded.

    Args:
        result: one line of the tool.
        what: the key of the values: `token_ns`, `hits` or `misses`.
    """
    first = 0 if result.get("forced") else 1
    return [value for prompt in result["prompts"] for value in prompt[what][first:]]


def decode_ns(result: Mapping[str, Any]) -> Floats:
    """Return the time of every decode step of an expert-bench result, prompts in order [n_step]."""
    return np.asarray(decode_steps(result, "token_ns"), dtype=np.float64)


def steady_slice(n_steps: int) -> slice:
    """Return the decode steps of a process that count as steady state: the second half."""
    return slice(n_steps // 2, n_steps)


def cold_tps(result: Mapping[str, Any]) -> float:
    """Return tokens per second over the first decode steps of a process."""
    return _tps(decode_ns(result)[:COLD_STEPS])


def steady_tps(result: Mapping[str, Any]) -> float:
    """Return tokens per second over the second half of a process."""
    steps = decode_ns(result)
    return _tps(steps[steady_slice(len(steps))])


def latency_curve(results: Sequence[Mapping[str, Any]]) -> LatencyCurve:
    """Return the time of each decode step over the fresh processes of one arm.

    Args:
        results: expert-bench results of one arm with the same prompts.
    """
    times = np.stack([decode_ns(result) for result in results]) / 1e6
    return LatencyCurve(
        step=np.arange(times.shape[1]),
        median_ms=np.median(times, axis=0),
        lo_ms=times.min(axis=0),
        hi_ms=times.max(axis=0),
    )


def _tps(steps_ns: Floats) -> float:
    return float(len(steps_ns) / steps_ns.sum() * 1e9)
