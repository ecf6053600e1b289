"""What a run covers: names resolved, and what cannot work refused before anything is built."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_replay import STUDY
from fake_study import make_row, make_study
from gguf_files import write_moe
from tec import config, paths
from tec.config import Scope, Study
from tec.errors import TecError
from tec.files import sha256_file
from tec.models import resolve_model
from tec.paths import STUDIES
from tec.selection import select

GIVEN = {"study": "fake"}


def write_study(folder: Path, study: Study) -> None:
    content = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
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


def test_limits_of_vram_need_a_cuda_target(configs: Path) -> None:
    assert select({**GIVEN, "target": "sm_90"}).target == "sm_90"
    write_study(configs, make_study(configs, **STUDY))
    selection = select(GIVEN)
    assert (selection.target, selection.protocols("toy")) == ("sm_90", ["replay", "parity"])
    with pytest.raises(TecError, match="at limits of a GPU's memory: it cannot run") as caught:
        select({**GIVEN, "target": "cpu"})
    assert str(caught.value.where).endswith("configs/studies/fake.yaml")
    assert "--config target=sm_90" in str(caught.value.hint)


def test_arms_that_are_searched_for_are_chosen_like_sweeps(configs: Path) -> None:
    use_model(configs)
    write_study(configs, make_study(configs, **STUDY))
    chosen = select({**GIVEN, "arms": "ncmoe,cached", "capacities": "4,5", "rounds": 1})
    assert list(chosen.chosen("toy")) == ["cached-c4", "cached-c5", "ncmoe-c4", "ncmoe-c5"]
    assert chosen.choice_of("toy", "replay").arms == ("resident", "ncmoe", "cached")
    assert chosen.choice.words()[-2:] == ["--rounds", "1"]
    with pytest.raises(TecError, match="rounds 'x' is no number from 1"):
        select({**GIVEN, "rounds": "x"})


def test_replica_needs_a_recipe(configs: Path) -> None:
    write_study(configs, make_study(configs, form="replica"))
    with pytest.raises(TecError, match="cannot take part as a replica: it has no recipe"):
        select(GIVEN)


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
        paths.model_record("toy", "full").write_text(model.model_dump_json())
        file.unlink()
    with pytest.raises(TecError, match="'small' asks for 1 slots; this model has K = 2"):
        select(GIVEN)


def add_row(folder: Path, name: str, **changes: Any) -> None:
    """Write a row of the hub whose model has 32 experts, top-4, and a recipe for a miniature."""
    values: dict[str, Any] = {
        **make_row(folder).model_dump(mode="json"),
        "name": name,
        "source": {"kind": "hub", "repo": "owner/name", "files": ["a.gguf"]},
        "shape": {
            "arch": "qwen3moe",
            "n_layer": 4,
            "n_moe_layers": 4,
            "n_expert": 32,
            "n_expert_used": 4,
        },
        "miniature": {"keys": {"block_count": 2}, "quantize": "Q8_0"},
        **changes,
    }
    (folder / "models" / f"{name}.yaml").write_text(yaml.safe_dump(values))


def mixed_study(folder: Path, rows: list[str] = ["small"], **changes: Any) -> Study:  # noqa: B006
    """Return the fake study with `rows` as miniatures, which have no A/A arm and one protocol."""
    plain = make_study(folder).model_dump(mode="json", include=set(Scope.model_fields))
    arms = {"off": {"expert_cache": "off"}, "cached": {"expert_cache": "sweep"}}
    protocols = {"prompts": plain["protocols"]["prompts"], "locality": {"tokens": 8, "threads": 1}}
    scope = {**plain, "rows": rows, "arms": arms, "protocols": protocols}
    return make_study(folder, **{"miniatures": scope, **changes})


def test_full_rows_and_miniatures_each_have_their_scope(configs: Path) -> None:
    add_row(configs, "small")
    write_study(configs, mixed_study(configs))
    selection = select({**GIVEN, "rows": "small,toy"})
    assert list(selection.rows) == ["toy", "small"]  # the study's order
    assert selection.protocols("toy") == ["prompts", "random", "parity"]
    assert selection.protocols("small") == ["prompts", "locality", "parity"]
    assert selection.arms("toy") is None  # its file is not here
    assert list(selection.arms("small") or {}) == ["off", "cached-c4", "cached-c16", "cached-c32"]


def test_row_of_the_hub_needs_no_file_here(configs: Path) -> None:
    add_row(configs, "small")
    write_study(configs, make_study(configs, rows=["small"]))
    assert select(GIVEN).arms("small")


def test_row_in_full_and_as_a_miniature_is_refused(configs: Path) -> None:
    write_study(configs, mixed_study(configs, rows=["toy"]))
    with pytest.raises(TecError, match="row 'toy' stands twice in study fake") as caught:
        select(GIVEN)
    assert str(caught.value.where).endswith("studies/fake.yaml")


def test_miniature_without_a_recipe_is_refused(configs: Path) -> None:
    add_row(configs, "small", miniature=None)
    write_study(configs, mixed_study(configs))
    with pytest.raises(TecError, match="'small' cannot take part as a miniature") as caught:
        select(GIVEN)
    assert str(caught.value.where).endswith("configs/models/small.yaml")


def test_unreadable_model_file_is_its_rows_failure_alone(configs: Path) -> None:
    use_model(configs).write_bytes(b"not a GGUF file")
    assert select(GIVEN).arms("toy") is None


@pytest.mark.parametrize(
    ("given", "arms"),
    [
        ({}, ["off", "cached-c4", "cached-c16", "cached-c32"]),
        ({"arms": "off,cached-c16"}, ["off", "cached-c16"]),
        ({"arms": ["cached"], "capacities": 8}, ["cached-c8"]),
        ({"capacities": "8,9"}, ["off", "cached-c8", "cached-c9"]),
    ],
)
def test_arms_and_capacities_are_chosen_by_name(
    configs: Path, given: dict[str, object], arms: list[str]
) -> None:
    add_row(configs, "small")
    write_study(configs, mixed_study(configs))
    selection = select({**GIVEN, **given, "rows": "small"})
    expanded = selection.arms("small")
    assert expanded
    assert list(selection.choice_of("small", "prompts").narrow(expanded)) == arms


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"arms": "cachd"}, "unknown arm 'cachd'", "did you mean 'cached'?"),
        ({"arms": "cached-c15"}, "unknown arm 'cached-c15'", "did you mean 'cached-c16'?"),
        ({"capacities": 16, "arms": "cached-c4"}, "unknown arm 'cached-c4'", "cached"),
        ({"capacities": 3}, "row small cannot have 3 slots", "from 4 (K"),
        ({"capacities": "17"}, "row toy cannot have 17 slots", "to 16 (N)"),
        ({"capacities": "x"}, "'x' are not numbers", "capacities=16,32"),
        ({"arms": "off-aa"}, "row small has none of the arms off-aa", "rows=NAME"),
        ({"arm": "off"}, "key 'arm'", "did you mean 'arms'?"),
    ],
)
def test_choice_that_cannot_be_is_refused(
    configs: Path, given: dict[str, object], message: str, hint: str
) -> None:
    add_row(configs, "small")
    use_model(configs)
    write_study(configs, mixed_study(configs))
    with pytest.raises(TecError) as caught:
        select({**GIVEN, **given})
    assert message in str(caught.value)
    assert hint in str(caught.value)


def test_arm_without_the_cache_may_run_on_cuda(configs: Path) -> None:
    write_study(configs, mixed_study(configs))
    add_row(configs, "small")
    use_model(configs)
    assert select({**GIVEN, "target": "sm_90", "arms": "off"}).target == "sm_90"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_study_is_valid_with_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert select({"study": path.stem}).rows


def test_protocol_or_miniature_that_a_row_has_not_is_one_message(configs: Path) -> None:
    selection = select(GIVEN)
    selection.check_protocol("toy", "random")
    with pytest.raises(TecError, match="locality is not run for row toy, which has prompts, ran"):
        selection.check_protocol("toy", "locality")
    selection.check_variant("toy", "full")
    with pytest.raises(TecError, match="row toy has no miniature"):
        selection.check_variant("toy", "miniature")


def test_damaged_record_is_left_to_the_row(configs: Path) -> None:
    use_model(configs)
    (configs / "records").mkdir()
    (configs / "records" / "toy.full.json").write_text("{")
    shape = select(GIVEN).shapes["toy"]
    assert shape is not None
    assert shape.n_expert == 16
