"""The cache's resolve, evict and fill against a plain reference model, with generated inputs.

The program `test-expert-cache` drives the real operations of the CPU back end and checks after
every fill that a slot holds its expert's bytes; here the decisions are checked.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st


@dataclass(frozen=True)
class Split:
    """A step of which the host computes some misses."""

    slots: list[int]
    """As many as there are slots stands for one with zeros."""
    host: list[int]
    """The expert that the host computes, or -1 - id."""
    fills: list[tuple[int, int]]
    computed: int


@dataclass
class Reference:
    """One layer's cache as the specification words it, one Python statement at a time."""

    n_expert: int
    capacity: int
    pinned: list[int]
    slots: list[int] = field(init=False)
    """Expert of each slot."""
    used: dict[int, int] = field(init=False)
    """Slot -> time of its last use."""
    clock: int = 0
    hits: int = 0
    misses: int = 0

    def __post_init__(self) -> None:
        others = [e for e in range(self.n_expert) if e not in self.pinned]
        self.slots = [*self.pinned, *others][: self.capacity]
        self.used = {slot: -1 - slot for slot in range(self.capacity)}  # slot 0 the most recent

    def step(self, ids: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Resolve a step's expert ids in order; return their slots and the fills."""
        required = set(ids)
        fills: list[tuple[int, int]] = []
        chosen: list[int] = []
        for expert in ids:
            if expert in self.slots:
                self.hits += 1
            else:
                self.misses += 1
                victim = self._victim(required)
                self.slots[victim] = expert
                fills.append((expert, victim))
            slot = self.slots.index(expert)
            self.clock += 1
            self.used[slot] = self.clock
            chosen.append(slot)
        return chosen, fills

    def split(self, ids: list[int], copied: list[int], background: int) -> Split:
        """Resolve a step of which the host computes all misses but the first ones."""
        first = {expert: i for i, expert in reversed(list(enumerate(ids)))}
        missed = [e for e in sorted(first, key=first.__getitem__) if e not in self.slots]
        n_copied = copied[len(missed)]
        on_host = missed[n_copied:]
        required, start = set(ids), self.clock
        self.hits += len(ids) - len(missed)
        self.misses += len(missed)
        for i, expert in enumerate(ids):  # in use by the step: the newest
            if expert in self.slots:
                self.used[self.slots.index(expert)] = start + 1 + i
        fills = []
        for expert in missed[: n_copied + background]:
            victim = self._victim(required)
            self.slots[victim] = expert
            self.used[victim] = start + 1 + first[expert]
            fills.append((expert, victim))
        for i, expert in enumerate(ids):
            if expert not in on_host:
                self.used[self.slots.index(expert)] = start + 1 + i
        self.clock += len(ids)
        return Split(
            slots=[self.capacity if e in on_host else self.slots.index(e) for e in ids],
            host=[e if e in on_host else -1 - e for e in ids],
            fills=fills,
            computed=len(on_host),
        )

    def _victim(self, required: set[int]) -> int:
        free = range(len(self.pinned), self.capacity)
        return min((s for s in free if self.slots[s] not in required), key=self.used.__getitem__)


@dataclass(frozen=True)
class Answer:
    """What the driver says about a step."""

    slots: list[int]
    fills: list[tuple[int, int]]
    hits: int
    misses: int


class Driver:
    """The real operations, in a process that lives as long as the tests."""

    def __init__(self, binary: Path) -> None:
        self.process = subprocess.Popen(
            [binary, "--backend", "CPU"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, *words: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, f"the driver ended with {self.process.poll()} at: {words}"
        return answer

    def init(self, n_expert: int, capacity: int, pinned: list[int]) -> None:
        assert self.ask("init", n_expert, capacity, len(pinned), *pinned) == "ok"

    def step(self, n_tokens: int, ids: list[int]) -> Answer:
        words = self.ask("step", n_tokens, len(ids) // n_tokens, *ids).split()
        assert words[0] == "slots", words
        fills_at, hits_at = words.index("fills"), words.index("hits")
        fills = [(int(e), int(s)) for e, s in (w.split(":") for w in words[fills_at + 2 : hits_at])]
        assert len(fills) == int(words[fills_at + 1])
        assert words[hits_at + 2] == "misses"
        return Answer(
            slots=[int(word) for word in words[1:fills_at]],
            fills=fills,
            hits=int(words[hits_at + 1]),
            misses=int(words[hits_at + 3]),
        )

    def split(
        self, n_tokens: int, ids: list[int], copied: list[int], background: int
    ) -> tuple[Split, int, int]:
        """Return the step, and the copies and what the host computed since init."""
        top_k = len(ids) // n_tokens
        words = self.ask("split", n_tokens, top_k, background, *copied, *ids).split()
        assert words[0] == "slots", words
        at = {name: words.index(name) for name in ("host", "fills", "hits", "copied", "computed")}
        fills = words[at["fills"] + 2 : at["hits"]]
        step = Split(
            slots=[int(word) for word in words[1 : at["host"]]],
            host=[int(word) for word in words[at["host"] + 1 : at["fills"]]],
            fills=[(int(e), int(s)) for e, s in (word.split(":") for word in fills)],
            computed=sum(int(word) >= 0 for word in set(words[at["host"] + 1 : at["fills"]])),
        )
        return step, int(words[at["copied"] + 1]), int(words[at["computed"] + 1])

    def gather(self, n_tokens: int, ids: list[int]) -> None:
        """Collect experts of a step of any size; the driver compares their bytes."""
        assert self.ask("gather", n_tokens, len(ids) // n_tokens, *ids) == "ok"

    def table(self) -> list[int]:
        kind, *experts = self.ask("table").split()
        assert kind == "table"
        return [int(expert) for expert in experts]

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=10)


@dataclass(frozen=True)
class Scenario:
    """A cache and the steps it has to serve; each step is (tokens, ids token by token)."""

    n_expert: int
    capacity: int
    pinned: list[int]
    steps: list[tuple[int, list[int]]]


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Draw caches of 1 slot to all experts, up to all slots but one pinned, skewed routing."""
    n_expert = draw(st.integers(2, 24))
    capacity = draw(st.integers(1, n_expert))
    pinned = draw(st.lists(st.integers(0, n_expert - 1), max_size=capacity - 1, unique=True))
    room = capacity - len(pinned)
    favourite = st.integers(0, max(1, n_expert // 4))
    expert = st.one_of(favourite, st.integers(0, n_expert - 1))
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        top_k = draw(st.integers(1, min(room, 4)))
        n_tokens = draw(st.integers(1, room // top_k))
        token = st.lists(expert, min_size=top_k, max_size=top_k, unique=True)
        steps.append((n_tokens, [e for _ in range(n_tokens) for e in draw(token)]))
    return Scenario(n_expert, capacity, pinned, steps)


@pytest.fixture(scope="module")
def driver(binaries: dict[str, Path]) -> Iterator[Driver]:
    running = Driver(binaries["test-expert-cache"])
    yield running
    assert running.end() == 0


def test_reference_evicts_the_least_recently_used() -> None:
    cache = Reference(n_expert=6, capacity=3, pinned=[])
    assert cache.slots == [0, 1, 2]
    assert cache.step([4]) == ([2], [(4, 2)])  # the last slot is the oldest of the prewarmed
    assert cache.step([1]) == ([1], [])
    assert cache.step([5]) == ([0], [(5, 0)])
    assert cache.step([3, 1]) == ([2, 1], [(3, 2)])
    assert (cache.hits, cache.misses) == (2, 3)


def test_reference_keeps_pins_and_what_the_step_needs() -> None:
    cache = Reference(n_expert=8, capacity=4, pinned=[7])
    assert cache.slots == [7, 0, 1, 2]
    assert cache.step([2, 5, 2]) == ([3, 2, 3], [(5, 2)])  # 2 is needed, so 1 has to go
    assert cache.step([7, 6]) == ([0, 1], [(6, 1)])
    assert (cache.hits, cache.misses) == (3, 2)


@example(Scenario(4, 1, [], [(1, [3]), (1, [3]), (1, [0])]))
@example(Scenario(4, 4, [], [(1, [3, 2, 1, 0]), (4, [0, 0, 0, 0])]))
@example(Scenario(8, 4, [7, 0, 3], [(1, [7]), (1, [1]), (1, [2]), (1, [1])]))
@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios())
def test_decisions_equal_the_reference(driver: Driver, scenario: Scenario) -> None:
    reference = Reference(scenario.n_expert, scenario.capacity, list(scenario.pinned))
    driver.init(scenario.n_expert, scenario.capacity, scenario.pinned)
    assert driver.table() == reference.slots
    for n_tokens, ids in scenario.steps:
        slots, fills = reference.step(ids)
        answer = driver.step(n_tokens, ids)
        assert answer == Answer(slots, fills, reference.hits, reference.misses)
        assert driver.table() == reference.slots


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios(), background=st.integers(0, 3), data=st.data())
def test_split_steps_equal_the_reference(
    driver: Driver, scenario: Scenario, background: int, data: st.DataObject
) -> None:
    """Mixed with steps that copy all: they share the state."""
    reference = Reference(scenario.n_expert, scenario.capacity, list(scenario.pinned))
    driver.init(scenario.n_expert, scenario.capacity, scenario.pinned)
    copies = computed = 0
    for n_tokens, ids in scenario.steps:
        if data.draw(st.booleans()):
            slots, fills = reference.step(ids)
            assert driver.step(n_tokens, ids).slots == slots
            copies += len(fills)
            continue
        copied = [data.draw(st.integers(0, n)) for n in range(len(ids) + 1)]
        expected = reference.split(ids, copied, background)
        answer, n_copies, n_computed = driver.split(n_tokens, ids, copied, background)
        copies += len(expected.fills)
        computed += expected.computed
        assert (answer, n_copies, n_computed) == (expected, copies, computed)
        assert driver.table() == reference.slots


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios())
def test_pins_stay_and_every_id_gets_a_slot_of_its_own(driver: Driver, scenario: Scenario) -> None:
    driver.init(scenario.n_expert, scenario.capacity, scenario.pinned)
    for n_tokens, ids in scenario.steps:
        answer = driver.step(n_tokens, ids)
        table = driver.table()
        assert [table[slot] for slot in answer.slots] == ids
        assert len(set(table)) == scenario.capacity
        assert table[: len(scenario.pinned)] == scenario.pinned


def test_step_that_might_not_fit_is_refused_and_changes_nothing(driver: Driver) -> None:
    driver.init(8, 4, [6, 7])
    before = driver.table()
    assert driver.ask("step", 1, 3, 0, 1, 2).startswith("error")
    assert driver.ask("step", 2, 2, 0, 1, 0, 1).startswith("error")
    assert driver.table() == before
    assert driver.step(1, [0, 1]).hits == 2


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios(), data=st.data())
def test_gathering_finds_every_expert_and_changes_nothing(
    driver: Driver, scenario: Scenario, data: st.DataObject
) -> None:
    """Experts come from their slots or from the store, also more than there are slots."""
    reference = Reference(scenario.n_expert, scenario.capacity, list(scenario.pinned))
    driver.init(scenario.n_expert, scenario.capacity, scenario.pinned)
    experts = st.lists(st.integers(0, scenario.n_expert - 1), min_size=1, max_size=64)
    for n_tokens, ids in scenario.steps:
        gathered = data.draw(experts)
        driver.gather(len(gathered), gathered)
        slots, fills = reference.step(ids)
        answer = driver.step(n_tokens, ids)
        assert answer == Answer(slots, fills, reference.hits, reference.misses)
