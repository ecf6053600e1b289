"""Stack distances of every cache policy, compiled.

A policy that is a stack algorithm (Mattson, Gecsei, Slutz and Traiger, 1970) orders the experts of
a layer before every step so that a cache of C slots holds the first C of them, whatever C is. The
place of a selected expert in that order, from 0, is its distance: it is a hit exactly where the
distance is below C. One pass gives the hits of all capacities.

Every kernel takes one layer's selections, `ids` [tokens, K], different within a token, and fills
`distances` [tokens, K] with the places at the start of the step. Before the first step the order
is 0, 1, ..., n_expert - 1, which prewarms C slots with the experts 0 to C - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Distances = NDArray[np.int16]
Order = NDArray[np.uint32]
"""Experts by place; unsigned, because numba then leaves out the check for negative indices."""
Places = NDArray[np.int32]
"""Places by expert."""
Keys = NDArray[np.int64]
"""What each expert is worth to the policy."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """Compile on the first call; keep the machine code where there is a folder to keep it in."""
    try:
        compiled: Any = njit(cache=True)(function)
    except RuntimeError:  # numba's way to say that no folder can be written
        compiled = njit(function)
    return cast("_Function", compiled)


@_compiled
def _sink(order: Order, place: Places, key: Keys, carried: int, first: int, last: int) -> None:
    """Put `carried` in at `first` and let the least worth keeping sink to `last`.

    Mattson's update: a cache of i + 1 slots gives up the lowest key among those it holds.
    """
    lowest = key[carried]
    for i in range(first, last):
        resident = order[i]
        worth = key[resident]
        if worth < lowest:
            order[i] = carried
            place[carried] = i
            carried = resident
            lowest = worth
    order[last] = carried
    place[carried] = last


@_compiled
def _look_up(ids: Ids, t: int, place: Places, distances: Distances, nearest: Places) -> None:
    """Write the places of a step's experts, and its experts from the top of the order down."""
    for k in range(ids.shape[1]):
        expert = ids[t, k]
        distances[t, k] = place[expert]
        i = k
        while i > 0 and place[nearest[i - 1]] > place[expert]:
            nearest[i] = nearest[i - 1]
            i -= 1
        nearest[i] = expert


@_compiled
def lru(ids: Ids, n_expert: int, distances: Distances) -> None:
    """Least recently used out; within a step a later selection is the more recent.

    The distance is the number of experts used since: counting them takes a vector instruction for
    several, which is faster than keeping the order.
    """
    last_use = -np.arange(n_expert).astype(np.int32)
    now = 0
    for t in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            used = last_use[ids[t, k]]
            since = np.int32(0)
            for expert in range(n_expert):
                since += np.int32(last_use[expert] > used)
            distances[t, k] = since
        for k in range(ids.shape[1]):
            now += 1
            last_use[ids[t, k]] = now


@_compiled
def lfu(ids: Ids, n_expert: int, distances: Distances) -> None:
    """Least frequently used since the start out, the less recent of equals.

    As with `lru` a step's experts are all in slots when it is computed: its misses take the places
    of others whatever they are worth.
    """
    order, place, key = _prewarmed(n_expert)
    nearest = np.empty(ids.shape[1], np.int32)
    uses = np.zeros(n_expert, np.int64)
    for t in range(ids.shape[0]):
        _look_up(ids, t, place, distances, nearest)
        for k in range(ids.shape[1]):
            expert = ids[t, k]
            uses[expert] += 1
            key[expert] = (uses[expert] << 40) + t * ids.shape[1] + k
        for k in range(ids.shape[1]):
            expert = nearest[k]
            if place[expert] > k:
                _sink(order, place, key, order[k], k + 1, place[expert])
                order[k] = expert
                place[expert] = k


@_compiled
def belady(ids: Ids, n_expert: int, distances: Distances) -> None:
    """The expert whose next use is farthest out, which may be the one just selected."""
    order, place, key = _prewarmed(n_expert)
    nearest = np.empty(ids.shape[1], np.int32)
    next_use = _next_uses(ids, n_expert, key)
    for t in range(ids.shape[0]):
        _look_up(ids, t, place, distances, nearest)
        for k in range(ids.shape[1]):
            key[ids[t, k]] = -next_use[t, k]
        for k in range(ids.shape[1]):
            expert = nearest[k]
            _sink(order, place, key, expert, 0, place[expert])


@_compiled
def _next_uses(ids: Ids, n_expert: int, key: Keys) -> Ids:
    n_tokens, top_k = ids.shape
    following = np.full(n_expert, n_tokens, np.int32)
    result = np.empty((n_tokens, top_k), np.int32)
    for t in range(n_tokens - 1, -1, -1):
        for k in range(top_k):
            result[t, k] = following[ids[t, k]]
            following[ids[t, k]] = t
    for expert in range(n_expert):
        key[expert] = -following[expert]
    return result


@_compiled
def _prewarmed(n_expert: int) -> tuple[Order, Places, Keys]:
    order = np.arange(n_expert, dtype=np.uint32)
    place = np.arange(n_expert, dtype=np.int32)
    return order, place, -place.astype(np.int64)


@_compiled
def hot(ids: Ids, n_expert: int, interval: int, distances: Distances) -> None:
    """The most used of the last `interval` tokens in, chosen again after each `interval`.

    Of equals the one that was before the other stays before it, so that nothing is copied in vain.
    A miss changes nothing until then.
    """
    order, place, _ = _prewarmed(n_expert)
    uses = np.zeros(n_expert, np.int64)
    for t in range(ids.shape[0]):
        if t > 0 and t % interval == 0:
            order = order[np.argsort(-uses[order], kind="mergesort")]
            for i in range(n_expert):
                place[order[i]] = i
            uses[:] = 0
        for k in range(ids.shape[1]):
            distances[t, k] = place[ids[t, k]]
            uses[ids[t, k]] += 1


@_compiled
def reuse(ids: Ids, n_expert: int, distances: Ids) -> None:
    """Tokens since the expert's last use in the layer; 0 for a first use."""
    last_use = np.full(n_expert, -1, np.int32)
    for t in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            expert = ids[t, k]
            distances[t, k] = t - last_use[expert] if last_use[expert] >= 0 else 0
            last_use[expert] = t
