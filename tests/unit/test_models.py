from pathlib import Path
from typing import Any

import pytest

from gguf_files import N_EXPERT, N_EXPERT_USED, N_LAYER, write_dense, write_moe, write_split_moe
from hub_machine import sha256
from tec import hub, hub_links, miniature, models, paths
from tec.build import Manifest
from tec.cli import main
from tec.config import Row
from tec.errors import TecError
from tec.files import sha256_file
from tec.gguf_file import Part, read_geometry
from tec.models import has_few_experts, read_model, resolve_model, warning
from tec.routing_summary import RoutingSummary

SHAPE = {
    "arch": "qwen3moe",
    "n_layer": N_LAYER,
    "n_moe_layers": N_LAYER,
    "n_expert": N_EXPERT,
    "n_expert_used": N_EXPERT_USED,
}
MINIATURE = {"keys": {"block_count": 2}, "quantize": "F32"}
ROUTING = RoutingSummary(
    tokens=256,
    overlap_8=0.7,
    overlap_8_uniform=0.3,
    median_reuse=3,
    next_token=0.4,
    effective_experts=12.0,
)


def row(path: Path, sha256: str | None = None, **more: Any) -> Row:
    source = {"kind": "file", "path": path, "sha256": sha256 or sha256_file(path)}
    content = {"name": "tiny", "title": "Tiny", "source": source, "prompts": "p.jsonl", **more}
    return Row.model_validate(content)


def hub_row(**more: Any) -> Row:
    source = {"kind": "hub", "repo": "acme/tiny", "files": ["tiny.gguf"]}
    content = {"name": "tiny", "title": "Tiny", "source": source, "prompts": "p.jsonl", **more}
    return Row.model_validate(content)


def described(files: list[Path]) -> list[Part]:
    return [
        Part(path=str(file), bytes=file.stat().st_size, sha256=sha256_file(file)) for file in files
    ]


BUILD = Manifest(
    target="cpu",
    commit="c",
    digest="d",
    series_hash="s",
    build_type="Release",
    compiler="none",
    cuda=None,
    cmake_args=[],
    bin_dir=Path("/nowhere"),
    binaries={},
    libraries={},
    seconds=0,
)


def test_geometry_and_hash_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_moe(tmp_path / "tiny.gguf")
    monkeypatch.setattr(paths, "MODEL_CACHE", tmp_path / "records")
    monkeypatch.setattr(models, "load_row", lambda _: row(file))
    assert main(["model", "tiny"]) == 0
    assert f"of {N_EXPERT} experts" in capsys.readouterr().out
    record = read_model(tmp_path / "records" / "tiny.full.json")
    assert (record.n_expert, record.sha256) == (N_EXPERT, sha256_file(file))
    assert record.bytes == file.stat().st_size
    assert record.variant == "full"
    assert record.parts == (Part(path=str(file), bytes=record.bytes, sha256=record.sha256),)


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
    with pytest.raises(TecError, match=r"tec model qwen3\.5-35b --variant miniature"):
        read_model(tmp_path / "qwen3.5-35b.miniature.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"row": "tiny", "n_expert": 16}'])
def test_a_record_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    record = tmp_path / "tiny.full.json"
    record.write_bytes(content)
    with pytest.raises(TecError, match="damaged or of an older layout") as caught:
        read_model(record)
    assert caught.value.where == record
    assert "delete it and run again" in str(caught.value)


def test_a_split_model_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for module in (models, paths):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(hub_links, "MODEL_FILES", root / "cache" / "files")
    home = tmp_path / "home"
    home.mkdir()
    files = write_split_moe(home / "tiny.gguf")
    parts = described(files)
    monkeypatch.setattr(hub, "fetch", lambda _: parts)
    model = resolve_model(hub_row(shape=SHAPE))
    lines = "".join(f"{part.sha256}  {Path(part.path).name}\n" for part in parts)
    assert [part.path for part in model.parts] == [
        f"cache/files/tiny/{file.name}" for file in files
    ]
    assert [(root / part.path).resolve() for part in model.parts] == files
    assert [part.sha256 for part in model.parts] == [part.sha256 for part in parts]
    assert model.path == model.parts[0].path
    assert str(home) not in model.model_dump_json()
    assert model.bytes == sum(file.stat().st_size for file in files)
    assert model.sha256 == sha256(lines.encode())
    assert model.n_params == read_geometry(write_moe(tmp_path / "whole.gguf")).n_params
    # the same record when the files have moved
    moved = home.rename(tmp_path / "moved")
    monkeypatch.setattr(hub, "fetch", lambda _: described([moved / file.name for file in files]))
    assert resolve_model(hub_row(shape=SHAPE)) == model
    # and a row that names too few of them
    monkeypatch.setattr(hub, "fetch", lambda _: described([moved / files[0].name]))
    with pytest.raises(TecError, match=f"files is {len(files)}, but its row names 1"):
        resolve_model(hub_row(shape=SHAPE))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"arch": "gpt-oss"}, ["arch is qwen3moe", "arch gpt-oss"]),
        ({"n_expert": 128}, [f"n_expert is {N_EXPERT}", "n_expert 128"]),
        (
            {"n_layer": 5, "n_moe_layers": 4},
            [f"n_layer is {N_LAYER}", f"n_moe_layers is {N_LAYER}"],
        ),
    ],
)
def test_another_shape_than_the_rows_is_refused(
    tmp_path: Path, changed: dict[str, Any], words: list[str]
) -> None:
    file = write_moe(tmp_path / "tiny.gguf")
    assert resolve_model(row(file, shape=SHAPE)).n_expert == N_EXPERT
    with pytest.raises(TecError, match="does not have the row's shape") as caught:
        resolve_model(row(file, shape={**SHAPE, **changed}))
    for word in words:
        assert word in caught.value.what
    assert "n_expert_used is" not in caught.value.what


def test_a_miniature_is_made_and_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_moe(tmp_path / "tiny-0123.gguf")
    made.with_suffix(".routing.json").write_text(ROUTING.model_dump_json())
    asked: list[tuple[str, Manifest, Path]] = []

    def make(row: Row, manifest: Manifest, folder: Path) -> Path:
        asked.append((row.name, manifest, folder))
        return made

    monkeypatch.setattr(miniature, "make", make)
    # fewer layers than the row's model has
    shape = {**SHAPE, "n_layer": 48, "n_moe_layers": 48}
    model = resolve_model(hub_row(shape=shape, miniature=MINIATURE), "miniature", BUILD)
    assert asked == [("tiny", BUILD, paths.MINIATURES)]
    assert (model.variant, model.path, model.routing) == ("miniature", str(made), ROUTING)
    with pytest.raises(TecError, match=f"n_expert is {N_EXPERT}"):
        resolve_model(
            hub_row(shape={**SHAPE, "n_expert": 8}, miniature=MINIATURE), "miniature", BUILD
        )


def test_a_row_without_a_recipe_has_no_miniature() -> None:
    with pytest.raises(TecError, match="does not say how its miniature is made"):
        resolve_model(hub_row(), "miniature", BUILD)


def test_a_miniature_needs_the_tools() -> None:
    with pytest.raises(TecError, match=r"needs llama\.cpp's tools"):
        resolve_model(hub_row(miniature=MINIATURE), "miniature")


def test_few_experts_are_warned_about(tmp_path: Path) -> None:
    model = resolve_model(row(write_moe(tmp_path / "tiny.gguf")))
    text = warning(model)
    assert text is not None
    assert f"tiny has {N_EXPERT} experts" in text
    assert "preconditions do not hold" in text
    assert warning(model.model_copy(update={"n_expert": 32})) is None


@pytest.mark.parametrize(
    ("n_expert", "used", "few"),
    [(8, 2, True), (31, 1, True), (32, 7, False), (32, 8, True), (64, 16, True), (128, 8, False)],
)
def test_experts_are_few_by_number_and_by_share(
    tmp_path: Path, n_expert: int, used: int, few: bool
) -> None:
    geometry = read_geometry(write_moe(tmp_path / "tiny.gguf"))
    model = geometry.model_copy(update={"n_expert": n_expert, "n_expert_used": used})
    assert has_few_experts(model) == few
