"""What a replica's file holds: metadata, and every tensor with its type, place and scale.

A plan is made where llama.cpp's tools are (`tec.replica`), and is all that writing the file needs.
It is a small JSON file: of the vocabulary it has the trained part, the rest is counted out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tec.errors import TecError
from tec.gguf_header import TensorInfo, Value, encode_header, padded
from tec.miniature_weights import Tensor
from tec.replica_blocks import BLOCKS, BlockType

VERSION = 1
"""Of the file's form."""

_WORDS = "tokenizer.ggml.tokens"
_KINDS = "tokenizer.ggml.token_type"
_UNUSED = 5
"""llama.cpp's type of a token that text never becomes."""


@dataclass(frozen=True)
class Weights(Tensor):
    """A tensor with the type it is stored in."""

    type: str
    """ggml's name, such as `Q8_0`."""

    @property
    def blocks(self) -> BlockType:
        """Return the type's layout."""
        return BLOCKS[self.type]

    @property
    def n_bytes(self) -> int:
        """Return the size of the tensor's data."""
        return self.blocks.bytes_of(self.size)


@dataclass(frozen=True)
class Plan:
    """All that decides a replica's bytes, apart from the code that draws them."""

    row: str
    seed: int
    vocabulary: int
    """Tokens of the real model."""
    metadata: dict[str, Value]
    """GGUF keys with their values; the tokens are those that text can become."""
    tensors: tuple[Weights, ...]

    @property
    def tied(self) -> bool:
        """Say whether the token embeddings are the output matrix as well."""
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    def offsets(self) -> list[int]:
        """Return where each tensor begins, in bytes from the end of the header."""
        offsets, end = [], 0
        for tensor in self.tensors:
            offsets.append(end)
            end = padded(end + tensor.n_bytes)
        return offsets

    def data_size(self) -> int:
        """Return the bytes of all tensors, with the gaps between them."""
        return sum(padded(tensor.n_bytes) for tensor in self.tensors)

    def header(self) -> bytes:
        """Return the beginning of the file."""
        placed = zip(self.tensors, self.offsets(), strict=True)
        infos = [TensorInfo(t.name, t.shape, t.blocks.code, offset) for t, offset in placed]
        return encode_header(whole_metadata(self.metadata, self.vocabulary), infos)

    def to_json(self) -> str:
        """Return the plan as text; the same plan gives the same text."""
        return json.dumps({"version": VERSION, **asdict(self)}, ensure_ascii=False) + "\n"


def whole_metadata(metadata: Mapping[str, Value], vocabulary: int) -> dict[str, Value]:
    """Return the metadata with as many tokens as the real model has.

    Those beyond the given ones are never what text becomes: they are there for the size of the
    first and the last matrix, and because a program may ask for any token by its number.
    """
    tokens = [str(token) for token in _list(metadata, _WORDS)]
    types = [int(kind) for kind in _list(metadata, _KINDS)]
    numbers = range(len(tokens), vocabulary)
    return {
        **metadata,
        _WORDS: [*tokens, *(f"<|{number}|>" for number in numbers)][:vocabulary],
        _KINDS: [*types, *(_UNUSED for _ in numbers)][:vocabulary],
    }


def read_plan(path: Path) -> Plan:
    """Read the plan at `path`.

    Raises:
        TecError: there is none, or it is damaged or of another version.
    """
    hint = "make it again: tec model ROW --variant replica --plan FILE"
    try:
        given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if given.pop("version") != VERSION:
            raise TecError("the plan of a replica is of another version", path, hint)
        tensors = [_weights(item, path) for item in given.pop("tensors")]
        return Plan(**given, tensors=tuple(tensors))
    except OSError as error:
        raise TecError(f"cannot read the plan: {error.strerror}", path, hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TecError("the plan of a replica is damaged", path, hint) from error


def plan_tensors(
    tensors: Sequence[Tensor], types: Mapping[str, str], where: object
) -> list[Weights]:
    """Return tensors with their types.

    Raises:
        TecError: weights cannot be drawn in a type that is wanted; names the tensor.
    """
    items = ({"name": t.name, "shape": t.shape, "type": types[t.name]} for t in tensors)
    return [_weights(item, where) for item in items]


def _weights(item: Mapping[str, Any], where: object) -> Weights:
    weights = Weights(item["name"], tuple(item["shape"]), item["type"])
    if weights.type not in BLOCKS:
        raise TecError(
            f"weights cannot be drawn in the type {weights.type} of {weights.name}",
            where,
            f"choose one of {', '.join(BLOCKS)} for it in the row's replica",
        )
    if weights.fan_in % weights.blocks.weights:
        raise TecError(
            f"{weights.name} has rows of {weights.fan_in} weights, no multiple of the "
            f"{weights.blocks.weights} of {weights.type}",
            where,
        )
    return weights


def _list(metadata: Mapping[str, Value], key: str) -> list[Any]:
    value = metadata[key]
    if not isinstance(value, list):
        raise TypeError(f"{key} is no list")
    return value
