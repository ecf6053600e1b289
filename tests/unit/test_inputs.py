"""The inputs of the locality study."""

import json
from pathlib import Path
from typing import Any

import pytest

from fake_study import make_model
from gguf_files import write_moe
from tec.errors import TecError
from tec.inputs import INPUTS, write_inputs

N_TOKENS = 40


@pytest.fixture
def contents(tmp_path: Path) -> dict[str, Any]:
    model = make_model(tmp_path)
    write_moe(Path(model.path))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number}\n" for number in range(200)))
    made = write_inputs(model, text, N_TOKENS, tmp_path / "inputs")
    assert [one.name for one in made] == list(INPUTS)
    lines = {one.name: one.path.read_text().splitlines() for one in made}
    assert all(len(found) == 1 for found in lines.values())
    return {name: json.loads(found[0]) for name, found in lines.items()}


def test_text_is_the_files_own(contents: dict[str, Any]) -> None:
    assert contents["text"]["text"].startswith("line 0\nline 1\n")


def test_repetitive_text_repeats_its_beginning(contents: dict[str, Any]) -> None:
    text = contents["repetitive"]["text"]
    assert text[:240] == contents["text"]["text"][:240] == text[240:480]


def test_random_tokens_are_of_the_vocabulary_and_always_the_same(
    contents: dict[str, Any], tmp_path: Path
) -> None:
    tokens = contents["random"]["tokens"]
    assert len(tokens) == N_TOKENS
    assert len(set(tokens)) > N_TOKENS / 2
    assert min(tokens) >= 0
    assert 200 < max(tokens) < 258
    model = make_model(tmp_path)
    write_moe(Path(model.path))
    again = write_inputs(model, tmp_path / "text.txt", N_TOKENS, tmp_path / "again")
    assert json.loads(again[2].path.read_text())["tokens"] == tokens


def test_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("short")
    with pytest.raises(TecError, match="5 characters, fewer than the 40 tokens"):
        write_inputs(make_model(tmp_path), text, N_TOKENS, tmp_path)
