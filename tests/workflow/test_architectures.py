"""The cache on many architectures: tiny random models of upstream's generator, bit by bit.

`test-llama-archs` saves them with two experts; they get eight here, so that slots have to be given
up. Between them they have expert biases (gpt-oss), expert scales, merged gate and up weights
(deepseek2, mistral4), shared experts, dense first layers, recurrent layers (qwen35moe, qwen3next,
kimi-linear, lfm2moe, nemotron_h_moe), experts without a gate (nemotron_h_moe) and several gating
functions. The generator makes nemotron_h_moe dense only, so its layers are made experts here; it
makes no gemma4.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from gguf_files import N_EXPERT_USED, split, widen
from programs import run_program

N_WIDE = 8
N_GEN = 8
ARCHITECTURES = (
    *("qwen35moe", "qwen3next", "gpt-oss", "deepseek2", "nemotron_h_moe", "llama"),
    *("qwen3moe", "glm4moe"),
    *("afmoe", "arctic", "bailingmoe2", "cohere2moe", "dbrx", "dots1", "ernie4_5-moe"),
    *("exaone-moe", "grok", "grovemoe", "hunyuan-moe", "kimi-linear", "lfm2moe", "llama4"),
    *("minimax-m2", "mistral4", "olmoe", "qwen2moe", "smallthinker"),
)

Decode = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ("hello world", "the head")
    path.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def model(
    request: pytest.FixtureRequest, binaries: dict[str, Path], tmp_path: Path
) -> Iterator[Path]:
    """A model of the architecture that the test asks for, with eight experts a layer."""
    words = ("-a", request.param, "-s", "1", "-o", str(tmp_path))
    subprocess.run([binaries["test-llama-archs"], *words], check=True, capture_output=True)
    path, sparse = tmp_path / "wide.gguf", tmp_path / f"{request.param}-moe.gguf"
    if sparse.exists():
        yield widen(path, sparse, N_WIDE)
    else:
        yield split(path, tmp_path / f"{request.param}-dense.gguf", N_WIDE)
    path.unlink()


@pytest.fixture
def decode(binaries: dict[str, Path], model: Path, prompts: Path) -> Decode:
    """Return a function that decodes the prompts with so many slots and sequences at once."""

    def run(
        slots: object, *more: object, parallel: int = 1, plain: bool = False, **variables: str
    ) -> dict[str, Any]:
        words = ("-m", model, "--prompts", prompts, "-n", N_GEN, "-t", 1, "-c", 256)
        arm = ("--parallel", parallel, "--expert-cache", slots, *more)
        layout = ("--no-repack",) if plain else ()
        command = (binaries["llama-expert-bench"], *words, *arm, *layout)
        done = run_program(command, 120, **variables)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def hashes(run: dict[str, Any]) -> list[list[str]]:
    return [prompt["logits_hash"] for prompt in run["prompts"]]


@pytest.mark.parametrize("model", ARCHITECTURES, indirect=True)
def test_logits_are_those_of_off(decode: Decode) -> None:
    off = decode("off")
    assert off["misses"] == off["hits"] == 0
    for slots in (N_EXPERT_USED, N_WIDE - 3, N_WIDE):
        cached = decode(slots)
        assert hashes(cached) == hashes(off), f"{slots} slots"
        assert (cached["misses"] > 0) == (slots < N_WIDE), f"{slots} slots"
    two = decode(2 * N_EXPERT_USED, parallel=2)
    assert hashes(two) == hashes(decode("off", parallel=2))
    assert two["misses"] > 0


CPU_COMPUTES = (
    *("gpt-oss", "deepseek2", "qwen3moe", "nemotron_h_moe", "llama4", "grok", "qwen35moe"),
    *("glm4moe", "grovemoe", "arctic"),
)


@pytest.mark.parametrize("model", CPU_COMPUTES, indirect=True)
def test_the_cpu_computes_misses_as_the_graph_does(decode: Decode) -> None:
    """With too few slots: biases, scales, merged weights, every activation."""
    off = decode("off", plain=True)
    hot = ("--expert-cache-policy", "hot")
    for slots in (N_EXPERT_USED + 1, N_WIDE - 3, N_WIDE):
        run = decode(slots, *hot, plain=True)
        assert_close(run, off)
        assert (run["computed"] > 0) == (slots < N_WIDE), f"{slots} slots"
    assert hashes(run) == hashes(off)


@pytest.mark.parametrize("model", CPU_COMPUTES, indirect=True)
def test_some_misses_are_copied_and_some_computed(decode: Decode) -> None:
    """By the policy hybrid, whose bits do not depend on how a device asks for the latter."""
    off = decode("off", plain=True)
    rates = ("--expert-cache-policy", "hybrid", "--expert-cache-rates", "1,10,1,10")
    handed = decode(N_EXPERT_USED + 1, *rates, plain=True)
    assert_close(handed, off)
    assert 0 < handed["computed"] < handed["misses"]
    asked = decode(N_EXPERT_USED + 1, *rates, plain=True, LLAMA_EXPERT_WORKER="1")
    assert asked["status"]["device_asks"]
    assert hashes(asked) == hashes(handed)


def assert_close(run: dict[str, Any], off: dict[str, Any]) -> None:
    """Assert equal tokens, and margins but for the order of sums."""
    assert run["status"]["engaged"], run["status"]["reason"]
    for mine, other in zip(run["prompts"], off["prompts"], strict=True):
        assert mine["logits_margin"] == pytest.approx(other["logits_margin"], abs=1e-3)
        assert mine["tokens"] == other["tokens"]


def tensors(path: Path) -> set[str]:
    return {tensor.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("gpt-oss", "blk.0.ffn_down_exps.bias"),
        ("deepseek2", "blk.1.ffn_gate_up_exps.weight"),
        ("qwen3moe", "blk.0.ffn_gate_exps.scale"),
        ("glm4moe", "blk.1.ffn_gate_shexp.weight"),
    ],
    indirect=["model"],
)
def test_the_models_have_what_they_are_tested_for(model: Path, tensor: str) -> None:
    assert tensor in tensors(model)
