from pathlib import Path

import pytest

from gguf_files import (
    N_EXPERT,
    N_EXPERT_USED,
    N_LAYER,
    cut,
    write_dense,
    write_moe,
    write_split_moe,
)
from tec.errors import TecError
from tec.gguf_file import read_geometry


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe(tmp_path_factory.mktemp("gguf") / "moe.gguf")


def test_geometry_of_a_moe_model(moe: Path) -> None:
    geometry = read_geometry(moe)
    assert (geometry.arch, geometry.quant) == ("qwen3moe", "F32")
    assert (geometry.n_layer, geometry.n_moe_layers) == (N_LAYER, N_LAYER)
    assert (geometry.n_expert, geometry.n_expert_used) == (N_EXPERT, N_EXPERT_USED)
    assert geometry.n_params * 4 == pytest.approx(moe.stat().st_size, rel=0.02)


def test_dense_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    dense = write_dense(tmp_path / "dense.gguf")
    with pytest.raises(TecError, match="dense") as caught:
        read_geometry(dense)
    assert caught.value.where == dense
    assert "Mixture-of-Experts" in str(caught.value)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.3, 0.9, 0.999999])
def test_truncated_file_is_refused(moe: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(TecError, match="truncated or damaged"):
        read_geometry(cut(tmp_path / "cut.gguf", moe, share))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"GGU"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(TecError, match="not a GGUF file"):
        read_geometry(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="No such file") as caught:
        read_geometry(tmp_path / "absent.gguf")
    assert "absent.gguf" in str(caught.value)


def test_a_split_model_has_the_geometry_of_the_whole(moe: Path, tmp_path: Path) -> None:
    first, *others = write_split_moe(tmp_path / "moe.gguf")
    assert len(others) >= 2
    assert read_geometry(first) == read_geometry(moe)


@pytest.mark.parametrize("difference", [-1, 1])
def test_another_number_of_files_than_the_row_names(tmp_path: Path, difference: int) -> None:
    parts = write_split_moe(tmp_path / "moe.gguf")
    assert read_geometry(parts[0], len(parts)).n_expert == N_EXPERT
    named = len(parts) + difference
    with pytest.raises(TecError, match=f"files is {len(parts)}, but its row names {named}"):
        read_geometry(parts[0], named)


def test_a_whole_model_of_which_the_row_names_two_files(moe: Path) -> None:
    assert read_geometry(moe, 1).n_expert == N_EXPERT
    with pytest.raises(TecError, match="files is 1, but its row names 2"):
        read_geometry(moe, 2)


@pytest.mark.parametrize("number", [1, -1])
def test_a_missing_part_is_named(tmp_path: Path, number: int) -> None:
    parts = write_split_moe(tmp_path / "moe.gguf")
    parts[number].unlink()
    with pytest.raises(TecError, match=f"part {parts[number].name} .* is missing"):
        read_geometry(parts[0])


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    parts = write_split_moe(tmp_path / "moe.gguf")
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-1000])
    with pytest.raises(TecError, match="truncated or damaged") as caught:
        read_geometry(parts[0])
    assert caught.value.where == parts[1]


def test_a_part_of_another_model_is_found_out(tmp_path: Path) -> None:
    parts = write_split_moe(tmp_path / "moe.gguf")
    write_dense(parts[1])
    with pytest.raises(TecError, match=r"\d+ tensors together, the first announces \d+"):
        read_geometry(parts[0])


@pytest.mark.parametrize("name", ["renamed.gguf", "moe-00002-of-00004.gguf", "moe-00001-of-9.gguf"])
def test_a_split_model_that_is_not_named_as_one(tmp_path: Path, name: str) -> None:
    first = write_split_moe(tmp_path / "moe.gguf")[0]
    with pytest.raises(TecError, match="not named as the first"):
        read_geometry(first.rename(tmp_path / name))
