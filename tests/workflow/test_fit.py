"""What `--fit` and the cache make of devices of several sizes; `test-expert-cache-fit` fakes them.

The device computes on the CPU and refuses what exceeds its memory, so that every run which passes
has stayed within it. The shipped model claims a longer context here, of 2 KiB a token: there is
something to share. All sizes are in MiB.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from programs import run_program
from tec.gguf_file import Geometry, read_geometry
from tec.paths import ROOT

MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"

MIB = 1024 * 1024
MARGIN = 256
"""What the cache leaves free with `auto`; here what `--fit` leaves, too."""

LONGEST = 131072
SHORTEST = 4096
"""Contexts, in tokens: what the model claims, and the least that `--fit` chooses by itself."""

EXPERTS = 14
"""The weights of all experts, rounded up."""

Plan = dict[str, Any]
Load = Callable[..., "subprocess.CompletedProcess[str]"]
Fit = Callable[..., Plan]


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    return read_geometry(MODEL)


@pytest.fixture(scope="session")
def load(binaries: dict[str, Path]) -> Load:
    """Return a function that loads the model where `sizes` are the devices."""
    program = binaries["test-expert-cache-fit"]
    claim = f"qwen3moe.context_length=int:{LONGEST}"

    def run(sizes: object, *words: object, reserve: int = 0) -> subprocess.CompletedProcess[str]:
        settings = ("-np", 1, "-ub", 64, "-t", 1, "--no-warmup", "--override-kv", claim)
        command = (program, sizes, reserve, "-m", MODEL, *settings, "--fit-target", MARGIN, *words)
        return run_program(command, 60)

    return run


@pytest.fixture(scope="session")
def fit(load: Load) -> Fit:
    """Return a function that does the same and says what lies where, with the log."""

    def plan(sizes: object, *words: object, reserve: int = 0) -> Plan:
        done = load(sizes, *words, reserve=reserve)
        assert done.returncode == 0, done.stderr[-3000:]
        return {**json.loads(done.stdout), "log": done.stderr}

    return plan


@pytest.fixture(scope="session")
def tokens(fit: Fit) -> list[int]:
    """What the model says without a cache, all of it on the device."""
    plan = fit(1024, "-c", SHORTEST, "--expert-cache", "off")
    assert "expert cache" not in plan["log"]
    return list(plan["tokens"])


@pytest.fixture(scope="session")
def dense(fit: Fit, geometry: Geometry) -> int:
    """What must fit: all but the experts, the shortest context and the fewest slots."""
    size = 1024
    plan = fit(size, "-cmoe", "-c", SHORTEST, "--expert-cache", geometry.n_expert_used)
    return round(size - free(plan) + 0.5)


def free(plan: Plan, device: str = "FAKE0") -> float:
    return float(plan["memory"][device]["free"]) / MIB


def serves_all(plan: Plan) -> bool:
    """All experts are in host memory, with slots on the device for those of every layer."""
    return bool(plan["status"]["n_layers"] == plan["status"]["n_layers_moe"])


def is_resident(plan: Plan) -> bool:
    reason = "experts are in device memory"
    return bool(plan["status"]["reason"] == reason and plan["status"]["n_layers"] == 0)


def test_experts_leave_the_device_only_where_the_model_does_not_fit(
    fit: Fit, dense: int, tokens: list[int], geometry: Geometry
) -> None:
    """Slots and a context that nobody asked for share what the rest leaves."""
    plans = [fit(MARGIN + dense + more, "--expert-cache", "auto") for more in (0, 2, 4, 8, 24)]
    *served, whole = plans
    assert is_resident(whole)
    assert all(serves_all(plan) for plan in served)
    assert all(free(plan) >= MARGIN for plan in plans)
    assert all(plan["tokens"] == tokens for plan in plans)
    contexts = [plan["n_ctx"] for plan in served]
    slots = [plan["status"]["capacity"] for plan in served]
    assert sorted(contexts) == contexts
    assert sorted(slots) == slots
    assert contexts[0] >= SHORTEST
    assert contexts[-1] > 1.3 * SHORTEST
    assert slots[0] >= geometry.n_expert_used
    assert slots[-1] > 2.5 * geometry.n_expert_used


def test_auto_is_what_it_is_with_cpu_moe(fit: Fit, dense: int) -> None:
    size = MARGIN + dense + 8
    alone, told = (fit(size, *words, "--expert-cache", "auto") for words in ((), ("-cmoe",)))
    assert (alone["n_ctx"], alone["status"]) == (told["n_ctx"], told["status"])


def test_half_of_the_experts_get_slots_before_the_context_grows(
    fit: Fit, dense: int, geometry: Geometry
) -> None:
    """There is room for much more, which the context takes; with `-cmoe` the experts stay out."""
    plan = fit(MARGIN + dense + 100, "-cmoe", "--expert-cache", "auto")
    assert serves_all(plan)
    assert 0.45 < plan["status"]["capacity"] / geometry.n_expert < 0.65
    assert SHORTEST < plan["n_ctx"] < LONGEST


def test_a_context_that_was_asked_for_stays(fit: Fit, dense: int, tokens: list[int]) -> None:
    size = MARGIN + dense + 8
    plan = fit(size, "-c", SHORTEST, "--expert-cache", "auto")
    assert plan["n_ctx"] == SHORTEST
    assert serves_all(plan)
    assert plan["tokens"] == tokens
    shared = fit(size, "--expert-cache", "auto")
    assert plan["status"]["capacity"] > shared["status"]["capacity"]


def test_slots_that_were_asked_for_leave_the_context_the_rest(fit: Fit, dense: int) -> None:
    few, many = (fit(MARGIN + dense + 8, "--expert-cache", slots) for slots in (16, 40))
    assert [plan["status"]["capacity"] for plan in (few, many)] == [16, 40]
    assert few["n_ctx"] > many["n_ctx"] >= SHORTEST


def test_too_many_slots_are_refused_with_the_most_that_fit(
    fit: Fit, load: Load, dense: int
) -> None:
    size = MARGIN + dense + 4
    done = load(size, "-c", SHORTEST, "--expert-cache", 60)
    assert done.returncode == 1
    most = re.search(r"the largest capacity that does is (\d+)", done.stderr)
    assert most, done.stderr
    plan = fit(size, "-c", SHORTEST, "--expert-cache", most[1])
    assert plan["status"]["capacity"] == int(most[1])


def test_layers_that_the_user_placed_stay(fit: Fit, dense: int) -> None:
    plan = fit(MARGIN + dense + 8, "-ncmoe", 4, "--expert-cache", "auto")
    status = plan["status"]
    assert (status["n_layers"], status["reason"]) == (4, "experts are in device memory")
    assert free(plan) >= MARGIN


def test_layers_that_must_stay_on_the_cpu_are_named(
    fit: Fit, dense: int, tokens: list[int]
) -> None:
    plan = fit(MARGIN + dense - 2, "--expert-cache", "auto")
    assert "for all that is not experts and the fewest slots" in plan["log"]
    assert not serves_all(plan)
    assert plan["tokens"] == tokens


@pytest.mark.parametrize("more", [6, 40])
def test_two_devices_share_layers_and_slots(
    fit: Fit, dense: int, tokens: list[int], more: int
) -> None:
    size = MARGIN + dense // 2 + more // 2 + 2
    plan = fit(f"{size},{size}", "--expert-cache", "auto")
    assert is_resident(plan) == (more > EXPERTS)
    assert serves_all(plan) == (more < EXPERTS)
    assert min(free(plan, name) for name in ("FAKE0", "FAKE1")) >= MARGIN
    assert plan["tokens"] == tokens


def test_room_is_left_for_what_is_loaded_later(fit: Fit, dense: int) -> None:
    size = MARGIN + dense + 8
    words = ("-c", SHORTEST, "--expert-cache", "auto")
    plan, without = fit(size, *words, reserve=4), fit(size, *words)
    assert free(plan) >= MARGIN + 4 > free(without)
    assert plan["status"]["capacity"] < without["status"]["capacity"]


@pytest.mark.parametrize("placed", [(), ("--fit", "off", "-cmoe")])
def test_a_draft_model_has_its_room(
    fit: Fit, dense: int, tokens: list[int], placed: tuple[str, ...]
) -> None:
    """It is loaded after the slots, with a context of its own, and leaves the margin as it is."""
    drafts = ("-md", MODEL, "--spec-type", "draft-simple", "--spec-draft-p-min", 0)
    size = MARGIN + 2 * dense + EXPERTS + 4
    plan = fit(size, *placed, *drafts, "-c", SHORTEST, "--expert-cache", "auto")
    assert serves_all(plan)
    assert free(plan) >= MARGIN
    assert plan["log"].count("expert cache: none for the draft model") == 1
    assert plan["tokens"] == tokens


def test_without_the_cache_upstream_fills_the_device_with_experts(fit: Fit, dense: int) -> None:
    plan = fit(MARGIN + dense + 6, "--expert-cache", "off")
    assert "expert cache" not in plan["log"]
    assert plan["n_ctx"] == SHORTEST
    assert plan["memory"]["FAKE0"]["model"] > 4 * MIB
