"""Expert weights in the layouts llama.cpp gives them, and what llama-router-trace records."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_files import N_EXPERT, N_EXPERT_USED, N_LAYER, write_dense, write_moe

N_GEN = 12
PROMPTS = ("def f(x): return x", "hello world", "the head of the herd")

Trace = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with unquantised experts."""
    return write_moe(tmp_path_factory.mktemp("models") / "plain.gguf")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [json.dumps({"id": text[:3], "text": text}) for text in PROMPTS]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def quantised(
    binaries: dict[str, Path], plain: Path, tmp_path: Path
) -> Callable[[str, str, str], Path]:
    """Return a function that gives the experts' gate, up and down one type each."""

    def make(gate: str, up: str, down: str) -> Path:
        path = tmp_path / "quantised.gguf"
        types = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
        words = [word for item in types.items() for word in ("--tensor-type", "=".join(item))]
        subprocess.run(
            [binaries["llama-quantize"], *words, plain, path, "q8_0"],
            check=True,
            capture_output=True,
        )
        return path

    return make


@pytest.fixture
def decode(binaries: dict[str, Path], prompts: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that decodes the prompts with a model and more arguments."""

    def run(model: Path, *arguments: object) -> dict[str, Any]:
        words = ("-m", model, "--prompts", prompts, "-n", N_GEN, "-t", 1, "-c", 512, *arguments)
        command = [str(binaries["llama-expert-bench"]), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def hashes(run: dict[str, Any]) -> list[list[str]]:
    return [prompt["logits_hash"] for prompt in run["prompts"]]


@pytest.mark.parametrize(
    "types",
    [("q4_0", "q4_0", "q8_0"), ("q8_0", "iq4_nl", "q4_0"), ("f16", "q4_0", "iq4_nl")],
    ids="-".join,
)
def test_mixed_layouts_are_bitwise_those_of_off(
    quantised: Callable[[str, str, str], Path],
    decode: Callable[..., dict[str, Any]],
    types: tuple[str, str, str],
) -> None:
    """Some types are repacked for the CPU when they are loaded, others are not."""
    model = quantised(*types)
    off = hashes(decode(model, "--expert-cache", "off"))
    for capacity in (N_EXPERT_USED, N_EXPERT_USED + 3, N_EXPERT):
        assert hashes(decode(model, "--expert-cache", capacity)) == off, f"capacity {capacity}"


def test_one_expert_per_token_and_one_slot(
    quantised: Callable[[str, str, str], Path], decode: Callable[..., dict[str, Any]]
) -> None:
    model = quantised("q4_0", "q4_0", "q4_0")
    top_1 = ("--override-kv", "qwen3moe.expert_used_count=int:1")
    off = hashes(decode(model, *top_1, "--expert-cache", "off"))
    cached = decode(model, *top_1, "--expert-cache", 1)
    assert hashes(cached) == off
    assert cached["misses"] > 0


@pytest.mark.parametrize("batch", [2, 3])
def test_lockstep_decoding_with_evictions(
    plain: Path, decode: Callable[..., dict[str, Any]], batch: int
) -> None:
    parallel = ("--parallel", batch)
    off = hashes(decode(plain, *parallel, "--expert-cache", "off"))
    cached = decode(plain, *parallel, "--expert-cache", N_EXPERT_USED * batch)
    assert hashes(cached) == off
    assert cached["misses"] > 0


def test_prompts_and_decoding_in_turns_keep_their_buffers(
    plain: Path, decode: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler aborts if it has to allocate anew what was reserved."""
    monkeypatch.setenv("GGML_SCHED_DEBUG_REALLOC", "2")
    decode(plain, "-ub", 8, "-b", 16, "--expert-cache", N_EXPERT_USED)


def trace(binaries: dict[str, Path], model: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = (binaries["llama-router-trace"], "-m", model, "-p", PROMPTS[0], "-n", 5, "-c", 256)
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env={"ROUTER_TRACE_OUT": str(out), "PATH": "/usr/bin:/bin"},
    )


def read_trace(path: Path) -> Trace:
    """Return (tokens, layers, scores): [records], [records], [records, N]."""
    content = path.read_bytes()
    assert content[:8] == b"RTRACE01"
    n_expert, version = np.frombuffer(content, "<i4", 2, 8)
    assert version == 0
    record = np.dtype([("token", "<i4"), ("layer", "<i4"), ("scores", "<f4", (n_expert,))])
    assert (len(content) - 16) % record.itemsize == 0
    records = np.frombuffer(content, record, offset=16)
    return records["token"], records["layer"], records["scores"]


def test_trace_has_every_token_and_layer_once(
    binaries: dict[str, Path], plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trace.bin"
    assert trace(binaries, plain, out).returncode == 0
    tokens, layers, scores = read_trace(out)
    n_tokens = tokens.max() + 1
    assert n_tokens > 5
    pairs = list(zip(tokens.tolist(), layers.tolist(), strict=True))
    assert pairs == [(token, layer) for token in range(n_tokens) for layer in range(N_LAYER)]
    assert scores.shape[1] == N_EXPERT
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_failed_trace_leaves_no_file(
    binaries: dict[str, Path], plain: Path, tmp_path: Path
) -> None:
    dense = trace(binaries, write_dense(tmp_path / "dense.gguf"), tmp_path / "trace.bin")
    assert dense.returncode == 1
    assert "no experts" in dense.stderr
    folder = trace(binaries, plain, tmp_path)
    assert folder.returncode == 1
    assert "not a regular file" in folder.stderr
    assert not list(tmp_path.glob("trace.bin*"))
