"""What a pin list is worth: hit rates of pinned experts beside those of LRU, on any routing.

    pins        C pinned experts, chosen once: frequency alone
    lru         C slots of which the least recently used expert goes
    pins+lru    P pinned experts and LRU in the other C - P slots, P as the programs choose it

`pins` is a bound for study, not a mode of the programs: what misses must have a slot there. The
other two are what the programs count, hit by hit. Slots that are not pinned begin, as there, with
the experts that come next: without a list 0, 1, ..., with one those it lists next, then the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tec import locality_kernels as kernels
from tec.locality import stack_distances
from tec.pin_list import PinList
from tec.routing_trace import RoutingTrace

Policy = Literal["pins", "lru", "pins+lru"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

SHARES = (0.12, 0.25, 0.5, 0.75)
"""Capacities that are compared, as shares of all experts."""

_Distances = NDArray[np.int16]


@dataclass(frozen=True)
class HitRate:
    """One policy at one capacity."""

    policy: Policy
    capacity: int
    pinned: int
    rate: float


def capacities(n_expert: int, top_k: int) -> list[int]:
    """Return the capacities at `SHARES` that serve a token."""
    return sorted({max(top_k, round(share * n_expert)) for share in SHARES})


def default_pinned(capacity: int, top_k: int) -> int:
    """Return how many slots the programs pin where nobody says: half, but K are left for misses."""
    return min(capacity // 2, capacity - top_k)


def hit_rates(
    trace: RoutingTrace, pins: PinList, layers: Sequence[int], at: Sequence[int]
) -> list[HitRate]:
    """Return the hit rates of every policy.

    Args:
        trace: the routing that is served.
        pins: the list, whatever it was made from.
        layers: the model layer of each layer of the trace.
        at: capacities, each at least K.
    """
    lru = stack_distances(trace, "lru")
    pinned = pins_distances(trace, pins, layers)
    found = []
    for capacity in at:
        some = default_pinned(capacity, trace.top_k)
        both = pins_and_lru_distances(trace, pins, layers, some)
        found += [
            HitRate("pins", capacity, capacity, _rate(pinned, capacity)),
            HitRate("lru", capacity, 0, _rate(lru, capacity)),
            HitRate("pins+lru", capacity, some, _rate(both, capacity)),
        ]
    return found


def _rate(distances: _Distances, capacity: int) -> float:
    return float((distances < capacity).mean())


def pins_distances(trace: RoutingTrace, pins: PinList, layers: Sequence[int]) -> _Distances:
    """Return for every selection the most pinned slots with which it is a miss, as a static set.

    Returns:
        Distances [tokens, layers, K]: a hit exactly where the distance is below the capacity.
    """
    places = _places(trace.n_expert, pins, layers)
    return places[np.arange(trace.n_layers)[:, None], trace.selections]


def pins_and_lru_distances(
    trace: RoutingTrace, pins: PinList, layers: Sequence[int], n_pinned: int
) -> _Distances:
    """Return the same with `n_pinned` slots pinned, fewer where a list is shorter, and LRU beside.

    The selections that are not pinned see an LRU cache of their own. In its sequence a pinned
    selection is replaced by the one before it: to select again what was selected last changes the
    order of no stack, so steps keep K selections and Mattson's pass serves (`tec.locality`).

    Returns:
        Distances [tokens, layers, K], of all slots: valid for capacities of `n_pinned` + K and up.
    """
    places = _places(trace.n_expert, pins, layers)
    distances = np.zeros((trace.n_layers, trace.n_tokens, trace.top_k), np.int16)
    for index, layer in enumerate(layers):
        fixed = min(n_pinned, len(pins.layers[layer]))
        ids = places[index][trace.selections[:, index]].astype(np.int32) - fixed
        free = ids >= 0  # in the order of the list pinned experts are before 0
        if not free.any():
            continue
        kernels.lru(_repeated(ids, free), trace.n_expert - fixed, distances[index])
        distances[index] = np.where(free, distances[index] + fixed, 0)
    return distances.transpose(1, 0, 2)


def _repeated(ids: kernels.Ids, free: NDArray[np.bool_]) -> kernels.Ids:
    """Return ids [tokens, K] with each that is not free replaced by the last free one before it.

    Before the first free one it is 0, the youngest of those that the slots begin with.
    """
    last = np.maximum.accumulate(np.where(free.ravel(), np.arange(free.size), -1))
    found: kernels.Ids = np.where(last >= 0, ids.ravel()[last], 0).astype(np.int32)
    return found.reshape(ids.shape)


def _places(n_expert: int, pins: PinList, layers: Sequence[int]) -> _Distances:
    """Return each expert's place [layers, n_expert] in its list; the unlisted follow by id."""
    places = np.empty((len(layers), n_expert), np.int16)
    for index, layer in enumerate(layers):
        listed = pins.layers[layer]
        rest = sorted(set(range(n_expert)).difference(listed))
        places[index, [*listed, *rest]] = np.arange(n_expert)
    return places
