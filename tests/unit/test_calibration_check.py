"""Hits of pins, and of pins beside LRU, against one cache simulated statement by statement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import local_trace, traces
from tec.calibration import choose_pins
from tec.calibration_check import (
    POLICIES,
    capacities,
    default_pinned,
    hit_rates,
    pins_and_lru_distances,
    pins_distances,
)
from tec.locality import stack_distances
from tec.pin_list import PinList
from tec.routing_trace import RoutingTrace
from unit.test_expert_cache_property import Reference

slow = settings(deadline=None, max_examples=150)


def simulated_hits(
    trace: RoutingTrace, layer: int, listed: tuple[int, ...], pinned: int, capacity: int
) -> list[int]:
    """Return the hits of every token in a cache whose slots begin as the list says."""
    cache = Reference(trace.n_expert, capacity, list(listed[:pinned]))
    rest = [expert for expert in range(trace.n_expert) if expert not in listed]
    cache.slots = [*listed, *rest][:capacity]
    hits = []
    for ids in trace.selections[:, layer].tolist():
        before = cache.hits
        cache.step(ids)
        hits.append(cache.hits - before)
    return hits


@slow
@given(trace=traces(), data=st.data())
def test_hits_of_every_token_beside_any_number_of_pins_are_those_of_one_cache(
    trace: RoutingTrace, data: st.DataObject
) -> None:
    experts = st.integers(0, trace.n_expert - 1)
    lists = data.draw(st.lists(st.lists(experts, unique=True), min_size=2, max_size=2))
    pins = PinList(trace.n_expert, tuple(map(tuple, lists)))
    for pinned in range(trace.n_expert - trace.top_k + 1):
        found = pins_and_lru_distances(trace, pins, range(trace.n_layers), pinned)
        for layer in range(trace.n_layers):
            for capacity in range(pinned + trace.top_k, trace.n_expert + 1):
                hits = (found[:, layer] < capacity).sum(axis=1).tolist()
                assert hits == simulated_hits(trace, layer, pins.layers[layer], pinned, capacity)


@slow
@given(trace=traces(), capacity=st.integers(1, 9))
def test_a_static_set_hits_what_is_in_it(trace: RoutingTrace, capacity: int) -> None:
    pins = choose_pins(trace, tuple(range(trace.n_layers)), trace.n_layers)
    hits = pins_distances(trace, pins, range(trace.n_layers)) < capacity
    for layer, listed in enumerate(pins.layers):
        chosen = listed[:capacity]
        assert hits[:, layer][np.isin(trace.selections[:, layer], chosen)].all()
        if len(listed) >= capacity:
            assert hits[:, layer].sum() == np.isin(trace.selections[:, layer], chosen).sum()


def test_a_list_finds_its_layers_by_their_number_in_the_model() -> None:
    trace = RoutingTrace(np.array([[[2], [0]]] * 3, dtype=np.int32), 4)
    pins = PinList(4, ((), (2,), (), (0,)))
    assert (pins_distances(trace, pins, [1, 3]) < 1).all()
    assert (pins_and_lru_distances(trace, pins, [1, 3], 1) < 2).all()
    assert not (pins_distances(trace, PinList(4, ((), (0,), (), (2,))), [1, 3]) < 1).any()


def test_without_pins_the_mixture_is_lru_that_begins_as_the_list_says() -> None:
    trace = local_trace()
    as_numbered = PinList(16, tuple(tuple(range(16)) for _ in range(3)))
    found = pins_and_lru_distances(trace, as_numbered, range(3), 0)
    assert (found == stack_distances(trace, "lru")).all()


def test_rates_are_those_of_the_distances_with_the_programs_number_of_pins() -> None:
    trace = local_trace()
    pins = choose_pins(trace, (0, 1, 2), 3)
    found = {(rate.policy, rate.capacity): rate for rate in hit_rates(trace, pins, (0, 1, 2), [8])}
    assert set(found) == {(policy, 8) for policy in POLICIES}
    assert [found[policy, 8].pinned for policy in POLICIES] == [8, 0, 4]
    uses = [np.bincount(trace.selections[:, layer].ravel(), minlength=16) for layer in range(3)]
    most = sum(int(np.sort(counts)[-8:].sum()) for counts in uses)
    assert found["pins", 8].rate == pytest.approx(most / trace.selections.size)
    lru = float((stack_distances(trace, "lru") < 8).mean())
    assert found["lru", 8].rate == pytest.approx(lru)


def test_capacities_serve_a_token_and_pins_leave_room_for_one() -> None:
    assert capacities(64, 8) == [8, 16, 32, 48]
    assert capacities(512, 10) == [61, 128, 256, 384]
    assert capacities(8, 2) == [2, 4, 6]
    assert [default_pinned(capacity, 8) for capacity in (8, 12, 16, 48)] == [0, 4, 8, 24]
