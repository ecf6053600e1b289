"""What the programs record and count, against what the library reads and predicts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_files import N_EXPERT, N_EXPERT_USED, write_moe
from pin_lists import RIGHT, WRONG
from tec.locality import stack_distances
from tec.paths import ROOT
from tec.pin_list import most_used, write_pin_list
from tec.routing_trace import RoutingTrace, read_trace
from tec.rtrace import open_rtrace, to_selections

N_TOKENS = 200
TEXT = (ROOT / "configs" / "prompts" / "pydoc-heldout.txt").read_text(encoding="utf-8")[:4000]

Decode = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("locality")
    (path / "prompts.jsonl").write_text(json.dumps({"id": "text", "text": TEXT}) + "\n")
    write_moe(path / "model.gguf")
    return path


@pytest.fixture(scope="module")
def decode(binaries: dict[str, Path], folder: Path) -> Decode:
    """Decode the text's tokens one by one."""

    def run(*arguments: object, n_tokens: int = N_TOKENS, error: str = "") -> dict[str, Any]:
        words = ("-m", folder / "model.gguf", "--prompts", folder / "prompts.jsonl", "--forced")
        sizes = ("-n", n_tokens, "-c", N_TOKENS, "-t", 1)
        command = [str(word) for word in (binaries["llama-expert-bench"], *words, *sizes)]
        done = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        if error:
            assert done.returncode != 0
            assert error in done.stderr
            return {}
        assert done.returncode == 0, done.stderr[-2000:]
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


@pytest.fixture(scope="module")
def trace(decode: Decode, folder: Path) -> RoutingTrace:
    """The routing of the text, as the program recorded it."""
    decode("--expert-cache", "off", "--trace-out", folder / "trace.npy")
    return read_trace(folder / "trace.npy", N_EXPERT)


@pytest.mark.parametrize("capacity", [N_EXPERT_USED, 3, N_EXPERT // 2, N_EXPERT])
def test_counted_hits_of_every_token_are_those_predicted(
    decode: Decode, trace: RoutingTrace, capacity: int
) -> None:
    counted = decode("--expert-cache", capacity)["prompts"][0]["hits"]
    predicted = (stack_distances(trace, "lru") < capacity).sum(axis=(1, 2)).tolist()
    assert len(counted) == N_TOKENS
    assert counted == predicted


def test_router_trace_has_the_same_selections(
    binaries: dict[str, Path], trace: RoutingTrace, folder: Path
) -> None:
    """One token at a time, so that every sum is made in the same order."""
    out = folder / "scores.rtrace"
    words = ("-m", folder / "model.gguf", "-p", TEXT, "-n", 0, "-b", 1, "-ub", 1, "-t", 1)
    command = [str(word) for word in (binaries["llama-router-trace"], *words, "-c", 4096)]
    subprocess.run(command, check=True, capture_output=True, env={"ROUTER_TRACE_OUT": str(out)})
    found = to_selections(open_rtrace(out, N_EXPERT), N_EXPERT_USED).selections[:N_TOKENS]
    assert (np.sort(found, axis=2) == np.sort(trace.selections, axis=2)).all()


def pinned(decode: Decode, path: Path, error: str = "") -> dict[str, Any]:
    arguments = ("--expert-cache", 8, "--expert-cache-pin-list", path)
    return decode(*arguments, n_tokens=4, error=error)


@pytest.mark.parametrize(("text", "line"), WRONG.items())
def test_wrong_pin_lists_are_refused_at_the_same_line(
    decode: Decode, tmp_path: Path, text: str, line: str
) -> None:
    (tmp_path / "pins").write_bytes(text.encode())
    pinned(decode, tmp_path / "pins", f"pins', {line}: ")


@pytest.mark.parametrize("text", RIGHT)
def test_right_pin_lists_are_accepted(decode: Decode, tmp_path: Path, text: str) -> None:
    (tmp_path / "pins").write_bytes(text.encode())
    assert pinned(decode, tmp_path / "pins")["status"]["engaged"]


def test_pin_lists_made_from_traces_are_accepted(
    decode: Decode, trace: RoutingTrace, tmp_path: Path
) -> None:
    write_pin_list(tmp_path / "pins", most_used(trace))
    assert pinned(decode, tmp_path / "pins")["status"]["pinned"] == 4
