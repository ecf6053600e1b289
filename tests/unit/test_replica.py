"""Replicas: their header, their writing, and what goes wrong there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fake_tools import install
from tec import models, replica, replica_file
from tec.cli import main
from tec.config import Row, load_row
from tec.errors import RunError, TecError
from tec.gguf_header import ALIGNMENT, encode_header
from tec.miniature_file import TOKENIZER
from tec.paths import MODELS, ROOT
from tec.replica_file import check_space, file_size, write_replica
from tec.replica_plan import Plan, Weights, read_plan, whole_metadata

METADATA: dict[str, Any] = {
    "general.architecture": "qwen3moe",
    "qwen3moe.block_count": 1,
    "qwen3moe.rope.freq_base": 1e6,
    "qwen3moe.pattern": [True, False],
    "qwen3moe.sections": [11, 11, 10, 0],
    "tokenizer.ggml.tokens": ["a", "bä"],
    "tokenizer.ggml.token_type": [1, 3],
    "tokenizer.ggml.add_bos_token": False,
}
TENSORS = (
    Weights("token_embd.weight", (64, 5), "Q8_0"),
    Weights("blk.0.attn_norm.weight", (64,), "F32"),
    Weights("blk.0.ffn_gate_exps.weight", (64, 96, 300), "MXFP4"),
    Weights("output.weight", (64, 5), "BF16"),
)
PLAN = Plan("tiny", 7, 5, METADATA, TENSORS)
Usage = namedtuple("Usage", "total used free")


def ignore(done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_replica(PLAN, path, ignore, threads=3)
    return path


def test_the_reader_of_gguf_finds_what_was_planned(file: Path) -> None:
    reader = gguf.GGUFReader(file)
    found = {key: reader.fields[key].contents() for key in METADATA}
    tokens = ["a", "bä", "<|2|>", "<|3|>", "<|4|>"]
    types = [1, 3, 5, 5, 5]
    wanted = {**METADATA, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    assert found == wanted
    shapes = [(t.name, tuple(t.shape), t.tensor_type.name) for t in reader.tensors]
    assert shapes == [(t.name, t.shape, t.type) for t in TENSORS]
    assert all(t.data_offset % ALIGNMENT == 0 for t in reader.tensors)
    assert file.stat().st_size == file_size(PLAN)
    experts = reader.tensors[2].data.reshape(300, -1)
    assert len({expert.tobytes() for expert in experts}) == 300
    assert np.abs(reader.tensors[1].data - 1).max() < 1


def test_headers_are_those_of_the_package_gguf(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_uint32("qwen3moe.block_count", 1)
    writer.add_float32("qwen3moe.rope.freq_base", 1e6)
    writer.add_array("qwen3moe.pattern", [True, False])
    writer.add_array("qwen3moe.sections", [11, 11, 10, 0])
    writer.add_array("tokenizer.ggml.tokens", ["a", "bä"])
    writer.add_array("tokenizer.ggml.token_type", [1, 3])
    writer.add_bool("tokenizer.ggml.add_bos_token", val=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    theirs = path.read_bytes()
    assert encode_header(METADATA, [])[: len(theirs)] == theirs


def test_the_number_of_threads_does_not_matter(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    write_replica(PLAN, other, ignore, threads=1)
    assert other.read_bytes() == file.read_bytes()


def test_progress_is_in_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_replica(PLAN, tmp_path / "m.gguf", lambda *at: seen.append(at), threads=2)
    assert seen
    assert all(0 <= done <= total == file_size(PLAN) for done, total in seen)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json())
    assert read_plan(path) == PLAN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("[1]", "damaged"),
        ('{"version": 0}', "another version"),
        ('{"version": 1, "row": "x"}', "damaged"),
        (
            PLAN.to_json().replace("MXFP4", "IQ1_S"),
            "cannot be drawn in the type IQ1_S of blk.0.ffn",
        ),
        (PLAN.to_json().replace("MXFP4", "Q4_K"), "rows of 64 weights, no multiple of the 256"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(TecError, match=message):
        read_plan(path)


def test_a_disk_without_room_is_refused_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - 2**20, 2**20))
    path = tmp_path / "m.gguf"
    with pytest.raises(RunError, match=r"no room .* it takes 0\.3 GiB, 0\.0 GiB are free"):
        write_replica(PLAN, path, ignore)
    assert not path.exists()


def test_a_disk_that_fills_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="the disk or your quota on it is full"):
        write_replica(PLAN, tmp_path / "m.gguf", ignore)


def row(**more: Any) -> Row:
    keys = {"block_count": 1}
    recipe = {"keys": keys, "quantize": "Q8_0", "vocabulary": 5}
    shape = {"arch": "qwen3moe", "n_layer": 1, "n_moe_layers": 1, "n_expert": 8, "n_expert_used": 2}
    content = {"name": "tiny", "title": "Tiny", "prompts": "p.jsonl", "shape": shape}
    return Row.model_validate({**content, "replica": recipe, **more})


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_plan", lambda *_: PLAN)


@pytest.mark.usefixtures("planned")
def test_a_replica_is_made_once(tmp_path: Path) -> None:
    build, folder = install(tmp_path / "bin"), tmp_path / "replicas"
    path = replica.make(row(), build, folder)
    written = path.stat().st_mtime_ns
    assert replica.make(row(), build, folder).stat().st_mtime_ns == written
    assert {file.name for file in folder.iterdir()} == {
        path.name,
        replica.plan_file(path).name,
        ".tiny.lock",
    }
    assert len(replica.identity(path)) == 64


@pytest.mark.usefixtures("planned")
def test_another_recipe_takes_the_place_of_the_earlier_file(tmp_path: Path) -> None:
    build, folder = install(tmp_path / "bin"), tmp_path / "replicas"
    first = replica.make(row(title="Before"), build, folder)
    short = replica.make(row(title="Before"), build, folder, layers=1)
    second = replica.make(row(), build, folder)
    assert not first.exists()
    assert short.exists()
    assert second.exists()


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(replica_file, "draw", fail)
    with pytest.raises((KeyboardInterrupt, RunError)):
        replica.make(row(), install(tmp_path / "bin"), tmp_path / "replicas")
    assert [file.name for file in (tmp_path / "replicas").iterdir()] == [".tiny.lock"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"replica": None, "source": {"kind": "hub", "repo": "a/b", "files": ["c"]}}, "no replica"),
        ({"shape": None}, "no shape"),
    ],
)
def test_a_row_that_cannot_have_one_says_so(
    tmp_path: Path, broken: dict[str, Any], message: str
) -> None:
    with pytest.raises(TecError, match=f"row tiny has {message}"):
        replica.make(row(**broken), install(tmp_path / "bin"), tmp_path)


def test_layers_are_the_first_blocks() -> None:
    recipe = load_row("gemma-4-26b-a4b-it-bf16").replica
    assert recipe is not None
    cut = replica._cut(recipe.keys, 6, row())
    assert cut["block_count"] == 6
    assert cut["attention.head_count_kv"] == [8, 8, 8, 8, 8, 2]
    assert cut["embedding_length"] == 2816
    for layers in (0, 31):
        with pytest.raises(TecError, match=f"{layers} of 30 layers make no sense"):
            replica._cut(recipe.keys, layers, row())


def test_the_vocabulary_is_the_one_of_miniatures_and_then_numbers() -> None:
    fields = gguf.GGUFReader(TOKENIZER).fields
    metadata = {
        key: fields[key].contents()
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    }
    whole = whole_metadata(metadata, 151936)
    tokens = whole["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(set(tokens)) == len(tokens) == 151936


ROWS = [path.stem for path in MODELS.glob("*.yaml") if load_row(path.stem).replica]


@pytest.mark.parametrize("name", ROWS)
def test_recipes_agree_with_the_shapes(name: str) -> None:
    found = load_row(name)
    assert found.replica is not None
    assert found.shape is not None
    keys = found.replica.keys
    assert keys["block_count"] == found.shape.n_layer
    assert keys["expert_count"] == found.shape.n_expert
    assert keys["expert_used_count"] == found.shape.n_expert_used
    if found.miniature is not None:
        assert set(keys) == set(found.miniature.keys)
    for key, value in keys.items():
        if isinstance(value, list) and key != "rope.dimension_sections":
            assert len(value) == found.shape.n_layer


def test_a_row_without_source_is_only_ever_a_replica() -> None:
    with pytest.raises(TecError, match="only ever a replica"):
        models.resolve_model(row())
    with pytest.raises(TecError, match=r"needs llama\.cpp's tools"):
        models.resolve_model(row(), "replica")
    with pytest.raises(ValueError, match="the row has no source"):
        row(replica=None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "1"], "only a replica has --layers and --plan"),
        (["--variant", "miniature", "--plan", "p.json"], "add --variant replica"),
        (["--variant", "replica", "--plan", "p.json"], "add --build MANIFEST"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["model", "qwen3-30b-a3b-q8_0", *words]) == 2
    assert message in capsys.readouterr().err


BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import runpy
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
BLOCKED = ("pydantic", "yaml", "gguf", "numba", "psutil", "pandas", "huggingface_hub")


def bare(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a module with NumPy alone."""
    program = [sys.executable, "-c", BARE.replace("{blocked}", repr(BLOCKED))]
    command = [*program, *(str(word) for word in words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_numpy_is_enough_to_write_one(tmp_path: Path, file: Path) -> None:
    plan, model = tmp_path / "plan.json", tmp_path / "again.gguf"
    plan.write_text(PLAN.to_json())
    done = bare("tec.replica_file", plan, model, "--no-sync")
    assert done.returncode == 0, done.stderr
    assert "GB/s" in done.stderr
    assert model.read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [plan.name, model.name, file.name]
    )
    done = bare("tec.replica_file", tmp_path / "absent.json", model)
    assert done.returncode == 1
    assert "cannot read the plan" in done.stderr


def test_numpy_is_enough_to_draw_a_trace(tmp_path: Path) -> None:
    words = ("--layers", 2, "--experts", 64, "--used", 4, "--tokens", 20)
    done = bare("tec", "trace", "generate", *words, "--out", tmp_path / "t.npy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.json").exists()


def test_space_is_that_of_the_file_and_some(monkeypatch: pytest.MonkeyPatch) -> None:
    room = file_size(PLAN) + 2**28
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, room))
    check_space(PLAN, Path())
