"""The expert cache on a GPU: operations against the CPU's, logits against the resident model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tec.build import Manifest
from tec.paths import ROOT

MODEL = ROOT / "models/pydoc-moe/pydoc-moe.gguf"
PROMPTS = ROOT / "configs/prompts/pydoc-heldout.jsonl"
N_EXPERT = 64
SHAPES = ((8, 4, 0, 2), (64, 24, 8, 8), (128, 96, 0, 8), (512, 256, 64, 10), (2048, 2048, 0, 8))
"""Experts, slots, pinned slots and K of the caches that are compared."""


def commands(gather: bool) -> str:
    """Return the commands for `test-expert-cache`: steps of skewed routing in several shapes."""
    rng = np.random.default_rng(1)
    lines = []
    for n_expert, n_slots, n_pinned, k in SHAPES:
        pinned = rng.permutation(n_expert)[:n_pinned]
        lines.append(f"init {n_expert} {n_slots} {n_pinned} {' '.join(map(str, pinned))}")
        hot = rng.permutation(n_expert)[: max(k, n_expert // 4)]
        for _ in range(50):
            n_tokens = int(rng.integers(1, min(8, (n_slots - n_pinned) // k), endpoint=True))
            ids = [e for _ in range(n_tokens) for e in rng.permutation(hot)[:k]]
            if rng.random() < 0.3:  # a token of the others
                ids[-k:] = rng.permutation(n_expert)[:k]
            lines.append(f"step {n_tokens} {k} {' '.join(map(str, ids))}")
            ids = [e for _ in range(n_tokens) for e in rng.permutation(n_expert)[:k]]
            copied = [int(rng.integers(n, endpoint=True)) for n in range(len(ids) + 1)]
            words = [n_tokens, k, int(rng.integers(3)), *copied, *ids]
            lines.append(f"split {' '.join(map(str, words))}")
            if gather:
                ids = list(rng.integers(n_expert, size=k * rng.choice((1, 5, 40))))
                lines.append(f"gather {len(ids) // k} {k} {' '.join(map(str, ids))}")
        lines.append("table")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def operations(cuda_build: Manifest) -> Path:
    """The driver of the operations, which `tec build TARGET --tests` makes."""
    path = cuda_build.bin_dir / "test-expert-cache"
    if not path.exists():
        pytest.skip(f"{path.name} is not built: tec build {cuda_build.target} --tests")
    return path


def answers(program: Path, text: str, *words: str) -> list[str]:
    done = subprocess.run([program, *words], input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_operations_are_those_of_the_cpu(operations: Path) -> None:
    text = commands(gather=True)
    expected = answers(operations, text)
    assert not [line for line in expected if line.startswith("error")]
    assert answers(operations, text, "--backend", "CUDA0") == expected


def test_operations_without_mapped_memory_are_those_of_the_cpu(operations: Path) -> None:
    text = commands(gather=False)
    assert answers(operations, text, "--backend", "CUDA0", "--unmapped") == answers(
        operations, text
    )


def test_the_device_asks_the_host_through_a_mailbox(operations: Path) -> None:
    program = operations.with_name("test-expert-host")
    words = [str(program), "--backend", "CUDA0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_contexts_leave_nothing_behind(cuda_build: Manifest) -> None:
    """Nor in the card's memory, which nobody else may use meanwhile."""
    program = cuda_build.bin_dir / "test-expert-cache-contexts"
    if not program.exists():
        pytest.skip(f"{program.name} is not built: tec build {cuda_build.target} --tests")
    words = [str(program), "-m", str(MODEL), "-ngl", "99"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def decode(build: Manifest, out: Path, *words: object) -> list[dict[str, Any]]:
    command = [build.bin_dir / "llama-expert-bench", "-m", MODEL, "--prompts", PROMPTS, "-o", out]
    common = ("-ngl", 99, "-fa", 1, "-c", 4096, "-n", 48)
    subprocess.run([str(w) for w in (*command, *common, *words)], capture_output=True, check=True)
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("slots", [8, 16, 40, N_EXPERT])
def test_logits_are_those_of_the_resident_model(
    cuda_build: Manifest, tmp_path: Path, slots: int
) -> None:
    """Prompts are gathered, and so are batches that the slots cannot hold."""
    several = ("--parallel", "1,2,4,8")
    resident = decode(cuda_build, tmp_path / "resident.jsonl", *several)
    words = ("-ncmoe", 99, "--expert-cache", slots)
    cached = decode(cuda_build, tmp_path / "cached.jsonl", *several, *words)
    for one, other in zip(resident, cached, strict=True):
        hashes = [[prompt["logits_hash"] for prompt in run["prompts"]] for run in (one, other)]
        assert hashes[0] == hashes[1], f"{one['parallel']} sequences"
        assert other["status"]["store_pinned"]
    assert (cached[0]["misses"] > 0) == (slots < N_EXPERT)


@pytest.mark.parametrize("slots", [8, 40, N_EXPERT])
def test_the_policy_hot_says_what_the_resident_model_says(
    cuda_build: Manifest, tmp_path: Path, slots: int
) -> None:
    """To the bit where every expert has a slot; else the CPU's sums differ in the last bits."""
    several = ("--parallel", "1,4,16")
    resident = decode(cuda_build, tmp_path / "resident.jsonl", *several)
    hot = ("-ncmoe", 99, "--no-repack", "--moe-hot-k", slots, "--moe-hot-rebalance-interval", 7)
    runs = decode(cuda_build, tmp_path / "hot.jsonl", *several, *hot)
    again = decode(cuda_build, tmp_path / "again.jsonl", *several, *hot)
    for one, other, repeated in zip(resident, runs, again, strict=True):
        pairs = list(zip(one["prompts"], other["prompts"], strict=True))
        same = sum(a["tokens"] == b["tokens"] for a, b in pairs)
        assert same >= 0.9 * len(pairs), f"{one['parallel']} sequences"
        assert other["prompts"] == [
            {**prompt, "token_ns": mine["token_ns"], "prompt_ns": mine["prompt_ns"]}
            for prompt, mine in zip(repeated["prompts"], other["prompts"], strict=True)
        ]
        if slots == N_EXPERT and one["parallel"] <= 8:
            assert all(a["logits_hash"] == b["logits_hash"] for a, b in pairs)
        assert other["computed"] == other["misses"]
        assert (other["misses"] > 0) == (slots < N_EXPERT)


@pytest.mark.parametrize("rates", ["1,1,1000,1000", "1000,1000,1,1", "1,10,1,10"])
def test_the_policy_hybrid_says_what_the_resident_model_says(
    cuda_build: Manifest, tmp_path: Path, rates: str
) -> None:
    """To the bit if all misses are copied; else the CPU's sums differ in the last bits."""
    several = ("--parallel", "1,2,4")
    resident = decode(cuda_build, tmp_path / "resident.jsonl", *several)
    words = ("-ncmoe", 99, "--no-repack", "--expert-cache", 40, "--expert-cache-policy", "hybrid")
    hybrid = (*several, *words, "--expert-cache-rates", rates)
    runs = decode(cuda_build, tmp_path / "hybrid.jsonl", *hybrid)
    again = decode(cuda_build, tmp_path / "again.jsonl", *hybrid)
    for one, other, repeated in zip(resident, runs, again, strict=True):
        pairs = list(zip(one["prompts"], other["prompts"], strict=True))
        same = sum(a["tokens"] == b["tokens"] for a, b in pairs)
        assert same >= 0.9 * len(pairs), f"{one['parallel']} sequences"
        assert [prompt["logits_hash"] for prompt in other["prompts"]] == [
            prompt["logits_hash"] for prompt in repeated["prompts"]
        ]
        assert other["status"]["device_asks"]
        if rates == "1,1,1000,1000":
            assert all(a["logits_hash"] == b["logits_hash"] for a, b in pairs)
            assert other["computed"] == 0
        else:
            assert other["computed"] > 0
