"""The inputs of the locality study: real text, repetitive text, uniformly random tokens.

Each is a file that llama-expert-bench reads. Text is cut to the wanted number of tokens by the
program, which has the tokenizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gguf import GGUFReader

from tec.errors import TecError
from tec.files import write_atomically
from tec.gguf_file import ModelInfo
from tec.paths import CACHE, ROOT

InputName = Literal["text", "repetitive", "random"]
INPUTS: tuple[InputName, ...] = get_args(InputName)

VERSION = 1
"""Of what is drawn; to be raised when other inputs are made (tests/unit/test_versions.py)."""

_REPEATED = 240
"""Characters of the piece of text that is repeated: a few dozen tokens."""
_LONGEST_TOKEN = 16
"""Characters of text kept per wanted token: more than a token of any of these vocabularies has."""


@dataclass(frozen=True)
class Input:
    """One input: a file with one JSON line."""

    name: InputName
    path: Path


def write_inputs(model: ModelInfo, text: Path, n_tokens: int, folder: Path) -> list[Input]:
    """Write the inputs for a model into `folder`.

    Args:
        model: its vocabulary is what random tokens are drawn from.
        text: plain text, in UTF-8.
        n_tokens: tokens of each input.
        folder: where the files go.

    Raises:
        TecError: the text is too short.
    """
    real = (ROOT / text).read_text(encoding="utf-8")[: n_tokens * _LONGEST_TOKEN]
    if len(real) < n_tokens:
        raise TecError(
            f"the text has {len(real)} characters, fewer than the {n_tokens} tokens wanted", text
        )
    contents: dict[InputName, dict[str, object]] = {
        "text": {"text": real},
        "repetitive": {"text": _repeat(real[:_REPEATED], len(real))},
        "random": {"tokens": _random_tokens(model, n_tokens)},
    }
    inputs = [Input(name, folder / f"{name}.jsonl") for name in INPUTS]
    for made in inputs:
        line = json.dumps({"id": made.name, **contents[made.name]}) + "\n"
        if not made.path.exists() or made.path.read_text(encoding="utf-8") != line:
            write_atomically(made.path, line)
    return inputs


def input_folder(study: str, row: str) -> Path:
    """Return where the inputs of a study's row are kept."""
    return CACHE / "inputs" / study / row


def _repeat(piece: str, length: int) -> str:
    return (piece * (length // len(piece) + 1))[:length]


def _random_tokens(model: ModelInfo, n_tokens: int) -> Sequence[int]:
    """Draw tokens uniformly from the model's vocabulary; the same for every run."""
    field = GGUFReader(ROOT / model.path).get_field("tokenizer.ggml.tokens")
    if field is None:
        raise TecError("the GGUF file has no vocabulary", model.path, "convert the model again")
    drawn = random.Random("locality")  # noqa: S311 (an input, not a secret)
    return [drawn.randrange(len(field.data)) for _ in range(n_tokens)]
