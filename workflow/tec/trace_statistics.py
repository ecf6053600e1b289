"""The reuse that a trace has, by NumPy alone.

`tec.locality` has more of it, and faster, where its compiler is installed; a test holds the two
against each other. A cache begins with the experts 0 to C - 1 in its slots, as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tec.routing_trace import RoutingTrace

SHARES = (0.125, 0.25, 0.375, 0.4, 0.5, 0.625, 0.75, 1.0)
"""Capacities whose hit rates are kept, as shares of all experts."""
WINDOW = 8
"""Tokens before a token in which its experts are looked for."""


def statistics(trace: RoutingTrace) -> dict[str, Any]:
    """Return a trace's size and its reuse.

    Returns:
        tokens, layers, n_expert, top_k: the size.
        next_token, within_8: share of the selections whose expert the last token, or one of the
            last 8, selected too; `overlap_8` the same without the first 8 tokens, and
            `overlap_8_uniform` what uniformly random routing would have.
        median_reuse: median tokens between two uses of an expert, first uses apart.
        first_uses: share of the selections whose expert the layer had never used before.
        lru: for each capacity its slots, the LRU hit rate, and that of uniformly random routing.
    """
    places, ages = _places_and_ages(trace)
    used_before = ages > 0
    return {
        "tokens": trace.n_tokens,
        "layers": trace.n_layers,
        "n_expert": trace.n_expert,
        "top_k": trace.top_k,
        "next_token": float((ages == 1).mean()),
        "within_8": float((used_before & (ages <= WINDOW)).mean()),
        "overlap_8": _overlap(ages),
        "overlap_8_uniform": 1 - (1 - trace.top_k / trace.n_expert) ** WINDOW,
        "median_reuse": int(np.quantile(ages[used_before], 0.5, method="inverted_cdf"))
        if used_before.any()
        else None,
        "first_uses": float(1 - used_before.mean()),
        "lru": [_hit_rate(share, trace, places) for share in SHARES],
    }


def _hit_rate(share: float, trace: RoutingTrace, places: NDArray[np.int32]) -> dict[str, float]:
    slots = max(trace.top_k, round(share * trace.n_expert))
    return {
        "share": share,
        "slots": slots,
        "hit_rate": float((places < slots).mean()),
        "uniform": slots / trace.n_expert,
    }


def _overlap(ages: NDArray[np.int32]) -> float | None:
    """Return the overlap with the last 8 tokens; None where no token has so many before it."""
    late = ages[WINDOW:]
    return float(((late > 0) & (late <= WINDOW)).mean()) if late.size else None


def _places_and_ages(trace: RoutingTrace) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return, for each selection, its place on the LRU stack and the tokens since its last use.

    Returns:
        Two arrays [tokens, layers, K]; a place is the number of experts used since, at the start of
        the step, and an age is 0 where the expert was never used before.
    """
    places = np.empty(trace.selections.shape, np.int32)
    ages = np.empty(trace.selections.shape, np.int32)
    last = np.tile(-np.arange(trace.n_expert, dtype=np.int32), (trace.n_layers, 1))
    for token, chosen in enumerate(trace.selections):
        used = np.take_along_axis(last, chosen, axis=1)
        places[token] = (last[:, None, :] > used[:, :, None]).sum(axis=2)
        then = (used - 1) // trace.top_k  # uses are counted from 1, K in a token
        ages[token] = np.where(used > 0, token - then, 0)
        now = token * trace.top_k + np.arange(1, trace.top_k + 1, dtype=np.int32)
        np.put_along_axis(last, chosen, np.broadcast_to(now, chosen.shape), axis=1)
    return places, ages
