"""What is generated stays the same as long as its version does.

A test that fails here has found a generator that gives something else than before: raise the
version that it names, so that kept files are made again, and write the new hash beside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from fake_study import make_model, make_row, make_study
from fake_tools import install
from tec import (
    inputs,
    perplexity,
    replay_inputs,
    replica,
    replica_weights,
    trace_generator,
    trace_profile,
    vram_search,
)
from tec.config import ReplayProtocol, Row
from tec.measure_key import settings_key
from tec.miniature_weights import Tensor
from tec.placement import FIT_TARGETS
from tec.records import Protocol
from tec.replica_blocks import BLOCKS
from tec.replica_file import write_replica
from tec.replica_plan import Plan, Weights
from tec.trace_profile import PROFILES, inclusion, load_profile
from tec.vram_search import most_that_fit


def sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


METADATA: dict[str, Any] = {
    "general.architecture": "qwen3moe",
    "qwen3moe.block_count": 1,
    "tokenizer.ggml.tokens": ["a", "b"],
    "tokenizer.ggml.token_type": [1, 3],
}
TENSORS = (
    Weights("token_embd.weight", (256, 5), "Q8_0"),
    Weights("blk.0.attn_norm.weight", (256,), "F32"),
    Weights("blk.0.ffn_gate_inp.weight", (256, 4), "F32"),
    *(Weights(f"blk.0.ffn_down_exps.{kind}.weight", (256, 4, 2), kind) for kind in BLOCKS),
    Weights("output.weight", (256, 5), "BF16"),
    Weights("blk.0.ffn_up_exps.weight", (256, 32, 200), "MXFP4"),  # of several pieces
)


def test_bytes_of_a_replica(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_replica(Plan("tiny", 7, 5, METADATA, TENSORS), path, lambda *_: None, threads=1)
    assert (replica_weights.VERSION, sha256(path.read_bytes())) == (1, "d900beb13cd56277")


def test_plan_of_a_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [Tensor(t.name, t.shape) for t in TENSORS]
    monkeypatch.setattr(replica, "list_tensors", lambda *_: tensors)
    monkeypatch.setattr(replica, "_types", lambda *_: {t.name: t.type for t in TENSORS})
    shape = {"arch": "qwen3moe", "n_layer": 2, "n_moe_layers": 2, "n_expert": 8, "n_expert_used": 2}
    keys = {"block_count": 2, "attention.head_count_kv": [8, 2], "rope.freq_base": 1e6}
    recipe = {"keys": keys, "quantize": "Q8_0", "vocabulary": 9, "seed": 3}
    content = {"name": "tiny", "title": "Tiny", "prompts": "p.jsonl", "shape": shape}
    row = Row.model_validate({**content, "replica": recipe})
    plan = replica.make_plan(row, install(tmp_path / "bin"), tmp_path, layers=1)
    found = json.loads(plan.to_json())
    for key in [key for key in found["metadata"] if key.startswith("tokenizer.")]:
        del found["metadata"][key]  # the tokenizer's file counts by its hash
    assert found["metadata"].pop("general.quantization_version") == gguf.GGML_QUANT_VERSION
    assert (replica.PLANNED, sha256(json.dumps(found, sort_keys=True))) == (1, "e4070432cc3040c6")


def test_traces() -> None:
    drawn = [trace_generator.generate(name, 40, 2, 64, 4, seed=5) for name in PROFILES]
    found = sha256(b"".join(t.selections.astype("<i4").tobytes() for t in drawn))
    assert (trace_generator.VERSION, found) == (1, "085aa85d1a3e7dbd")


def test_profiles() -> None:
    sizes = [(name, p.n_expert, p.top_k) for name, p in PROFILES.items()]
    sizes.append(("qwen3-30b-a3b", 60, 4))
    shares = [np.round(inclusion(load_profile(name), n, k), 9) for name, n, k in sizes]
    found = sha256(b"".join((s + 0.0).astype("<f8").tobytes() for s in shares))
    assert (trace_profile.VERSION, found) == (1, "82ecab66137ebaa4")


def test_tokens_of_a_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_inputs, "_vocabulary", lambda *_: 1000)
    protocol = ReplayProtocol(tokens=20, n_gen=10, rounds=1, threads=1, ctx=64)
    made = replay_inputs.write_replay_inputs(
        make_row(tmp_path), make_model(tmp_path), protocol, 3, tmp_path / "inputs"
    )
    found = sha256(made.tokens.read_bytes() + made.prompts.read_bytes())
    assert (replay_inputs.VERSION, found) == (1, "f9dfaf620485b747")


def test_inputs_of_locality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = SimpleNamespace(get_field=lambda _: SimpleNamespace(data=range(1000)))
    monkeypatch.setattr(inputs, "GGUFReader", lambda _: words)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} words, " for number in range(200)))
    made = inputs.write_inputs(make_model(tmp_path), text, 30, tmp_path / "inputs")
    found = sha256(b"".join(one.path.read_bytes() for one in made))
    assert (inputs.VERSION, found) == (1, "51fcb2c9a8e4191c")


def test_steps_of_the_search() -> None:
    """What `tec.placement` makes of them is in test_replay.py, in numbers."""
    tried: list[int] = []

    def loads(limit: int, number: int) -> bool:
        tried.append(number)
        return number <= limit

    cases = [(estimate, limit) for estimate in (0, 7, 12, 99) for limit in (-1, 0, 6, 12)]
    ends = [most_that_fit(at, 12, lambda n, end=end: loads(end, n)).value for at, end in cases]  # type: ignore[misc]
    assert (vram_search.VERSION, sha256(repr((tried, ends, FIT_TARGETS)))) == (
        1,
        "1021bd4a9db67776",
    )


@pytest.mark.parametrize(
    ("module", "protocols"),
    [
        (inputs, {"locality"}),
        (replay_inputs, {"replay", "parity"}),
        (trace_generator, {"replay", "parity"}),
        (trace_profile, {"replay", "parity"}),
        (vram_search, {"replay", "parity"}),
        (perplexity, set[str]()),
    ],
)
def test_a_new_version_is_another_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, protocols: set[str]
) -> None:
    more = {
        "locality": {"tokens": 8, "threads": 1},
        "replay": {"tokens": 40, "n_gen": 36, "rounds": 2, "threads": 1, "ctx": 64},
    }
    prompts = {"n_gen": 8, "rounds": 3, "threads": 1, "ctx": 64}
    study = make_study(tmp_path, protocols={"prompts": prompts, **more})
    row = make_row(tmp_path)

    def keys() -> dict[str, str]:
        names: tuple[Protocol, ...] = ("prompts", "locality", "replay", "parity")
        return {name: settings_key(study, row, name) for name in names}

    before = keys()
    monkeypatch.setattr(module, "VERSION", 99, raising=False)
    after = keys()
    assert {name for name in before if before[name] != after[name]} == protocols


def test_a_new_version_is_another_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    replica.plan_file(path).write_text(Plan("tiny", 7, 5, METADATA, TENSORS).to_json())
    before = replica.identity(path)
    assert replica.identity(path) == before
    monkeypatch.setattr(replica, "DRAWN", 99)
    assert replica.identity(path) != before
