"""Unified memory: pinned experts live in slots only, and everything else stays as it was.

On the CPU back end slots are host memory too, so that what is saved shows in the peak of the
process: the host copies of the pinned experts.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_files import N_EXPERT_USED, Size, write_hollow_moe, write_moe, write_split_moe
from tec.paths import ROOT
from tec.pin_list import PinList, write_pin_list

PYDOC = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
SIZE = Size(n_layer=8, n_expert=32, n_ff=256)
EXPERTS_BYTES = SIZE.n_layer * SIZE.n_expert * SIZE.expert_bytes
CAPACITY, PINNED = 16, 14
PINNED_BYTES = SIZE.n_layer * PINNED * SIZE.expert_bytes
HUGE = Size(n_layer=2, n_expert=16, n_ff=2**23)  # 192 GiB
TEXT = "def head(tree): return tree.he if tree else None  # the head of the herd"

Bench = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = write_moe(tmp_path_factory.mktemp("models") / "wide.gguf", SIZE)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hollow_moe(tmp_path_factory.mktemp("models") / "hollow.gguf", HUGE)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"id": str(number), "text": TEXT[number:]} for number in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def bench(binaries: dict[str, Path], prompts: Path) -> Bench:
    """Return a function that runs llama-expert-bench with more arguments and variables."""

    def run(
        model: Path, *words: object, data_limit: int | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command = [binaries["llama-expert-bench"], "-m", model, "--prompts", prompts]
        line = [*command, "-n", 8, "-t", 1, "-c", 512, "-ub", 64, "--no-repack", *words]

        def limit() -> None:
            if data_limit is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))

        return subprocess.run(
            [str(word) for word in line],
            env={**os.environ, **variables},
            preexec_fn=limit,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr[-3000:]
    return done.stderr.splitlines()[-1]


def said(run: dict[str, Any]) -> list[tuple[list[int], list[str]]]:
    return [(prompt["tokens"], prompt["logits_hash"]) for prompt in run["prompts"]]


def pin_list(path: Path, n_layer: int, n_expert: int, n_listed: int) -> Path:
    """Write a list of every other expert, then the rest, from a start that differs by layer."""
    order = [*range(0, n_expert, 2), *range(1, n_expert, 2)]
    layers = [tuple((e + layer) % n_expert for e in order[:n_listed]) for layer in range(n_layer)]
    write_pin_list(path, PinList(n_expert=n_expert, layers=tuple(layers)))
    return path


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    return pin_list(tmp_path / "pins.txt", SIZE.n_layer, SIZE.n_expert, SIZE.n_expert)


def unified(capacity: object, pinned: object, pins: Path) -> list[object]:
    words: list[object] = ["--expert-cache-unified", "--expert-cache-pin-list", pins]
    words += ["--expert-cache", capacity] if capacity is not None else []
    return [*words, "--expert-cache-pinned", pinned] if pinned is not None else words


@pytest.mark.parametrize("parallel", [1, 2])
def test_logits_are_bitwise_those_of_off(
    bench: Bench, pins: Path, model: Path, parallel: int
) -> None:
    """Prompts and, with few slots left, two sequences are more than the slots serve."""
    batch = ["--parallel", parallel]
    off = said(result(bench(model, "--expert-cache", "off", *batch)))
    for capacity, pinned in ((N_EXPERT_USED + 1, 1), (CAPACITY, PINNED), (32, 20), (32, 30)):
        run = result(bench(model, *unified(capacity, pinned, pins), *batch))
        assert said(run) == off, (capacity, pinned)
        assert (run["status"]["capacity"], run["status"]["pinned"]) == (capacity, pinned)


def test_the_shipped_model_says_the_same(bench: Bench, tmp_path: Path) -> None:
    pins = pin_list(tmp_path / "pins.txt", 8, 64, 40)
    off = result(bench(PYDOC, "--expert-cache", "off"))
    run = result(bench(PYDOC, *unified(48, 32, pins), "-r", 1))
    assert said(run) == said(off)
    assert run["misses"] > 0


def test_counters_are_those_of_pins_with_host_copies(bench: Bench, pins: Path, model: Path) -> None:
    words = unified(CAPACITY, 8, pins)
    run = result(bench(model, *words))
    plain = result(bench(model, *words[1:]))
    assert (run["hits"], run["misses"]) == (plain["hits"], plain["misses"])
    assert (run["status"]["unified"], plain["status"]["unified"]) == (True, False)


def test_a_reset_keeps_pinned_experts(bench: Bench, pins: Path, model: Path) -> None:
    """The second repetition begins with a reset, which fills the other slots only."""
    done = bench(model, *unified(CAPACITY, PINNED, pins), "-r", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert said(first) == said(second)
    assert first["hits"] == second["hits"]


def test_pinned_experts_have_no_host_copy(bench: Bench, pins: Path, model: Path) -> None:
    copies = result(bench(model, *unified(CAPACITY, PINNED, pins)[1:], "--load-mode", "none"))
    run = result(bench(model, *unified(CAPACITY, PINNED, pins)))
    status = run["status"]
    assert status["device_only_bytes"] == PINNED_BYTES
    assert status["host_bytes"] == EXPERTS_BYTES - PINNED_BYTES
    saved = copies["memory"]["host_peak_bytes"] - run["memory"]["host_peak_bytes"]
    assert saved > 0.75 * PINNED_BYTES  # less what is gathered for a layer of a prompt


def test_a_limit_that_copies_would_exceed(bench: Bench, pins: Path, tmp_path: Path) -> None:
    """With less private memory than the cache with copies needs, unified memory still runs."""
    size = replace(SIZE, n_ff=4 * SIZE.n_ff)  # memory that no copies save differs from run to run
    model = write_moe(tmp_path / "large.gguf", size)
    words = [*unified(CAPACITY, PINNED, pins), "--load-mode", "none"]
    step = size.n_layer * PINNED * size.expert_bytes // 4
    limit = size.n_layer * (size.n_expert + CAPACITY) * size.expert_bytes + (64 << 20)
    assert bench(model, *words[1:], data_limit=limit).returncode != 0
    while bench(model, *words[1:], data_limit=limit + step).returncode != 0:
        limit += step
        assert limit < 2**30
    run = result(bench(model, *words, data_limit=limit))
    assert said(run) == said(result(bench(model, "--expert-cache", "off")))
    model.unlink()


@pytest.mark.parametrize("mode", ["none", "mmap", "dio"])
def test_load_modes(bench: Bench, pins: Path, model: Path, mode: str) -> None:
    off = result(bench(model, "--expert-cache", "off"))
    words = [*unified(CAPACITY, PINNED, pins), "--load-mode", mode, "--check-tensors"]
    assert said(result(bench(model, *words))) == said(off)


def test_split_files(bench: Bench, tmp_path: Path) -> None:
    first, *_ = write_split_moe(tmp_path / "split.gguf")
    pins = pin_list(tmp_path / "pins.txt", 2, 16, 16)
    off = result(bench(first, "--expert-cache", "off"))
    assert said(result(bench(first, *unified(8, 4, pins)))) == said(off)


def test_half_of_the_slots_are_pinned_by_default(bench: Bench, pins: Path, model: Path) -> None:
    run = result(bench(model, *unified(CAPACITY, None, pins)))
    assert run["status"]["pinned"] == CAPACITY // 2
    automatic = result(bench(model, *unified(None, None, pins)))["status"]
    assert automatic["requested"] == "auto"
    assert 1 <= automatic["pinned"] <= automatic["capacity"] - N_EXPERT_USED


def test_a_short_list_pins_what_it_names(bench: Bench, model: Path, tmp_path: Path) -> None:
    pins = pin_list(tmp_path / "short.txt", SIZE.n_layer, SIZE.n_expert, 3)
    run = result(bench(model, *unified(CAPACITY, 8, pins)))
    assert run["status"]["device_only_bytes"] == SIZE.n_layer * 3 * SIZE.expert_bytes
    assert said(run) == said(result(bench(model, "--expert-cache", "off")))


def test_variables_of_existing_clients_are_a_unified_run(
    bench: Bench, pins: Path, model: Path
) -> None:
    variables = {
        "EXPERT_CACHE_ENABLE": "1",
        "EXPERT_CACHE_CAPACITY": str(CAPACITY),
        "EXPERT_CACHE_PIN_LIST": str(pins),
    }
    run = result(bench(model, **variables))
    status = run["status"]
    assert (status["unified"], status["capacity"], status["pinned"]) == (True, 16, 8)
    assert said(run) == said(result(bench(model, **{**variables, "EXPERT_CACHE_ENABLE": "0"})))
    more = {"EXPERT_CACHE_PINNED": "5", "EXPERT_CACHE_UNIFIED": "1"}
    assert result(bench(model, **variables, **more))["status"]["pinned"] == 5
    without = result(bench(model, **variables, EXPERT_CACHE_UNIFIED="0"))["status"]
    assert (without["unified"], without["pinned"]) == (False, 8)


def test_llama_bench_has_it_as_axis_and_column(
    binaries: dict[str, Path], pins: Path, model: Path
) -> None:
    command = [binaries["llama-bench"], "-m", model, "-t", 1, "-r", 1, "-p", 32, "-n", 4]
    command += ["-o", "jsonl", *unified(CAPACITY, None, pins)[1:], "--expert-cache-unified", "0,1"]
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["expert_cache_unified"] for row in rows] == [False, False, True, True]


def test_a_model_that_cannot_fit_is_refused_before_it_is_read(
    bench: Bench, hollow: Path, tmp_path: Path
) -> None:
    pins = pin_list(tmp_path / "pins.txt", HUGE.n_layer, HUGE.n_expert, HUGE.n_expert)
    error = complaint(bench(hollow, *unified("auto", None, pins)))
    assert "unified memory does not fit: of 192.00 GiB of experts" in error
    assert "free host memory" in error
    assert hollow.stat().st_blocks * 512 < 1 << 20
    assert "does not fit" in complaint(bench(hollow, *unified(8, 4, pins)))


def test_settings_that_make_no_sense_are_refused(
    bench: Bench, pins: Path, model: Path, tmp_path: Path
) -> None:
    listless = bench(model, "--expert-cache-unified", "--expert-cache", CAPACITY)
    assert "needs a pin list" in complaint(listless)
    assert "at least 1" in complaint(bench(model, *unified(CAPACITY, 0, pins)))
    error = complaint(bench(model, *unified(CAPACITY, CAPACITY - 1, pins)))
    assert f"15 of 16 slots pinned leave fewer than the {N_EXPERT_USED}" in error
    assert "capacity of at least 3" in complaint(bench(model, *unified(2, None, pins)))
    empty = pin_list(tmp_path / "empty.txt", SIZE.n_layer, SIZE.n_expert, 0)
    assert "names no expert" in complaint(bench(model, *unified(CAPACITY, 4, empty)))
    other = pin_list(tmp_path / "other.txt", SIZE.n_layer, 64, 8)
    assert "belongs to another model" in complaint(bench(model, *unified(CAPACITY, 4, other)))
    locked = bench(model, *unified(CAPACITY, 4, pins), "--load-mode", "mlock")
    assert "leave out mlock" in complaint(locked)


def test_a_host_limit_occupies_the_rest(bench: Bench) -> None:
    error = complaint(bench(PYDOC, "--host-limit", 9_999_999))
    found = re.search(r"the host has (\d+) MiB available, fewer than the limit", error)
    assert found, error
    available = int(found[1])
    limit = min(available - 2048, available * 3 // 4)  # others take and give some meanwhile
    if limit < 2048:
        pytest.skip("less than 4 GiB of host memory are available")
    run = result(bench(PYDOC, "--host-limit", limit))
    assert run["host_limit_bytes"] == limit << 20
    assert run["memory"]["host_peak_bytes"] < 1 << 30  # the ballast is another's
