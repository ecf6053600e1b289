"""Every policy against a slow simulation of one cache at a time, and what follows from them."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import combinations

import numba
import numpy as np
import pytest
from hypothesis import given, settings

from routing import local_trace, traces
from tec import locality_kernels as kernels
from tec.errors import TecError
from tec.locality import POLICIES, Policy, analyse, stack_distances, summarise
from tec.paths import ROOT
from tec.routing_trace import RoutingTrace
from unit.test_expert_cache_property import Reference

REBALANCE = 4
Steps = list[list[int]]

slow = settings(deadline=None, max_examples=150)


def simulate_lru(steps: Steps, n_expert: int, capacity: int) -> list[int]:
    reference = Reference(n_expert, capacity, [])
    hits = []
    for ids in steps:
        before = reference.hits
        reference.step(ids)
        hits.append(reference.hits - before)
    return hits


def simulate_lfu(steps: Steps, n_expert: int, capacity: int) -> list[int]:
    slots = set(range(capacity))
    uses = dict.fromkeys(range(n_expert), 0)
    last = {expert: -1 - expert for expert in range(n_expert)}
    clock = 0
    hits = []
    for ids in steps:
        hits.append(len(slots.intersection(ids)))
        for expert in ids:
            uses[expert] += 1
            last[expert] = clock = clock + 1
        for expert in set(ids) - slots:
            victim = min(slots - set(ids), key=lambda e: (uses[e], last[e]))
            slots = slots - {victim} | {expert}
    return hits


def simulate_hot(steps: Steps, n_expert: int, capacity: int) -> list[int]:
    order = list(range(n_expert))
    hits = []
    for t, ids in enumerate(steps):
        if t and t % REBALANCE == 0:
            recent = [expert for step in steps[t - REBALANCE : t] for expert in step]
            order.sort(key=lambda expert: -recent.count(expert))
        hits.append(len(set(order[:capacity]).intersection(ids)))
    return hits


def most_hits(steps: Steps, capacity: int) -> int:
    """Try every content of the cache after every step."""

    @cache
    def best(t: int, slots: frozenset[int]) -> int:
        if t == len(steps):
            return 0
        at_hand = slots | set(steps[t])
        after = combinations(sorted(at_hand), min(capacity, len(at_hand)))
        return len(slots.intersection(steps[t])) + max(best(t + 1, frozenset(s)) for s in after)

    return best(0, frozenset(range(capacity)))


def steps_of(trace: RoutingTrace, layer: int) -> Steps:
    steps: Steps = trace.selections[:, layer].tolist()
    return steps


@slow
@given(trace=traces())
@pytest.mark.parametrize(
    ("policy", "simulate"), [("lru", simulate_lru), ("lfu", simulate_lfu), ("hot", simulate_hot)]
)
def test_hits_of_every_token_at_every_capacity_are_those_of_one_cache(
    policy: Policy, simulate: type[object], trace: RoutingTrace
) -> None:
    distances = stack_distances(trace, policy, REBALANCE)
    for layer in range(trace.n_layers):
        for capacity in range(trace.top_k, trace.n_expert + 1):
            hits = (distances[:, layer] < capacity).sum(axis=1).tolist()
            assert hits == simulate(steps_of(trace, layer), trace.n_expert, capacity)  # type: ignore[call-arg]


@settings(deadline=None, max_examples=80)
@given(trace=traces(n_expert=5, tokens=7, top_k=2, layers=1))
def test_belady_is_the_most_that_any_choice_of_contents_gives(trace: RoutingTrace) -> None:
    hits = analyse(trace).hits["belady"][0]
    for capacity in range(1, trace.n_expert + 1):
        assert hits[capacity] == most_hits(steps_of(trace, 0), capacity)


@slow
@given(trace=traces(n_expert=12, tokens=120))
def test_belady_bounds_every_policy_at_every_capacity(trace: RoutingTrace) -> None:
    found = analyse(trace, REBALANCE)
    for policy in POLICIES:
        served = found.hits[policy][:, trace.top_k :]
        assert (served <= found.hits["belady"][:, trace.top_k :]).all()
        assert (np.diff(served, axis=1) >= 0).all()
        assert (served[:, -1] == trace.n_tokens * trace.top_k).all()


@slow
@given(trace=traces())
def test_overlap_and_reuse_are_what_their_words_say(trace: RoutingTrace) -> None:
    found = analyse(trace)
    overlap = found.layer_overlap()
    distances = []
    for layer in range(trace.n_layers):
        steps = steps_of(trace, layer)
        for window in (1, 2, 5, 64):
            shares = [
                len({e for e in steps[t] if any(e in step for step in steps[t - window : t])})
                for t in range(window, len(steps))
            ]
            expected = sum(shares) / (len(shares) * trace.top_k) if shares else math.nan
            assert overlap[layer, window - 1] == pytest.approx(expected, nan_ok=True)
        for t, ids in enumerate(steps):
            for expert in ids:
                before = [s for s in range(t) if expert in steps[s]]
                distances.append(t - before[-1] if before else 0)
    reused = sorted(d for d in distances if d)
    assert found.first_uses == pytest.approx(distances.count(0) / len(distances))
    assert found.median_reuse == (reused[(len(reused) - 1) // 2] if reused else None)
    for within in range(trace.n_tokens):
        share = sum(d <= within for d in reused) / len(distances)
        assert found.reuse()[within] == pytest.approx(share)


def test_uniform_overlap_is_what_random_selections_give() -> None:
    random = np.random.default_rng(5)
    selections = np.argsort(random.random((4000, 2, 16)), axis=2)[:, :, :3].astype(np.int32)
    found = analyse(RoutingTrace(selections, 16))
    assert found.overlap() == pytest.approx(found.uniform_overlap(), abs=0.01)
    assert found.uniform_overlap()[0] == pytest.approx(3 / 16)


def test_an_lru_cache_of_one_token_has_what_it_used_last() -> None:
    trace = RoutingTrace(np.array([[[0, 1]], [[2, 1]], [[2, 3]], [[3, 2]]], dtype=np.int32), 4)
    assert stack_distances(trace, "lru")[:, 0].tolist() == [[0, 1], [2, 0], [1, 3], [0, 1]]


def test_lfu_keeps_what_is_used_often_and_lru_what_is_used_last() -> None:
    """Expert 0 is used often, then not for a while."""
    often = [[0]] * 3 + [[1], [2], [0]]
    trace = RoutingTrace(np.array(often, dtype=np.int32)[:, None], 4)
    found = analyse(trace)
    assert found.hits["lfu"][0, 2] == found.hits["lru"][0, 2] + 1


def test_hot_of_the_published_setting_rebalances_after_60_tokens() -> None:
    selections = np.full((121, 1, 1), 3, dtype=np.int32)
    distances = stack_distances(RoutingTrace(selections, 4), "hot")[:, 0, 0]
    assert distances[:60].tolist() == [3] * 60
    assert distances[60:].tolist() == [0] * 61


def test_a_mapped_or_strided_trace_gives_the_same() -> None:
    trace = local_trace()
    wide = np.repeat(trace.selections, 2, axis=1)[:, ::2]
    wide.flags.writeable = False
    again = analyse(RoutingTrace(wide, trace.n_expert))
    for policy, hits in analyse(trace).hits.items():
        assert (again.hits[policy] == hits).all()


def test_kernels_compile_where_no_folder_can_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(function: Callable[..., int] | None = None, cache: bool = False) -> object:
        def refuse(function: object) -> object:
            raise RuntimeError("cannot cache function: no locator available")

        return refuse if cache else numba.njit(function)

    monkeypatch.setattr("tec.locality_kernels.njit", njit)
    assert kernels._compiled(lambda x: x + 1)(1) == 2


def test_summary_tells_local_from_uniform_routing() -> None:
    found = summarise(local_trace(n_expert=64))
    assert found.overlap_8 > found.overlap_8_uniform + 0.05
    assert found.overlap_8_uniform == pytest.approx(1 - (60 / 64) ** 8)
    assert 1 < found.effective_experts <= 64
    one = summarise(RoutingTrace(np.zeros((9, 1, 1), dtype=np.int32), 4))
    assert (one.median_reuse, one.effective_experts, one.overlap_8) == (1, 1.0, 1.0)
    with pytest.raises(TecError, match="8 tokens are too few"):
        summarise(local_trace(tokens=8))


def test_summary_of_experts_that_are_never_used_twice() -> None:
    selections = np.arange(9, dtype=np.int32).reshape(9, 1, 1)
    assert summarise(RoutingTrace(selections, 9)).median_reuse is None


def test_benchmark_prints_a_line_per_shape_and_kind_of_trace() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "locality.py"), "--largest", "100000"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[:3] for line in lines[3:]] == [
        ["local", "128", "8"],
        ["uniform", "128", "8"],
        ["local", "512", "10"],
        ["uniform", "512", "10"],
    ]
    overlap = [float(line.split()[5].rstrip("%")) for line in lines[3:]]
    assert overlap[0] > overlap[1] + 20
    assert overlap[2] > overlap[3] + 20
