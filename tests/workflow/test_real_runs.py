"""The built tools on the shipped model: same outputs, counters that add up, clear errors."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gguf_files import cut, write_dense, write_moe
from tec.config import load_row, load_study
from tec.errors import TecError
from tec.expert_bench import ExpertBench, parse
from tec.gguf_file import Geometry, read_geometry
from tec.paths import ROOT
from tec.perplexity import (
    Divergence,
    divergence_command,
    parse_divergence,
    parse_reference,
    reference_command,
)
from tec.process import run_tool

ROW = load_row("pydoc-moe")
MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
N_GEN = 24
N_PROMPTS = 2

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    return read_geometry(MODEL)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = (ROOT / ROW.prompts).read_text().splitlines()[:N_PROMPTS]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def decode(
    binaries: dict[str, Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Run llama-expert-bench with extra arguments and variables; the same run is made once."""
    log = tmp_path_factory.mktemp("logs") / "expert-bench.log"
    known: dict[str, dict[str, Any]] = {}

    def run(*arguments: object, **variables: str) -> dict[str, Any]:
        key = repr((arguments, variables))
        if key not in known:
            command = _decode_command(binaries, MODEL, prompts, *arguments)
            known[key] = json.loads(run_tool(command, variables, log).stdout)
        return known[key]

    return run


def _decode_command(
    binaries: Mapping[str, Path], model: Path, prompts: Path, *arguments: object
) -> list[str]:
    words = ("-m", model, "--prompts", prompts, "-n", N_GEN, "-t", 2, "-c", 1024, *arguments)
    return [str(binaries["llama-expert-bench"]), *map(str, words)]


def said(run: dict[str, Any]) -> list[tuple[list[int], list[str]]]:
    """Return what a run put out: every token, and the hash of every step's logits."""
    return [(prompt["tokens"], prompt["logits_hash"]) for prompt in run["prompts"]]


def slots(geometry: Geometry) -> list[int]:
    """Return the capacities to test: the smallest, two with evictions, all experts."""
    n, k = geometry.n_expert, geometry.n_expert_used
    return [k, k + 3, n // 2, n]


def test_reference_repeats_itself(decode: Run) -> None:
    assert said(decode("--expert-cache", "off")) == said(decode("--expert-cache", "off", "-r", 1))


def test_cached_logits_are_bitwise_those_of_off(decode: Run, geometry: Geometry) -> None:
    off = decode("--expert-cache", "off")
    assert len(said(off)) == N_PROMPTS
    for capacity in slots(geometry):
        assert said(decode("--expert-cache", capacity)) == said(off), f"capacity {capacity}"


@pytest.mark.parametrize("share", [1, 2, 4])
def test_parallel_sequences_are_bitwise_those_of_off(
    decode: Run, geometry: Geometry, share: int
) -> None:
    """Two tokens a step need 2K slots: below that the step takes upstream's path."""
    parallel = ("--parallel", 2)
    capacity = min(share * geometry.n_expert_used, geometry.n_expert)
    cached = decode("--expert-cache", capacity, *parallel)
    assert said(cached) == said(decode("--expert-cache", "off", *parallel))


def test_counters_add_up(decode: Run, geometry: Geometry) -> None:
    asked = geometry.n_moe_layers * geometry.n_expert_used
    for capacity in slots(geometry):
        run = decode("--expert-cache", capacity)
        steps = [
            (hits, misses)
            for prompt in run["prompts"]
            for hits, misses in zip(prompt["hits"][1:], prompt["misses"][1:], strict=True)
        ]
        assert {hits + misses for hits, misses in steps} == {asked}
        assert sum(hits for hits, _ in steps) == run["hits"]
        assert sum(misses for _, misses in steps) == run["misses"]
        for what in ("hits", "misses"):
            assert sum(layer[what] for layer in run["layers"]) == run[what]
        assert len(run["layers"]) == geometry.n_moe_layers
        assert run["decode_tokens"] == N_PROMPTS * (N_GEN - 1)
        assert 0 <= run["bytes_moved"] <= run["misses"] * run["status"]["expert_bytes_max"]
        assert (run["bytes_moved"] > 0) == (run["misses"] > 0)


def test_more_slots_never_hit_less(decode: Run, geometry: Geometry) -> None:
    """LRU contents of a smaller cache are part of a larger one's, prewarmed ones included."""
    hits = [decode("--expert-cache", capacity)["hits"] for capacity in slots(geometry)]
    assert all(fewer <= more for fewer, more in pairwise(hits))
    assert decode("--expert-cache", geometry.n_expert)["misses"] == 0


def test_off_is_off(decode: Run) -> None:
    run = decode("--expert-cache", "off")
    assert (run["status"]["engaged"], run["status"]["reason"]) == (False, "off")
    assert run["hits"] == run["misses"] == run["bytes_moved"] == 0
    assert ExpertBench.model_validate(run).capacity is None
    assert said(decode()) == said(run)


def test_status_says_what_the_cache_is(decode: Run, geometry: Geometry) -> None:
    capacity = geometry.n_expert // 2
    status = decode("--expert-cache", capacity)["status"]
    assert status["engaged"]
    assert (status["capacity"], status["requested"]) == (capacity, str(capacity))
    assert (status["policy"], status["pinned"]) == ("lru", 0)
    assert status["n_layers"] == geometry.n_moe_layers
    assert status["n_expert"] == geometry.n_expert
    assert status["cache_bytes"] * 2 == pytest.approx(status["store_bytes"], rel=0.1)


def test_auto_engages_with_a_capacity_of_its_own(decode: Run, geometry: Geometry) -> None:
    run = decode("--expert-cache", "auto")
    assert run["status"]["engaged"]
    assert geometry.n_expert_used <= run["status"]["capacity"] <= geometry.n_expert
    assert said(run) == said(decode("--expert-cache", "off"))


def test_more_slots_than_experts_are_all_experts(decode: Run, geometry: Geometry) -> None:
    status = decode("--expert-cache", geometry.n_expert + 1)["status"]
    assert status["requested"] == str(geometry.n_expert + 1)
    assert status["capacity"] == geometry.n_expert


def test_dense_model_says_why_the_cache_is_not_engaged(
    binaries: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    dense = write_dense(tmp_path / "dense.gguf")
    command = _decode_command(binaries, dense, prompts, "--expert-cache", 8)
    finished = run_tool(command, {}, tmp_path / "log")
    assert "not engaged: the model has no experts" in finished.stderr
    with pytest.raises(TecError, match="not engaged: the model has no experts"):
        parse(finished, expert_cache="8")


def test_variables_of_existing_clients_are_honoured(decode: Run, geometry: Geometry) -> None:
    capacity = geometry.n_expert // 2
    run = decode(EXPERT_CACHE_ENABLE="1", EXPERT_CACHE_CAPACITY=str(capacity))
    assert run["status"]["capacity"] == capacity
    assert decode(EXPERT_CACHE_ENABLE="0")["status"]["engaged"] is False
    named = decode(LLAMA_ARG_EXPERT_CACHE=str(capacity))
    assert (named["hits"], named["misses"]) == (run["hits"], run["misses"])


def _pin_list(path: Path, n_layer: int, n_expert: int) -> Path:
    lines = ["# EXPERT_CACHE_PIN_LIST v1", f"n_layer {n_layer}", f"n_expert {n_expert}"]
    lines += [f"layer {layer}: 3 1 4 0" for layer in range(n_layer)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_pinned_experts_leave_the_outputs_as_they_are(
    decode: Run, geometry: Geometry, tmp_path: Path
) -> None:
    pins = _pin_list(tmp_path / "pins.txt", geometry.n_layer, geometry.n_expert)
    arguments = ("--expert-cache-pin-list", pins, "--expert-cache-pinned", 4)
    run = decode("--expert-cache", geometry.n_expert_used + 4, *arguments)
    assert run["status"]["pinned"] == 4
    assert said(run) == said(decode("--expert-cache", "off"))


@pytest.fixture
def bench(binaries: dict[str, Path], tmp_path: Path) -> Run:
    """Run a short llama-bench with extra arguments and variables; one result."""

    def run(*arguments: object, **variables: str) -> dict[str, Any]:
        words = ("-m", MODEL, "-t", 2, "-r", 1, "-fa", 1, "-p", 0, "-n", 8, "-o", "jsonl")
        command = [str(binaries["llama-bench"]), *map(str, words), *map(str, arguments)]
        result: dict[str, Any] = json.loads(run_tool(command, variables, tmp_path / "log").stdout)
        return result

    return run


def client_variables(pins: Path, capacity: int, pinned: int) -> dict[str, str]:
    """Return what an existing client sets to run with pinned experts."""
    return {
        "EXPERT_CACHE_ENABLE": "1",
        "EXPERT_CACHE_CAPACITY": str(capacity),
        "EXPERT_CACHE_PIN_LIST": str(pins),
        "EXPERT_CACHE_PINNED": str(pinned),
        "EXPERT_CACHE_UNIFIED": "1",
    }


def test_client_variables_pin_experts_in_both_tools(
    decode: Run, bench: Run, geometry: Geometry, tmp_path: Path
) -> None:
    pins = _pin_list(tmp_path / "pins.txt", geometry.n_layer, geometry.n_expert)
    capacity = geometry.n_expert_used + 4
    status = decode(**client_variables(pins, capacity, 3))["status"]
    assert (status["capacity"], status["pinned"]) == (capacity, 3)
    result = bench(**client_variables(pins, capacity, 3))
    assert (result["expert_cache_capacity"], result["expert_cache_pinned"]) == (capacity, 3)
    off = bench(**{**client_variables(pins, capacity, 3), "EXPERT_CACHE_ENABLE": "0"})
    assert (off["expert_cache"], off["expert_cache_hits"]) == ("off", 0)


def test_variables_of_the_flags_reach_llama_bench(
    bench: Run, geometry: Geometry, tmp_path: Path
) -> None:
    pins = _pin_list(tmp_path / "pins.txt", geometry.n_layer, geometry.n_expert)
    capacity = geometry.n_expert_used + 4
    result = bench(
        LLAMA_ARG_EXPERT_CACHE=str(capacity),
        LLAMA_ARG_EXPERT_CACHE_POLICY="lru",
        LLAMA_ARG_EXPERT_CACHE_PIN_LIST=str(pins),
        LLAMA_ARG_EXPERT_CACHE_PINNED="2",
        EXPERT_CACHE_ENABLE="0",
    )
    assert (result["expert_cache"], result["expert_cache_pinned"]) == (str(capacity), 2)


def test_without_a_pin_list_the_clients_number_of_pins_does_not_count(
    decode: Run, geometry: Geometry
) -> None:
    run = decode(
        EXPERT_CACHE_ENABLE="1",
        EXPERT_CACHE_CAPACITY=str(geometry.n_expert),
        EXPERT_CACHE_PINNED="4",
    )
    assert run["status"]["pinned"] == 0


def test_llama_bench_has_the_cache_as_axis_and_columns(
    binaries: dict[str, Path], geometry: Geometry, tmp_path: Path
) -> None:
    command = [
        *(str(binaries["llama-bench"]), "-m", str(MODEL), "-t", "2", "-r", "1", "-fa", "1"),
        *("-p", "0", "-n", "8", "-o", "jsonl", "--expert-cache", f"off,{geometry.n_expert}"),
    ]
    off, full = map(json.loads, run_tool(command, {}, tmp_path / "log").stdout.splitlines())
    assert (off["expert_cache"], full["expert_cache"]) == ("off", str(geometry.n_expert))
    assert (off["expert_cache_hits"], off["expert_cache_misses"]) == (0, 0)
    assert full["expert_cache_capacity"] == geometry.n_expert
    assert full["expert_cache_policy"] == "lru"
    assert full["expert_cache_pinned"] == 0
    assert full["expert_cache_misses"] == full["expert_cache_bytes_moved"] == 0
    assert full["expert_cache_hits"] > 0
    assert full["expert_cache_hit_rate"] == pytest.approx(1)
    assert full["expert_cache_vram_bytes"] >= 0
    assert {"avg_ts", "stddev_ts", "samples_ts", "samples_ns"} <= full.keys()


def test_perplexity_and_divergence_of_the_smallest_cache(
    binaries: dict[str, Path], geometry: Geometry, tmp_path: Path
) -> None:
    binary, base, log = str(binaries["llama-perplexity"]), str(tmp_path / "base"), tmp_path / "log"
    text = str(ROOT / load_study("demo").parity.text)
    off = reference_command(binary, str(MODEL), text, 6, base, 2, ("--expert-cache", "off"))
    reference = parse_reference(run_tool(off, {}, log))
    smallest = ("--expert-cache", str(geometry.n_expert_used))
    cached = divergence_command(binary, str(MODEL), base, 2, smallest)
    found = Divergence.model_validate(parse_divergence(run_tool(cached, {}, log)))
    assert found.ppl == pytest.approx(reference["ppl"], rel=1e-4)
    assert found.kl_mean < 1e-4


@pytest.fixture(scope="session")
def complaint(binaries: dict[str, Path], prompts: Path) -> Callable[..., str]:
    """Run a tool that has to fail and return what it writes to standard error."""

    def run(tool: str, model: Path, *arguments: object, **variables: str) -> str:
        command = _decode_command(binaries, model, prompts, *arguments)
        if tool == "llama-bench":
            words = ("-m", model, "-t", 2, "-r", 1, "-p", 0, "-n", 4, *arguments)
            command = [str(binaries[tool]), *map(str, words)]
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1, f"exit {done.returncode}: {done.stderr[-2000:]}"
        assert "GGML_ASSERT" not in done.stderr
        return done.stderr

    return run


def test_capacity_below_top_k_names_both(complaint: Callable[..., str], geometry: Geometry) -> None:
    for tool in ("llama-expert-bench", "llama-bench"):
        below = geometry.n_expert_used - 1
        error = complaint(tool, MODEL, "--expert-cache", below)
        assert str(below) in error
        assert str(geometry.n_expert_used) in error


@pytest.mark.parametrize("tool", ["llama-expert-bench", "llama-bench"])
@pytest.mark.parametrize("value", ["many", "-5", "8x", "", "1e9", "99999999999999999999"])
def test_malformed_capacity_is_repeated_in_the_error(
    complaint: Callable[..., str], tool: str, value: str
) -> None:
    error = complaint(tool, MODEL, "--expert-cache", value)
    assert "expert-cache" in error
    assert value in error


@pytest.mark.parametrize(
    "variables",
    [
        {"LLAMA_ARG_EXPERT_CACHE": "many"},
        {"EXPERT_CACHE_ENABLE": "1", "EXPERT_CACHE_CAPACITY": "many"},
        {"EXPERT_CACHE_ENABLE": "1", "EXPERT_CACHE_CAPACITY": "-5"},
    ],
)
def test_malformed_variable_is_named(
    complaint: Callable[..., str], variables: dict[str, str]
) -> None:
    error = complaint("llama-expert-bench", MODEL, **variables)
    name, value = list(variables.items())[-1]
    assert name in error or "expert-cache" in error
    assert value in error


@pytest.mark.parametrize("policy", ["mru", "HOT"])
def test_unknown_policy_is_refused(
    complaint: Callable[..., str], geometry: Geometry, policy: str
) -> None:
    arguments = ("--expert-cache", geometry.n_expert, "--expert-cache-policy", policy)
    assert policy in complaint("llama-expert-bench", MODEL, *arguments)


def test_unified_memory_without_a_pin_list_is_refused(complaint: Callable[..., str]) -> None:
    error = complaint("llama-bench", MODEL, EXPERT_CACHE_ENABLE="1", EXPERT_CACHE_UNIFIED="1")
    assert "EXPERT_CACHE_PIN_LIST" in error


def test_full_disk_leaves_no_result(
    binaries: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    """A file-size limit stands in for the full disk."""
    out = tmp_path / "out.jsonl"
    command = _decode_command(binaries, MODEL, prompts, "-o", out)
    limited = subprocess.run(
        ["bash", "-c", 'trap "" XFSZ; ulimit -f 1; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert limited.returncode == 1
    assert "cannot write" in limited.stderr
    assert not list(tmp_path.glob("out.jsonl*"))


@pytest.mark.parametrize("kind", ["missing", "empty", "not a pin list", "another model's"])
def test_unusable_pin_list_is_named(
    complaint: Callable[..., str], geometry: Geometry, tmp_path: Path, kind: str
) -> None:
    pins = tmp_path / "pins.txt"
    if kind == "another model's":
        _pin_list(pins, geometry.n_layer, 2 * geometry.n_expert)
    elif kind != "missing":
        pins.write_text("" if kind == "empty" else "some text\n")
    arguments = ("--expert-cache", geometry.n_expert, "--expert-cache-pin-list", pins)
    assert pins.name in complaint("llama-expert-bench", MODEL, *arguments)


def test_more_pins_than_leave_room_for_a_step_are_refused(
    complaint: Callable[..., str], geometry: Geometry, tmp_path: Path
) -> None:
    pins = _pin_list(tmp_path / "pins.txt", geometry.n_layer, geometry.n_expert)
    arguments = ("--expert-cache-pin-list", pins, "--expert-cache-pinned", 4)
    capacity = geometry.n_expert_used + 3
    error = complaint("llama-expert-bench", MODEL, "--expert-cache", capacity, *arguments)
    assert "pinned" in error


def test_truncated_model_is_refused(complaint: Callable[..., str], tmp_path: Path) -> None:
    short = cut(tmp_path / "short.gguf", MODEL, 0.7)
    assert short.name in complaint("llama-expert-bench", short, "--expert-cache", "off")


def test_another_architecture_size_needs_no_other_code(
    binaries: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    """A model of random weights and other geometry, with evictions in every step."""
    model = write_moe(tmp_path / "random.gguf")
    runs = [
        json.loads(
            run_tool(
                _decode_command(binaries, model, prompts, "--expert-cache", asked),
                {},
                tmp_path / "log",
            ).stdout
        )
        for asked in ("off", 2, 5, 16)
    ]
    assert all(said(run) == said(runs[0]) for run in runs)
    assert runs[1]["misses"] > runs[3]["misses"] == 0
