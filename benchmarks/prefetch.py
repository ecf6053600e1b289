"""An LRU cache of experts into which predicted experts are copied early, and the time it takes.

Layer after layer, token after token: attention and router take `attention_us`; then misses are
copied one after the other, `copy_us` each, over a link that has one queue; then the experts take
`experts_us`. Predictions for a layer are issued in the layer before, when its router is done or,
`early`, when its attention begins; those not resident join the queue. A copy that has begun is
never stopped. `urgent` says what happens when the layer's router has spoken: its misses go before
all that waits, and waiting copies that turn out wrong are dropped. Otherwise the queue is served
first in, first out, wrong copies and all, as a graph of kernels with fixed order would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ids = NDArray[np.int32]

Counts = NDArray[np.int64]
Ends = NDArray[np.float64]
"""When copies end."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_LOW = -(1 << 40)
"""Recency below that of any use."""


@dataclass(frozen=True)
class Times:
    """Microseconds of one layer of one token, and of copying one expert."""

    attention_us: float
    experts_us: float
    copy_us: float


@dataclass(frozen=True)
class Policy:
    """What is done with a prediction."""

    early: bool = False
    recent: bool = False
    """Predicted experts enter as the most recently used, not as the least."""
    urgent: bool = True


@dataclass(frozen=True)
class Outcome:
    """Means over the layers and tokens that were counted."""

    missed: float
    """Experts that were not there when the router spoke, per layer and token."""
    brought: float
    """Experts that a prediction had brought, or was bringing, and that were needed."""
    vain: float
    """Experts that were copied and not needed."""
    layer_us: float

    @property
    def covered(self) -> float:
        """Share of the needed copies that a prediction had begun."""
        needed = self.missed + self.brought
        return self.brought / needed if needed else 0.0


def simulate(
    chosen: Ids,
    predicted: Ids,
    n_expert: int,
    capacity: int,
    policy: Policy,
    times: Times,
    first: int,
) -> Outcome:
    """Run a trace through the cache.

    Args:
        chosen: experts that the routers select [tokens, layers, K].
        predicted: experts predicted, the likeliest first [tokens, layers, m]; -1 for none. Those of
            the first layer are issued in the last layer of the token before.
        n_expert: experts per layer.
        capacity: slots per layer, at least K and at least m.
        policy: what is done with a prediction.
        times: what things take.
        first: tokens that warm the cache and are not counted.
    """
    sums = _simulate(
        chosen,
        predicted,
        n_expert,
        capacity,
        policy.early,
        policy.recent,
        policy.urgent,
        times.attention_us,
        times.experts_us,
        times.copy_us,
        first,
    )
    count = (len(chosen) - first) * chosen.shape[1]
    return Outcome(*(float(value) / count for value in sums))


def _compiled(function: _Function) -> _Function:
    return cast("_Function", njit(function))


@_compiled
def _victim(recency: Counts, resident: NDArray[np.bool_], kept: Counts, mark: int) -> int:
    """Return the least recently used resident expert that does not carry the mark."""
    found = -1
    for expert in range(len(recency)):
        free = resident[expert] and kept[expert] != mark
        if free and (found < 0 or recency[expert] < recency[found]):
            found = expert
    return found


@_compiled
def _absent(predicted: Ids, resident: NDArray[np.bool_], wanted: Ids) -> int:
    """Fill `wanted` with the predicted experts that are not resident; return how many."""
    count = 0
    for i in range(len(predicted)):
        if predicted[i] >= 0 and not resident[predicted[i]]:
            wanted[count] = predicted[i]
            count += 1
    return count


@_compiled
def _serve(
    count: int, begun: int, issued: float, copy_us: float, until: float, busy: float, ends: Ends
) -> tuple[int, float]:
    """Begin the waiting copies whose turn comes before `until`; return how many have begun."""
    while begun < count and max(busy, issued) < until:
        busy = max(busy, issued) + copy_us
        ends[begun] = busy
        begun += 1
    return begun, busy


@_compiled
def _enter(
    brought: Ids,
    predicted: Ids,
    recency: Counts,
    resident: NDArray[np.bool_],
    newest: int,
    kept: Counts,
    mark: int,
) -> None:
    """Give slots to the experts brought; no predicted one leaves for them.

    There are at most as many predicted as slots.
    """
    for expert in predicted:
        if expert >= 0:
            kept[expert] = mark
    for i in range(len(brought)):
        resident[_victim(recency, resident, kept, mark)] = False
        resident[brought[i]] = True
        recency[brought[i]] = newest - i


@_compiled
def _needed(brought: Ids, ends: Ends, chosen: Ids, time: float) -> tuple[int, float]:
    """Return how many of the experts brought are chosen, and when the last of these is there."""
    count, ready = 0, time
    for i in range(len(brought)):
        for k in range(len(chosen)):
            if chosen[k] == brought[i]:
                count += 1
                ready = max(ready, ends[i])
    return count, ready


@_compiled
def _use(
    chosen: Ids,
    recency: Counts,
    resident: NDArray[np.bool_],
    now: int,
    kept: Counts,
    mark: int,
) -> int:
    """Use a step's experts, which brings in those that are absent; return how many were."""
    for expert in chosen:
        kept[expert] = mark
    missed = 0
    for i in range(len(chosen)):
        expert = chosen[i]
        if not resident[expert]:
            missed += 1
            resident[_victim(recency, resident, kept, mark)] = False
            resident[expert] = True
        recency[expert] = now + i
    return missed


@_compiled
def _simulate(
    chosen: Ids,
    predicted: Ids,
    n_expert: int,
    capacity: int,
    early: bool,
    recent: bool,
    urgent: bool,
    attention_us: float,
    experts_us: float,
    copy_us: float,
    first: int,
) -> tuple[float, float, float, float]:
    """Return the sums of misses, of experts brought and in vain, and the microseconds."""
    n_tokens, n_layers, top_k = chosen.shape
    most = predicted.shape[2]
    resident = np.zeros((n_layers, n_expert), np.bool_)
    resident[:, :capacity] = True
    recency = np.zeros((n_layers, n_expert), np.int64)
    recency[:] = -np.arange(n_expert)
    kept = np.zeros(n_expert, np.int64)
    wanted, following = np.empty(most, np.int32), np.empty(most, np.int32)
    ends, later_ends = np.empty(most), np.empty(most)
    count, begun, issued = 0, 0, 0.0
    time, busy, start = 0.0, 0.0, 0.0
    missed, right, vain = 0, 0, 0
    for step in range(n_tokens * n_layers):
        t, layer = step // n_layers, step % n_layers
        if step == first * n_layers:
            missed, right, vain, start = 0, 0, 0, time
        next_t, next_layer = (step + 1) // n_layers, (step + 1) % n_layers
        next_count, next_begun, next_issued = 0, 0, time if early else np.inf
        if next_t < n_tokens:
            next_count = _absent(predicted[next_t, next_layer], resident[next_layer], following)
        # attention and router, while the link works
        time += attention_us
        begun, busy = _serve(count, begun, issued, copy_us, time, busy, ends)
        if begun == count:
            next_begun, busy = _serve(next_count, 0, next_issued, copy_us, time, busy, later_ends)
        if not urgent:
            begun, busy = _serve(count, begun, issued, copy_us, np.inf, busy, ends)
            next_begun, busy = _serve(
                next_count, next_begun, next_issued, copy_us, np.inf, busy, later_ends
            )
        # the router has spoken
        brought = wanted[:begun]
        needed, ready = _needed(brought, ends, chosen[t, layer], time)
        now = (step + 1) * (most + top_k)
        newest = now - 1 if recent else _LOW - now
        slots, uses = resident[layer], recency[layer]
        if begun:
            _enter(brought, predicted[t, layer], uses, slots, newest, kept, 2 * step + 1)
        absent = _use(chosen[t, layer], uses, slots, now, kept, 2 * step + 2)
        if absent:
            busy = max(busy, time) + absent * copy_us
            ready = max(ready, busy)
        missed, right, vain = missed + absent, right + needed, vain + begun - needed
        if not early:
            next_issued = time
        time = ready + experts_us
        wanted, following = following, wanted
        ends, later_ends = later_ends, ends
        count, begun, issued = next_count, next_begun, next_issued
    return float(missed), float(right), float(vain), time - start
