"""The policy hybrid: of a step's misses some are copied, the CPU computes the others.

Given rates decide which, so that counts can be compared. With rates that always copy its bits are
those of lru; else outputs are those of the cache off up to the order of sums. The mailbox, through
which a GPU asks for what the CPU computes, works on the CPU as well when a variable asks for it:
the bits must not depend on it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from programs import run_program
from shipped_decode import (
    Attempt,
    Run,
    assert_agree,
    assert_refused,
    decode_with,
    hashes,
)

N_GEN = 24
HYBRID = ("--expert-cache-policy", "hybrid")
COPY, CPU, SPLIT = "1,1,1000,1000", "1000,1000,1,1", "1,10,1,10"
MAILBOX = {"LLAMA_EXPERT_WORKER": "1"}


@pytest.fixture(scope="module")
def decode(attempt: Attempt) -> Run:
    return partial(decode_with(attempt, N_GEN), first=2)


def hybrid(slots: int | str, rates: str) -> tuple[object, ...]:
    return ("--expert-cache", slots, *HYBRID, "--expert-cache-rates", rates)


def bookkeeping(run: dict[str, Any]) -> list[Any]:
    return [run[name] for name in ("hits", "misses", "computed", "bytes_moved", "layers")]


def test_rates_that_always_copy_are_lru_to_the_bit(decode: Run) -> None:
    """With the slot of zeros counted: it holds no expert."""
    copying, lru = decode(*hybrid(24, COPY)), decode("--expert-cache", 23)
    assert hashes(copying) == hashes(lru)
    assert bookkeeping(copying) == bookkeeping(lru)
    assert copying["computed"] == 0 < copying["misses"]
    assert copying["status"]["hybrid"]["choice"] == "copy"


@pytest.mark.parametrize("slots", [9, 24, 40])
@pytest.mark.parametrize(("rates", "choice"), [(CPU, "cpu"), (SPLIT, "split")])
def test_tokens_are_those_of_off(decode: Run, slots: int, rates: str, choice: str) -> None:
    run = decode(*hybrid(slots, rates), first=4)
    assert_agree(run, decode(first=4), N_GEN // 2)
    assert run["status"]["hybrid"]["choice"] == choice
    assert run["computed"] > 0


@pytest.mark.parametrize("rates", [CPU, SPLIT])
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_device_that_asks_through_the_mailbox_gets_the_same_bits(
    decode: Run, rates: str, parallel: int
) -> None:
    words = (*hybrid(40, rates), "--parallel", parallel)
    asked, handed = decode(*words, **MAILBOX), decode(*words)
    assert asked["status"]["device_asks"]
    assert not handed["status"]["device_asks"]
    assert hashes(asked) == hashes(handed)
    assert bookkeeping(asked) == bookkeeping(handed)
    assert asked["computed"] > 0


def test_the_policy_hot_asks_through_the_mailbox_too(decode: Run) -> None:
    words = ("--moe-hot-k", 16, "--moe-hot-rebalance-interval", 5)
    asked, handed = decode(*words, **MAILBOX), decode(*words)
    assert asked["status"]["device_asks"]
    assert hashes(asked) == hashes(handed)
    assert bookkeeping(asked) == bookkeeping(handed)


def test_misses_left_to_the_cpu_come_into_slots_one_at_a_time(decode: Run) -> None:
    """In the background: at most one in a layer and step."""
    run = decode(*hybrid(24, CPU))
    assert run["computed"] == run["misses"]
    steps = sum(len(prompt["tokens"]) for prompt in run["prompts"])
    copied = [layer["copied"] for layer in run["layers"]]
    assert all(0 < n <= steps for n in copied)
    assert run["misses"] > decode(*hybrid(24, COPY))["misses"]


def test_split_counts_agree(decode: Run) -> None:
    run = decode(*hybrid(24, SPLIT))
    status = run["status"]
    assert status["hybrid"]["misses_copied"] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert 0 < run["computed"] < run["misses"]
    copied = sum(layer["copied"] for layer in run["layers"])
    assert run["misses"] - run["computed"] < copied <= run["misses"]


def test_rates_are_measured(decode: Run) -> None:
    measured = decode("--expert-cache", 24, *HYBRID)["status"]["hybrid"]
    rates = {"copy_us", "cpu_us", "ask_us"}
    assert set(measured) == rates | {"misses_copied", "background", "choice", "asks"}
    assert all(rate > 0 for rate in (measured["copy_us"][1], measured["cpu_us"][1]))
    chosen = {True: "copy", False: "split"}[measured["misses_copied"] == list(range(9))]
    assert measured["choice"] == ("cpu" if not any(measured["misses_copied"]) else chosen)


def test_made_up_times_give_the_costs_they_were_made_from(binaries: dict[str, Path]) -> None:
    done = run_program([binaries["test-expert-rates"]], 120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok\n") == 6


@pytest.mark.parametrize("variables", [{}, MAILBOX])
def test_steps_stop_asking_where_it_costs_more(decode: Run, variables: dict[str, str]) -> None:
    """Looked at every 128 steps; before, and where asking is free, the CPU computes its part."""
    words = ("-n", 200, "--forced")
    free = decode(*hybrid(24, SPLIT), *words, **variables)
    dear = decode(*hybrid(24, f"{SPLIT},1000"), *words, **variables)
    assert free["status"]["hybrid"]["asks"] is True
    assert dear["status"]["hybrid"]["asks"] is False
    steps = [[step for prompt in hashes(run) for step in prompt] for run in (dear, free)]
    assert steps[0][:128] == steps[1][:128]
    assert steps[0][128:] != steps[1][128:]
    assert 0 < dear["computed"] < free["computed"]
    assert dear["misses"] > dear["computed"]


def test_all_experts_in_slots_need_nobody(decode: Run) -> None:
    run = decode("--expert-cache", "auto", *HYBRID)
    assert run["misses"] == 0
    assert hashes(run) == hashes(decode())


def test_threads_do_not_change_the_bits(decode: Run) -> None:
    words = hybrid(24, SPLIT)
    assert hashes(decode(*words)) == hashes(decode(*words, "-t", 1))


def test_llama_bench_has_the_policy(attempt: Attempt) -> None:
    words = ("-r", 1, "-p", 0, "-n", 8, "-o", "jsonl", "--repack", 0, "--expert-cache", "24")
    rates = ("--expert-cache-rates", CPU)
    done = attempt("llama-bench", *words, "--expert-cache-policy", "lru,hybrid", *rates)
    lru, mixed = map(json.loads, done.stdout.splitlines())
    assert (lru["expert_cache_policy"], mixed["expert_cache_policy"]) == ("lru", "hybrid")
    assert lru["expert_cache_computed"] == 0
    assert mixed["expert_cache_computed"] == mixed["expert_cache_misses"] > 0


@pytest.mark.parametrize("tool", ["llama-expert-bench", "llama-bench"])
@pytest.mark.parametrize(
    ("arguments", "variables", "complaint"),
    [
        (("--expert-cache", "8", *HYBRID), {}, "choose 9 to 64"),
        (hybrid(16, "1,2,3"), {}, "'1,2,3'"),
        (hybrid(16, "1,2,3,x"), {}, "'1,2,3,x'"),
        (hybrid(16, "1,2,3,-4"), {}, "'1,2,3,-4'"),
        (hybrid(16, "1,2,3,nan"), {}, "'1,2,3,nan'"),
        (hybrid(16, "1,2,3,4,5,6"), {}, "'1,2,3,4,5,6'"),
        (("--expert-cache-policy", "hybird"), {}, "'hybird'"),
        (HYBRID, {"LLAMA_ARG_EXPERT_CACHE_RATES": "fast"}, "LLAMA_ARG_EXPERT_CACHE_RATES"),
    ],
)
def test_malformed_settings_stop_the_program(
    attempt: Attempt,
    tool: str,
    arguments: tuple[object, ...],
    variables: dict[str, str],
    complaint: str,
) -> None:
    assert_refused(attempt, tool, arguments, complaint, **variables)
