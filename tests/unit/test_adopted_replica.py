"""Records of what was made without the pipeline: a replica from its plan, a build by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

import fake_tools
from gguf_files import write_moe
from tec import adopted_replica, build, build_record, models
from tec.build import load_manifest
from tec.cli import main
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


def test_a_replica_in_the_repository_is_named_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "ROOT", tmp_path)
    model = write_moe(tmp_path / "made.gguf")
    found = adopted_replica.record(plan(tmp_path, monkeypatch, model.stat().st_size), model)
    assert found.path == found.parts[0].path == "made.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cmake's folder of a build of tmp_path / "tree"."""
    fake_tools.install(tmp_path / "build" / "bin")
    (tmp_path / "build" / "bin" / "libllama.so").write_bytes(b"code")
    (tmp_path / "tree").mkdir()
    cache = "CMAKE_BUILD_TYPE:STRING=Release\nGGML_CUDA:BOOL=ON\nOTHER:BOOL=ON\n"
    cache += f"CMAKE_HOME_DIRECTORY:INTERNAL={tmp_path / 'tree'}\n"
    (tmp_path / "build" / "CMakeCache.txt").write_text(cache)
    return tmp_path / "build"


def test_build_made_by_hand_has_a_manifest(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []

    def check(tree: Path) -> str:
        checked.append(tree)
        return "7" * 64

    monkeypatch.setattr(build_record, "check_patched", check)
    out = tmp_path / "manifest.json"
    monkeypatch.setattr(build, "build_manifest", lambda _: out)
    assert main(["build", "sm_90", "--adopt", str(folder)]) == 0
    made = load_manifest(out)
    assert checked == [tmp_path / "tree"]
    assert (made.series_hash, made.by_hand) == ("7" * 64, True)
    assert (made.target, made.bin_dir) == ("sm_90", tmp_path / "build" / "bin")
    programs = {"llama-expert-bench", "llama-bench", "llama-perplexity", "llama-router-trace"}
    assert set(made.binaries) == programs
    assert set(made.libraries) == {"libllama.so"}
    assert made.cmake_args == ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_CUDA=ON"]
    assert made.compiler == "unknown"


@pytest.mark.parametrize(
    ("said", "instead", "message"),
    [
        ("", "", "is not of the pinned llama.cpp with this series"),
        ("/tree", "/gone", "gone, no folder"),
        ("CMAKE_HOME_DIRECTORY", "OTHER", "does not say which source it is of"),
        ("=Release", "=Debug", "of type 'Debug', not Release"),
    ],
)
def test_a_build_of_another_source_is_refused(
    folder: Path, said: str, instead: str, message: str
) -> None:
    cache = folder / "CMakeCache.txt"
    cache.write_text(cache.read_text().replace(said, instead))
    with pytest.raises(TecError, match=message) as caught:
        build_record.record(folder, "sm_90")
    assert "tec patches apply; cmake -S" in str(caught.value)


def test_a_folder_without_the_tool_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="there is no llama-expert-bench"):
        build_record.record(tmp_path, "sm_90")
