"""What a run covers: names resolved, and what cannot work refused before anything is built."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_study import make_row, make_study
from gguf_files import write_moe
from tec import config, paths
from tec.config import Study
from tec.errors import TecError
from tec.files import sha256_file
from tec.models import resolve_model
from tec.paths import STUDIES
from tec.selection import select

GIVEN = {"study": "fake"}


def write_study(folder: Path, study: Study) -> None:
    content = yaml.safe_dump(study.model_dump(mode="json"))
    (folder / "studies" / f"{study.name}.yaml").write_text(content)


def use_model(folder: Path) -> Path:
    """Give the row a real model file, of 16 experts with top-2."""
    file = write_moe(folder / "toy.gguf")
    row = folder / "models" / "toy.yaml"
    row.write_text(row.read_text().replace("a" * 64, sha256_file(file)))
    return file


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configs folder with the fake study and its row, whose model file is not here yet."""
    for name in ("studies", "models"):
        (tmp_path / name).mkdir()
    write_study(tmp_path, make_study(tmp_path))
    row = yaml.safe_dump(make_row(tmp_path).model_dump(mode="json"))
    (tmp_path / "models" / "toy.yaml").write_text(row)
    monkeypatch.setattr(config, "STUDIES", tmp_path / "studies")
    monkeypatch.setattr(config, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_CACHE", tmp_path / "records")
    return tmp_path


def test_defaults_come_from_the_study() -> None:
    selection = select(GIVEN)
    assert list(selection.rows) == ["toy"]
    assert selection.target == "cpu"


def test_rows_may_be_a_list_or_separated_by_commas() -> None:
    assert select({**GIVEN, "rows": "toy,toy"}).rows == select({**GIVEN, "rows": ["toy"]}).rows


@pytest.mark.parametrize(
    ("given", "unknown", "nearest"),
    [
        ({"study": "fke"}, "unknown study 'fke'", "did you mean 'fake'?"),
        ({**GIVEN, "rows": "tyo"}, "unknown row 'tyo'", "did you mean 'toy'?"),
        ({**GIVEN, "target": "sm90"}, "target 'sm90'", "did you mean 'sm_90'?"),
        ({**GIVEN, "taget": "cpu"}, "key 'taget'", "did you mean 'target'?"),
        ({**GIVEN, "rows": "zzz"}, "unknown row 'zzz'", "known names: toy"),
    ],
)
def test_unknown_name_is_an_error_with_the_nearest(
    given: dict[str, str], unknown: str, nearest: str
) -> None:
    with pytest.raises(TecError) as caught:
        select(given)
    assert unknown in str(caught.value)
    assert nearest in str(caught.value)


def test_cuda_target_is_refused_for_arms_with_the_cache_on(configs: Path) -> None:
    with pytest.raises(TecError, match="no CUDA kernels in this version") as caught:
        select({**GIVEN, "target": "sm_90"})
    assert str(caught.value.where).endswith("configs/studies/fake.yaml")
    assert str(caught.value.hint).endswith("with: .venv/bin/tec build sm_90")
    write_study(configs, make_study(configs, arms={"off": {"expert_cache": "off"}}))
    assert select({**GIVEN, "target": "sm_90"}).target == "sm_90"


@pytest.mark.parametrize(
    ("file", "message"),
    [("text.txt", "the parity text"), ("prompts.jsonl", "the prompts file")],
)
def test_missing_file_is_named(configs: Path, file: str, message: str) -> None:
    (configs / file).unlink()
    with pytest.raises(TecError, match=f"{message} .*{file} is missing"):
        select(GIVEN)


@pytest.mark.parametrize("recorded", [False, True])
def test_capacity_the_model_cannot_have_is_refused(configs: Path, recorded: bool) -> None:
    arms: dict[str, Any] = {"small": {"expert_cache": 1}}
    write_study(configs, make_study(configs, arms=arms))
    select(GIVEN)  # nothing is known about a model that is not here
    file = use_model(configs)
    if recorded:
        model = resolve_model(config.load_row("toy"))
        (configs / "records").mkdir()
        paths.model_record("toy").write_text(model.model_dump_json())
        file.unlink()
    with pytest.raises(TecError, match="'small' asks for 1 slots; this model has K = 2"):
        select(GIVEN)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_study_is_valid_with_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert select({"study": path.stem}).rows
