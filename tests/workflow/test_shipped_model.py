"""The cache inside llama.cpp's own programs on the shipped model: text, log and graph."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tec.gguf_file import Geometry, read_geometry
from tec.paths import ROOT

MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
_GRAPH = re.compile(r"sched_reserve: graph(?: \(pp.*?\))?: nodes = (\d+)(?: / (\d+))?,")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    return read_geometry(MODEL)


@pytest.fixture
def run(binaries: dict[str, Path]) -> Run:
    """Return a function that runs a program on the shipped model; its log goes to stderr."""

    def start(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in (binaries[tool], "-m", MODEL, "-t", 1, *arguments)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    return start


def test_completion_writes_the_same_text(run: Run, geometry: Geometry) -> None:
    def complete(slots: object) -> subprocess.CompletedProcess[str]:
        sampling = ("--temp", 0, "-n", 16, "-c", 512, "-no-cnv", "-p", "def main():")
        return run("llama-completion", *sampling, "-lv", 4, "-cmoe", "--expert-cache", slots)

    off = complete("off")
    assert len(off.stdout) > len("def main():")
    assert "expert cache: engaged" not in off.stderr
    for slots in (geometry.n_expert_used, geometry.n_expert // 2):
        cached = complete(slots)
        assert cached.stdout == off.stdout
        assert f"expert cache: engaged: lru, {slots} of {geometry.n_expert} experts" in (
            cached.stderr
        )


@pytest.fixture
def nodes(run: Run, tmp_path: Path) -> Callable[..., tuple[int, int]]:
    """Return a function that gives the nodes of the prompt's and of the decoding graph."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "a", "text": "def main():"}) + "\n")

    def count(*arguments: object) -> tuple[int, int]:
        words = ("--prompts", prompts, "-n", 2, "-c", 512, "-lv", 4, *arguments)
        log = run("llama-expert-bench", *words).stderr
        found = _GRAPH.findall(log)
        assert found, log[-2000:]
        prompt, decode = found[-1]  # they are one number where they are equal
        return int(prompt), int(decode or prompt)

    return count


def test_off_is_upstreams_graph_and_on_adds_two_nodes_a_layer(
    nodes: Callable[..., tuple[int, int]], geometry: Geometry
) -> None:
    """Prompts of more tokens than the slots can serve keep upstream's graph with the cache on."""
    prompt, decode = nodes("--expert-cache", "off")
    assert prompt == decode
    assert nodes() == (prompt, decode)
    for slots in (geometry.n_expert_used, geometry.n_expert):
        assert nodes("--expert-cache", slots) == (prompt, decode + 2 * geometry.n_moe_layers)
