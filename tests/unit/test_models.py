from pathlib import Path

import pytest

from gguf_files import N_EXPERT, write_dense, write_moe
from tec import models, paths
from tec.cli import main
from tec.config import Row
from tec.errors import TecError
from tec.files import sha256_file
from tec.models import read_model, resolve_model


def row(path: Path, sha256: str | None = None) -> Row:
    source = {"kind": "file", "path": path, "sha256": sha256 or sha256_file(path)}
    content = {"name": "tiny", "title": "Tiny", "source": source, "prompts": "p.jsonl"}
    return Row.model_validate(content)


def test_geometry_and_hash_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_moe(tmp_path / "tiny.gguf")
    monkeypatch.setattr(paths, "MODEL_CACHE", tmp_path / "records")
    monkeypatch.setattr(models, "load_row", lambda _: row(file))
    assert main(["model", "tiny"]) == 0
    assert f"of {N_EXPERT} experts" in capsys.readouterr().out
    record = read_model(tmp_path / "records" / "tiny.json")
    assert (record.n_expert, record.sha256) == (N_EXPERT, sha256_file(file))
    assert record.bytes == file.stat().st_size


def test_corrupt_file_names_expected_and_found(tmp_path: Path) -> None:
    file = write_moe(tmp_path / "tiny.gguf")
    expected = sha256_file(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TecError) as caught:
        resolve_model(row(file, expected))
    assert expected in caught.value.what
    assert sha256_file(file) in caught.value.what


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="the model file is missing"):
        resolve_model(row(tmp_path / "no.gguf", "0" * 64))


def test_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="dense"):
        resolve_model(row(write_dense(tmp_path / "dense.gguf")))


def test_unresolved_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="tec model tiny"):
        read_model(tmp_path / "tiny.json")
