"""Replicas made with the real programs: first blocks at full width, decoded along drawn traces.

The vocabulary is the miniatures', for the size of the files; all else is the rows'. Of the row with
recurrent layers the second block has attention in place of the fourth: llama.cpp takes no model
without.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from tec import replica
from tec.build import Manifest
from tec.config import Row, load_row
from tec.replica_plan import Plan
from tec.routing_trace import write_trace
from tec.trace_generator import generate
from tec.trace_profile import profile_for

QWEN = "qwen3-30b-a3b-q8_0"
GPT_OSS = "gpt-oss-120b-mxfp4"
CODER = "qwen3-coder-next-ud-iq4_xs"
N_TOKENS = 6

# tensors, parameters, GiB of the tensors; of those that others published, parameters agree
FACTS = {
    QWEN: (579, 30_532_122_624, 30.25),
    "qwen3.5-122b-a10b-ud-iq4_xs": (879, 122_111_526_912, 61.66),
    "qwen3.5-35b-a3b-q8_0": (733, 34_660_610_688, 34.36),
    CODER: (843, 79_674_391_296, 40.23),
    GPT_OSS: (687, 116_829_156_672, 59.03),
    "glm-4.7-flash-ud-q8_k_xl": (844, 29_943_393_920, 29.65),
    "gemma-4-26b-a4b-it-bf16": (658, 25_233_142_046, 47.02),
}
LAYERS = {QWEN: 1, GPT_OSS: 1, CODER: 2}
KEYS = {CODER: {"full_attention_interval": 2}}
TYPES = {QWEN: "Q8_0", GPT_OSS: "MXFP4", CODER: "IQ4_XS"}


def planned(name: str, build: Manifest, scratch: Path) -> Plan:
    return replica.make_plan(load_row(name), build, scratch)


@pytest.mark.parametrize("name", FACTS)
def test_a_plan_has_the_parameters_of_the_real_model(
    name: str, build_manifest: Manifest, tmp_path: Path
) -> None:
    plan = planned(name, build_manifest, tmp_path)
    n_tensors, n_weights, size = FACTS[name]
    assert len(plan.tensors) == n_tensors
    assert sum(tensor.size for tensor in plan.tensors) == n_weights
    assert plan.data_size() / 2**30 == pytest.approx(size, abs=0.01)


def test_gpt_oss_has_the_size_of_the_published_file(
    build_manifest: Manifest, tmp_path: Path
) -> None:
    """63,387,346,464 bytes in three shards, of which 13,022,496 are headers."""
    plan = planned(GPT_OSS, build_manifest, tmp_path)
    assert plan.data_size() == pytest.approx(63_387_346_464 - 13_022_496, abs=2**16)


def small(name: str) -> Row:
    """Return the row with a vocabulary that text can become."""
    row = load_row(name)
    assert row.replica is not None
    changed = {"vocabulary": 4096, "keys": {**row.replica.keys, **KEYS.get(name, {})}}
    return row.model_copy(update={"replica": row.replica.model_copy(update=changed)})


@pytest.fixture(params=[QWEN, GPT_OSS, CODER])
def model(
    request: pytest.FixtureRequest, build_manifest: Manifest, tmp_path: Path
) -> Iterator[tuple[Row, Path]]:
    row = small(request.param)
    path = replica.make(row, build_manifest, tmp_path / "replicas", LAYERS[row.name])
    yield row, path
    path.unlink()


def test_it_decodes_along_a_drawn_trace_and_the_cache_changes_no_bit(
    model: tuple[Row, Path], binaries: dict[str, Path], tmp_path: Path
) -> None:
    row, path = model
    assert row.shape is not None
    n_expert, top_k = row.shape.n_expert, row.shape.n_expert_used
    experts = [t for t in gguf.GGUFReader(path).tensors if t.name.endswith("_exps.weight")]
    assert {tensor.tensor_type.name for tensor in experts} <= {TYPES[row.name], "Q5_K"}
    for tensor in experts:
        first = {expert[:64].tobytes() for expert in tensor.data.reshape(n_expert, -1)}
        assert len(first) == n_expert

    trace = generate(
        profile_for(n_expert, top_k), N_TOKENS, LAYERS[row.name], n_expert, top_k, seed=1
    )
    routing, prompts = tmp_path / "t.npy", tmp_path / "prompts.jsonl"
    write_trace(routing, trace)
    tokens = list(range(100, 100 + N_TOKENS))
    prompts.write_text(json.dumps({"id": "given", "tokens": tokens}) + "\n")

    def decode(slots: object) -> dict[str, Any]:
        words = ("-m", path, "--prompts", prompts, "--forced", "--replay", routing, "-c", 256)
        command = (binaries["llama-expert-bench"], *words, "-t", 2, "--expert-cache", slots)
        line = [str(word) for word in command]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    off, cached = decode("off"), decode(2 * top_k)
    hashes = off["prompts"][0]["logits_hash"]
    assert len(set(hashes)) == N_TOKENS
    assert len(set(off["prompts"][0]["tokens"])) > 1
    assert cached["prompts"][0]["logits_hash"] == hashes
    assert cached["hits"] > 0
    assert cached["misses"] > 0
