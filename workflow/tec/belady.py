"""The fewest misses that any choice of victims can have on a trace, by NumPy alone.

Belady's policy keeps the experts whose next use is nearest. As in `tec.locality`, where the same is
compiled and counted at all capacities at once, a miss need not be kept: whoever needs an expert
once may use it from elsewhere. A policy that has to put every miss into a slot, as `lru` does, can
only have more misses, so that this bounds it too. The cache begins with the experts 0 to C - 1 in
its slots. Beyond the trace's last token nothing is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tec.routing_trace import RoutingTrace

Counts = NDArray[np.int64]


def belady_misses(trace: RoutingTrace, capacity: int) -> Counts:
    """Return the misses of each layer [layers] with `capacity` slots in each.

    Args:
        trace: of the tokens that count, and no others.
        capacity: slots per layer, from 1 on.
    """
    following = _next_uses(trace)
    next_use = _first_uses(trace)
    held = np.zeros((trace.n_layers, trace.n_expert), np.bool_)
    held[:, :capacity] = True
    misses = np.zeros(trace.n_layers, np.int64)
    for chosen, later in zip(trace.selections, following, strict=True):
        misses += (~np.take_along_axis(held, chosen, axis=1)).sum(axis=1)
        np.put_along_axis(held, chosen, values=True, axis=1)
        np.put_along_axis(next_use, chosen, later, axis=1)
        farthest_last = np.argsort(np.where(held, next_use, trace.n_tokens + 1), axis=1)
        np.put_along_axis(held, farthest_last[:, capacity:], values=False, axis=1)
    return misses


def _first_uses(trace: RoutingTrace) -> NDArray[np.int32]:
    """Return the first token that selects each expert [layers, n_expert], n_tokens for none."""
    first = np.full((trace.n_layers, trace.n_expert), trace.n_tokens, np.int32)
    for token in range(trace.n_tokens - 1, -1, -1):
        np.put_along_axis(first, trace.selections[token], np.int32(token), axis=1)
    return first


def _next_uses(trace: RoutingTrace) -> NDArray[np.int32]:
    """Return the next token that selects a selection's expert again [tokens, layers, K]."""
    following = np.empty(trace.selections.shape, np.int32)
    upcoming = np.full((trace.n_layers, trace.n_expert), trace.n_tokens, np.int32)
    for token in range(trace.n_tokens - 1, -1, -1):
        chosen = trace.selections[token]
        following[token] = np.take_along_axis(upcoming, chosen, axis=1)
        np.put_along_axis(upcoming, chosen, np.int32(token), axis=1)
    return following
