"""Where the search begins: the sizes of a model's tensors."""

from __future__ import annotations

from pathlib import Path

from gguf_files import write_moe, write_split_moe
from tec.gguf_file import ModelInfo, Part, read_geometry
from tec.layer_sizes import LayerSizes, read_layer_sizes

SIZES = LayerSizes(experts=(0, 10, 10, 20), others=(1, 1, 1, 1), output=5)


def info(paths: list[Path]) -> ModelInfo:
    parts = tuple(Part(path=str(path), bytes=1, sha256="a" * 64) for path in paths)
    geometry = read_geometry(paths[0], len(paths)).model_dump()
    values = {"row": "toy", "path": str(paths[0]), "bytes": 1, "sha256": "a" * 64}
    return ModelInfo(**values, parts=parts, **geometry)


def test_sizes_are_those_of_the_file_whole_or_split(tmp_path: Path) -> None:
    whole = read_layer_sizes(info([write_moe(tmp_path / "toy.gguf")]))
    assert len(whole.experts) == 2
    assert whole.experts[0] == 3 * 16 * 64 * 32 * 4  # gate, up and down of 16 experts, F32
    assert 0 < whole.output < whole.experts[0]
    assert all(size > 0 for size in whole.others)
    assert read_layer_sizes(info(write_split_moe(tmp_path / "toy.gguf"))) == whole


def test_experts_and_layers_are_counted_from_the_last() -> None:
    assert [SIZES.experts_that_fit(room) for room in (19, 20, 29, 40)] == [0, 1, 1, 4]
    assert [SIZES.layers_that_fit(room) for room in (4, 5, 25, 26, 1000)] == [0, 1, 1, 2, 5]
    assert SIZES.without_experts == 9
