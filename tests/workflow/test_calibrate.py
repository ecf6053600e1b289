"""Pins on the real programs: hits counted beside LRU, and calls as published clients make them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tec import machine_lock
from tec.calibrate import BUILT_IN
from tec.calibration import choose_pins
from tec.calibration_check import capacities, default_pinned, pins_and_lru_distances
from tec.cli import main
from tec.paths import ROOT
from tec.pin_list import PinList, read_pin_list, write_pin_list
from tec.routing_trace import RoutingTrace, read_trace

MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
N_LAYER, N_EXPERT, TOP_K = 8, 64, 8
N_TOKENS = 160
TEXT = (ROOT / "configs" / "prompts" / "pydoc-heldout.txt").read_text(encoding="utf-8")

Decode = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def decode(binaries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Decode:
    """Decode held-out text token by token and return what the program counted."""
    prompts = tmp_path_factory.mktemp("calibrate") / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "text", "text": TEXT[:4000]}) + "\n")

    def run(*arguments: object) -> dict[str, Any]:
        words = ("-m", MODEL, "--prompts", prompts, "--forced", "-n", N_TOKENS, "-c", N_TOKENS)
        command = (binaries["llama-expert-bench"], *words, "-t", 2, *arguments)
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


@pytest.fixture(scope="module")
def held_out(decode: Decode, tmp_path_factory: pytest.TempPathFactory) -> RoutingTrace:
    path = tmp_path_factory.mktemp("traces") / "trace.npy"
    decode("--expert-cache", "off", "--trace-out", path)
    return read_trace(path, N_EXPERT)


@pytest.fixture(scope="module")
def pins(build_manifest: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tec calibrate` makes of the shipped model and the built-in prompt."""
    folder = tmp_path_factory.mktemp("pins")
    out = folder / "pins.txt"
    with pytest.MonkeyPatch.context() as patch:  # nothing is timed, so nobody need wait for it
        patch.setattr(machine_lock, "lock_path", lambda: folder / "lock")
        assert main(["calibrate", str(MODEL), "--out", str(out)]) == 0
    return out


def counted(decode: Decode, capacity: int, pins: Path, *pinned: object) -> dict[str, Any]:
    arguments = ("--expert-cache", capacity, "--expert-cache-pin-list", pins)
    return decode(*arguments, *(("--expert-cache-pinned", *pinned) if pinned else ()))


@pytest.mark.parametrize(
    ("capacity", "pinned"), [(16, 8), (16, 1), (32, 16), (32, 24), (48, 24), (48, 40), (64, 56)]
)
def test_counted_hits_beside_pins_are_those_predicted_at_every_token(
    decode: Decode, held_out: RoutingTrace, pins: Path, capacity: int, pinned: int
) -> None:
    run = counted(decode, capacity, pins, pinned)
    assert (run["status"]["capacity"], run["status"]["pinned"]) == (capacity, pinned)
    listed = read_pin_list(pins, N_LAYER, N_EXPERT)
    distances = pins_and_lru_distances(held_out, listed, range(N_LAYER), pinned)
    predicted = (distances < capacity).sum(axis=(1, 2))
    assert run["prompts"][0]["hits"] == predicted.tolist()
    assert (run["hits"], run["misses"]) == (predicted.sum(), (distances >= capacity).sum())


@pytest.mark.parametrize("capacity", capacities(N_EXPERT, TOP_K))
def test_the_programs_pin_by_themselves_what_the_comparison_pins(
    decode: Decode, held_out: RoutingTrace, pins: Path, capacity: int
) -> None:
    run = counted(decode, capacity, pins)
    pinned = default_pinned(capacity, TOP_K)
    assert run["status"]["pinned"] == pinned
    listed = read_pin_list(pins, N_LAYER, N_EXPERT)
    distances = pins_and_lru_distances(held_out, listed, range(N_LAYER), pinned)
    assert run["hits"] == (distances < capacity).sum()


def test_lists_shorter_than_the_pinned_pin_what_they_have(
    decode: Decode, held_out: RoutingTrace, pins: Path, tmp_path: Path
) -> None:
    whole = read_pin_list(pins)
    short = PinList(N_EXPERT, tuple(experts[: 3 * i] for i, experts in enumerate(whole.layers)))
    write_pin_list(tmp_path / "short.txt", short)
    run = counted(decode, 32, tmp_path / "short.txt", 12)
    distances = pins_and_lru_distances(held_out, short, range(N_LAYER), 12)
    assert run["prompts"][0]["hits"] == (distances < 32).sum(axis=(1, 2)).tolist()


def test_pins_of_the_text_itself_hit_more_than_those_of_another(
    held_out: RoutingTrace, pins: Path
) -> None:
    layers = tuple(range(N_LAYER))
    own = choose_pins(held_out, layers, N_LAYER)
    hits = [
        (pins_and_lru_distances(held_out, found, layers, 24) < 32).sum()
        for found in (read_pin_list(pins), own)
    ]
    assert hits[0] < hits[1]


def client_trace(
    binaries: dict[str, Path], out: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call llama-router-trace word for word as the published client does."""
    words = ["-m", str(MODEL), "-p", BUILT_IN.read_text(encoding="utf-8")[:1500], "-n", "16"]
    command = [str(binaries["llama-router-trace"]), *words, "-ngl", "99", "-ncmoe", "99"]
    variables = {**os.environ, "ROUTER_TRACE_OUT": str(out), "EXPERT_CACHE_ENABLE": "0"}
    return subprocess.run(
        [*command, "-fa", "1", *more],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def client_pins(path: Path, top_k: int) -> tuple[tuple[int, ...], ...]:
    """Read a trace and count as the published tool does."""
    raw = path.read_bytes()
    assert raw[:8] == b"RTRACE01"
    n_expert, version = np.frombuffer(raw, "<i4", 2, 8)
    assert version == 0
    record = np.dtype([("token", "<i4"), ("layer", "<i4"), ("probs", "<f4", (n_expert,))])
    records = np.frombuffer(raw[16:], record)
    lists = []
    for layer in range(records["layer"].max() + 1):
        probs = records["probs"][records["layer"] == layer]
        chosen = np.argpartition(-probs, kth=top_k - 1, axis=-1)[:, :top_k]
        counts = np.bincount(chosen.ravel(), minlength=n_expert)
        order = np.lexsort((np.arange(n_expert), -counts))
        lists.append(tuple(order[counts[order] > 0].tolist()))
    return tuple(lists)


@pytest.mark.parametrize("more", [(), ("-b", "512", "-ub", "256")])
def test_a_published_client_gets_its_trace(
    binaries: dict[str, Path], tmp_path: Path, more: tuple[str, ...]
) -> None:
    out = tmp_path / "router_trace.bin"
    done = client_trace(binaries, out, *more, EXPERT_CACHE_CAPACITY="16")
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == [out]
    words = ("trace", "pins", str(out), "--top-k", "8", "-o", str(tmp_path / "pins.txt"))
    assert main(list(words)) == 0
    assert read_pin_list(tmp_path / "pins.txt", N_LAYER).layers == client_pins(out, TOP_K)


def test_a_published_client_finds_its_programs_side_by_side(binaries: dict[str, Path]) -> None:
    names = ("llama-bench", "llama-completion", "llama-router-trace")
    assert {binaries[name].parent for name in names} == {binaries["llama-bench"].parent}
    assert all(os.access(binaries[name], os.X_OK) for name in names)


def test_a_published_client_hears_of_a_failure(binaries: dict[str, Path], tmp_path: Path) -> None:
    done = client_trace(binaries, tmp_path / "absent" / "trace.bin")
    assert done.returncode != 0
    assert "error: " in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
