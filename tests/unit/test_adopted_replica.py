"""Records of what was made without the pipeline: a replica from its plan, a build by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fake_tools
from gguf_files import write_moe
from tec import adopted_replica, build_record
from tec.build import load_manifest
from tec.errors import TecError
from tec.gguf_file import ModelInfo
from tec.measure import check_parts
from tec.replica import plan_file
from tec.replica_plan import Plan


def plan(folder: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> Path:
    """Write a plan that, for these tests, announces so many bytes."""
    path = folder / "toy.plan.json"
    path.write_text(Plan("toy", 1, 4, {}, ()).to_json())
    monkeypatch.setattr(adopted_replica, "file_size", lambda _: size)
    return path


def test_record_is_that_of_the_model_and_the_plan_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    model = write_moe(tmp_path / "models" / "made.gguf")
    found = adopted_replica.record(plan(tmp_path, monkeypatch, model.stat().st_size), model)
    assert (found.row, found.variant, found.n_expert) == ("toy", "replica", 16)
    assert found.sha256 == found.parts[0].sha256
    assert plan_file(model).is_file()
    record = tmp_path / "record.json"
    check_parts(ModelInfo.model_validate_json(found.model_dump_json()), record)
    with model.open("ab") as file:
        file.write(b"more")
    with pytest.raises(TecError, match="has changed since it was checked"):
        check_parts(found, record)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_moe(tmp_path / "made.gguf")
    size = model.stat().st_size
    with pytest.raises(TecError, match=f"has {size} bytes, its plan 1") as caught:
        adopted_replica.record(plan(tmp_path, monkeypatch, 1), model)
    assert "tec.replica_file" in str(caught.value)


def test_build_made_by_hand_has_a_manifest(tmp_path: Path) -> None:
    fake_tools.install(tmp_path / "build" / "bin")
    (tmp_path / "build" / "bin" / "libllama.so").write_bytes(b"code")
    cache = "CMAKE_BUILD_TYPE:STRING=Release\nGGML_CUDA:BOOL=ON\nOTHER:BOOL=ON\n"
    (tmp_path / "build" / "CMakeCache.txt").write_text(cache)
    out = tmp_path / "manifest.json"
    command = [sys.executable, "-m", "tec.build_record", str(tmp_path / "build"), "sm_90"]
    subprocess.run([*command, "--out", str(out)], check=True)
    made = load_manifest(out)
    assert (made.target, made.bin_dir) == ("sm_90", tmp_path / "build" / "bin")
    assert set(made.binaries) == {"llama-expert-bench", "llama-bench", "llama-perplexity"}
    assert set(made.libraries) == {"libllama.so"}
    assert made.cmake_args == ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_CUDA=ON"]
    assert json.loads(out.read_text())["compiler"] == "unknown"


def test_a_folder_without_the_tool_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="there is no llama-expert-bench"):
        build_record.record(tmp_path, "sm_90")
