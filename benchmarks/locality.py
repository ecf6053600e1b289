"""Time the locality analysis against the number of selections: `python benchmarks/locality.py`.

Everything that `tec.locality.analyse` gives: overlap with 1 to 64 tokens, reuse distances, and the
hits of four policies at all capacities. One process, one thread: elapsed and processor seconds, and
nanoseconds of the processor per selection. Compiling is shown apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tec.locality import analyse
from tec.routing_trace import RoutingTrace

SELECTIONS = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
SHAPES = ((48, 128, 8), (48, 512, 10))
"""MoE layers, experts, K: of Qwen3-30B-A3B and of Qwen3-Coder-Next."""

KEPT = 0.5
"""Chance that a selection of the local trace repeats one of the token before."""
SKEW = 0.8
"""Zipf exponent of its other selections."""

_Draw = Callable[[int, int, NDArray[np.float64], float, int], NDArray[np.int32]]


def main() -> None:
    """Print a line per shape, kind of trace and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SELECTIONS[-1], help="selections at most")
    largest = parser.parse_args().largest
    start = time.perf_counter()
    analyse(make_trace("local", 48 * 128 * 8, *SHAPES[0]))
    print(f"compiling or loading the kernels: {time.perf_counter() - start:.1f} s\n")
    print(f"{'trace':<8}{'N':>5}{'K':>4}{'tokens':>8}{'selections':>12}{'overlap 8':>11}", end="")
    print(f"{'LRU at N/2':>12}{'seconds':>9}{'CPU':>7}{'ns each':>9}")
    for shape in SHAPES:
        for kind in ("local", "uniform"):
            for size in SELECTIONS:
                if size <= largest:
                    _time(kind, size, *shape)


def _time(kind: str, size: int, n_layers: int, n_expert: int, top_k: int) -> None:
    trace = make_trace(kind, size, n_layers, n_expert, top_k)
    start, start_cpu = time.perf_counter(), time.process_time()
    found = analyse(trace)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(
        f"{kind:<8}{n_expert:>5}{top_k:>4}{trace.n_tokens:>8}{found.n_selections:>12,}"
        f"{found.overlap()[7]:>11.1%}{found.hit_rate('lru', n_expert // 2):>12.1%}"
        f"{seconds:>9.2f}{cpu:>7.2f}{cpu / found.n_selections * 1e9:>9.0f}",
        flush=True,
    )


def make_trace(kind: str, size: int, n_layers: int, n_expert: int, top_k: int) -> RoutingTrace:
    """Return about `size` selections: `uniform`, or `local`, skewed and with repeats."""
    local = kind == "local"
    n_tokens = round(size / n_layers / top_k)
    weights = np.arange(1, n_expert + 1) ** (-SKEW if local else 0.0)
    cumulative = np.cumsum(weights / weights.sum())
    selections = np.empty((n_tokens, n_layers, top_k), np.int32)
    for layer in range(n_layers):
        names = np.random.default_rng(layer).permutation(n_expert).astype(np.int32)
        drawn = _draw(n_tokens, top_k, cumulative, KEPT if local else 0.0, layer)
        selections[:, layer] = names[drawn]
    return RoutingTrace(selections, n_expert)


def _select(
    n_tokens: int, top_k: int, cumulative: NDArray[np.float64], kept: float, seed: int
) -> NDArray[np.int32]:
    """Return the selections [tokens, K] of one layer."""
    np.random.seed(seed)
    drawn = np.empty((n_tokens, top_k), np.int32)
    taken = np.full(len(cumulative), -1, np.int32)
    for t in range(n_tokens):
        count = 0
        for k in range(top_k):
            if t > 0 and np.random.random() < kept:
                drawn[t, count] = drawn[t - 1, k]
                taken[drawn[t, count]] = t
                count += 1
        while count < top_k:
            place = np.searchsorted(cumulative, np.random.random())
            expert = min(place, len(cumulative) - 1)
            if taken[expert] != t:
                taken[expert] = t
                drawn[t, count] = expert
                count += 1
    return drawn


_draw: _Draw = njit(_select)


if __name__ == "__main__":
    main()
