import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tec import config
from tec.config import Arm, Capacities, ReplayProtocol, Row, Study, load_study
from tec.errors import TecError
from tec.system import physical_cores
from tec.yaml_file import load_yaml

TINY: dict[str, Any] = {
    "name": "tiny",
    "rows": ["one"],
    "target": "cpu",
    "arms": {"off": {"expert_cache": "off"}, "cached": {"expert_cache": "sweep"}},
    "capacities": {"shares": [0.25, 0.5, 1.0]},
    "protocols": {
        "prompts": {"n_gen": 8, "rounds": 2, "threads": 1, "ctx": 64},
        "random": {"n_prompt": 8, "n_gen": 8, "rounds": 1, "threads": 1},
    },
    "parity": {"n_gen": 8, "rounds": 2, "text": "text.txt"},
}
ROW = {
    "name": "one",
    "title": "One",
    "source": {"kind": "file", "path": "one.gguf", "sha256": "0" * 64},
    "prompts": "prompts.jsonl",
}


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configs folder with one study and one row."""
    for name, content in (("studies/tiny", TINY), ("models/one", ROW)):
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(config, "STUDIES", tmp_path / "studies")
    monkeypatch.setattr(config, "MODELS", tmp_path / "models")
    return tmp_path


def test_unknown_key_in_a_file_names_the_nearest_key_and_the_file(configs: Path) -> None:
    file = configs / "studies" / "tiny.yaml"
    protocols = {**TINY["protocols"], "prompts": {"n_gne": 8}}
    file.write_text(yaml.safe_dump({**TINY, "protocols": protocols}))
    with pytest.raises(TecError) as caught:
        load_study("tiny")
    assert "protocols.prompts: unknown key 'n_gne'; did you mean 'n_gen'?" in str(caught.value)
    assert caught.value.where == file


def test_wrong_value_names_the_key(configs: Path) -> None:
    file = configs / "studies" / "tiny.yaml"
    file.write_text(yaml.safe_dump({**TINY, "capacities": {"shares": [1.5]}}))
    with pytest.raises(TecError, match=r"capacities\.shares\.0"):
        load_study("tiny")


def test_name_must_be_the_file_s(configs: Path) -> None:
    (configs / "studies" / "other.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(TecError, match="name is 'tiny', but the file is other"):
        load_study("other")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("name: one\nname: two", "key 'name' twice"), ("", "file:")],
)
def test_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "row.yaml"
    file.write_text(text)
    with pytest.raises(TecError, match=message):
        load_yaml(file, Row)


def test_off_is_a_word(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("expert_cache: off\n")
    assert load_yaml(file, Arm).expert_cache == "off"


class TestArms:
    def test_sweep_becomes_an_arm_per_capacity(self) -> None:
        arms = Study.model_validate(TINY).expand_arms("tiny", n_expert=64, n_expert_used=8)
        assert list(arms) == ["off", "cached-c16", "cached-c32", "cached-c64"]
        assert arms["cached-c16"].arguments() == ["--expert-cache", "16"]

    def test_miniatures_have_arms_and_capacities_of_their_own(self) -> None:
        small = {key: TINY[key] for key in ("protocols", "parity")} | {
            "rows": ["made"],
            "arms": {"small": {"expert_cache": "sweep"}},
            "capacities": {"shares": [0.5]},
        }
        study = Study.model_validate({**TINY, "miniatures": small})
        assert study.all_rows == [*TINY["rows"], "made"]
        assert (study.variant(TINY["rows"][0]), study.variant("made")) == ("full", "miniature")
        assert list(study.expand_arms("made", 64, 8)) == ["small-c32"]
        assert "off" in study.expand_arms(TINY["rows"][0], 64, 8)

    @pytest.mark.parametrize("capacity", [4, 65])
    def test_capacity_the_model_cannot_have(self, capacity: int) -> None:
        study = Study.model_validate({**TINY, "arms": {"bad": {"expert_cache": capacity}}})
        with pytest.raises(TecError, match=f"'bad' asks for {capacity} slots") as caught:
            study.expand_arms("tiny", 64, 8)
        assert caught.value.hint == "choose expert_cache from 8 to 64"

    def test_other_options_follow_by_name(self) -> None:
        arm = Arm(options={"n-cpu-moe": 99}, expert_cache_policy="lru")
        expected = ["--expert-cache", "off", "--expert-cache-policy", "lru", "--n-cpu-moe", "99"]
        assert arm.arguments() == expected

    def test_zero_slots_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            Arm.model_validate({"expert_cache": 0})


@given(
    shares=st.lists(st.floats(0.001, 1), min_size=1),
    n_expert=st.integers(1, 512),
    used=st.integers(1, 16),
)
def test_capacities_are_ascending_and_possible(
    shares: list[float], n_expert: int, used: int
) -> None:
    used = min(used, n_expert)
    slots = Capacities(shares=shares).slots(n_expert, used)
    assert slots == sorted(set(slots))
    assert all(used <= capacity <= n_expert for capacity in slots)


def test_threads_of_a_replay_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"tokens": 8, "n_gen": 8, "rounds": 1, "ctx": 64}
    assert ReplayProtocol.model_validate(numbers).threads == physical_cores()
    assert ReplayProtocol.model_validate({**numbers, "threads": 77}).threads == 77
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    protocol = load_study("replicas").protocols.replay
    assert protocol is not None
    assert protocol.threads == 1


def test_unified_memory_needs_a_cache_and_tokens_to_pin_by() -> None:
    with pytest.raises(ValidationError, match="arms with the cache on"):
        Arm(unified=True)
    unified = {**TINY, "arms": {"off": {}, "unified": {"expert_cache": 8, "unified": True}}}
    replay = {"tokens": 40, "n_gen": 36, "rounds": 1, "threads": 1, "ctx": 64}
    for protocols in ({**TINY["protocols"], "replay": replay}, {"replay": {**replay, "n_gen": 40}}):
        with pytest.raises(ValidationError, match="arm unified pins experts by tokens"):
            Study(**{**unified, "protocols": protocols})
    Study(**{**unified, "protocols": {"replay": replay}})
