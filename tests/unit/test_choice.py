"""Some of a study's arms and capacities, by name."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from fake_study import make_study
from tec.choice import Choice, add_arguments, choose
from tec.config import Arm, Study
from tec.errors import TecError
from tec.records import Protocol

N_EXPERT, N_EXPERT_USED = 16, 2


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


@pytest.fixture
def arms(study: Study) -> dict[str, Arm]:
    return study.expand_arms("toy", N_EXPERT, N_EXPERT_USED)


def check(choice: Choice, arms: dict[str, Arm]) -> None:
    choice.check("toy", arms, N_EXPERT, N_EXPERT_USED)


@pytest.mark.parametrize(
    ("names", "capacities", "left"),
    [
        (None, None, ["off", "off-aa", "cached-c2", "cached-c8", "cached-c16"]),
        ("off,cached-c16", None, ["off", "cached-c16"]),
        ("cached-c16,off", None, ["off", "cached-c16"]),  # in the study's order
        ("cached", None, ["cached-c2", "cached-c8", "cached-c16"]),
        (["off", "cached"], 8, ["off", "cached-c8"]),
        (None, "8,16", ["off", "off-aa", "cached-c8", "cached-c16"]),
        (None, [5], ["off", "off-aa", "cached-c5"]),  # of no share in the study
        ("cached-c5", "5", ["cached-c5"]),
    ],
)
def test_arms_and_capacities_narrow(
    arms: dict[str, Arm], names: object, capacities: object, left: list[str]
) -> None:
    choice = choose(names, capacities)
    check(choice, arms)
    chosen = choice.narrow(arms)
    assert list(chosen) == left
    assert all(chosen[f"cached-c{c}"].expert_cache == c for c in choice.capacities)


@pytest.mark.parametrize(
    ("names", "nearest"), [("cached-c15", "cached-c16"), ("of", "off"), ("cachd", "cached")]
)
def test_unknown_arm_gives_the_nearest(arms: dict[str, Arm], names: str, nearest: str) -> None:
    choice = choose(names)
    with pytest.raises(TecError, match=f"unknown arm '{names}'") as caught:
        check(choice, arms)
    assert nearest in str(caught.value)
    with pytest.raises(TecError, match="none of the arms"):
        choice.narrow(arms)


@pytest.mark.parametrize("slots", [1, 17])
def test_capacity_the_model_cannot_have_names_row_and_range(
    arms: dict[str, Arm], slots: int
) -> None:
    with pytest.raises(TecError, match=f"row toy cannot have {slots} slots") as caught:
        check(choose(capacities=slots), arms)
    assert "from 2 (K" in str(caught.value)
    assert "to 16 (N)" in str(caught.value)


def test_capacities_have_to_be_numbers() -> None:
    with pytest.raises(TecError, match="'8,many' are not numbers"):
        choose(capacities="8,many")


@pytest.mark.parametrize(
    ("protocol", "left"),
    [
        ("prompts", ["cached-c8"]),
        ("random", ["cached-c8"]),
        ("parity", ["off", "cached-c8"]),
        ("locality", ["off", "cached-c8"]),
    ],
)
def test_comparisons_keep_their_reference(
    study: Study, arms: dict[str, Arm], protocol: Protocol, left: list[str]
) -> None:
    choice = choose("cached-c8").with_reference(study, protocol)
    assert list(choice.narrow(arms)) == left
    everything = choose().with_reference(study, protocol)
    assert list(everything.narrow(arms)) == list(arms)


def test_arm_named_like_one_of_a_sweep_is_none(tmp_path: Path) -> None:
    arms = {"off": {}, "big-c8": {"expert_cache": 8}, "cached": {"expert_cache": "sweep"}}
    study = make_study(tmp_path, arms=arms)
    expanded = study.expand_arms("toy", N_EXPERT, N_EXPERT_USED)
    assert "big" not in Choice().known(expanded)
    assert list(choose(capacities=5).narrow(expanded)) == ["off", "big-c8", "cached-c5"]


def test_row_takes_what_it_has_of_the_choice(arms: dict[str, Arm]) -> None:
    assert choose("off,cached-c64").of_row(arms).arms == ("off",)


def test_everything_keeps_the_key_and_a_part_has_its_own() -> None:
    parts = [choose(), choose("off"), choose("cached"), choose(None, 8), choose("off", 8)]
    keys = [choice.key("abc") for choice in parts]
    assert keys[0] == "abc"
    assert len(set(keys)) == len(keys)
    assert choose("off,cached").key("abc") == choose("cached,off").key("abc")


@pytest.mark.parametrize("choice", [Choice(), choose("off,cached", "8,16"), choose(None, 8)])
def test_words_are_what_the_commands_take(choice: Choice) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(choice.words())
    assert choose(options.arms, options.capacities) == choice
