"""Pin lists: per layer the experts to pin to slots, most used first.

A text file: a comment that names `EXPERT_CACHE_PIN_LIST v1`, `n_layer N`, `n_expert N`, then one
line `layer I: e0 e1 ...` for every layer of the model from 0 on. A layer without experts, and one
where nothing is to be pinned, has an empty list. Lines that begin with `#` are comments: the
published tool writes some after the first. The same files are refused here as by the programs
(`llama_expert_pin_list` in patches/src), which read bytes and know no other white space than C's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tec.errors import TecError
from tec.files import write_atomically
from tec.routing_trace import RoutingTrace

MARK = b"EXPERT_CACHE_PIN_LIST v1"

_NUMBER = re.compile(rb"[+-]?[0-9]+")


@dataclass(frozen=True)
class PinList:
    """Experts to pin, per layer of the model."""

    n_expert: int
    layers: tuple[tuple[int, ...], ...]


def read_pin_list(path: Path, n_layer: int | None = None, n_expert: int | None = None) -> PinList:
    """Read a pin list.

    Args:
        path: the file.
        n_layer: the model's layers, if the list has to belong to a model.
        n_expert: the model's experts per layer, likewise.

    Raises:
        TecError: the file is missing, no pin list, of another model, incomplete, or names an expert
            that cannot be; names the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TecError(f"cannot read the pin list: {error.strerror}", path) from error
    if lines[-1] == b"":
        lines.pop()
    if not lines or MARK not in lines[0]:
        raise TecError(f"expected a comment with '{MARK.decode()}': not a pin list", _at(path, 1))
    numbers = [i for i, text in enumerate(lines, 1) if i > 1 and not text.startswith(b"#")]
    following = iter([*numbers, len(lines) + 1])
    found_layers = _value(path, lines, next(following), "n_layer", n_layer)
    found_experts = _value(path, lines, next(following, len(lines) + 1), "n_expert", n_expert)
    layers = []
    for layer in range(found_layers):
        line = next(following, len(lines) + 1)
        if line > len(lines):
            raise TecError(f"expected 'layer {layer}: ...': the list is truncated", _at(path, line))
        layers.append(_experts(path, line, lines[line - 1], layer, found_experts))
    if (line := next(following, len(lines) + 1)) <= len(lines):
        raise TecError(f"there is more than the {found_layers} layers", _at(path, line))
    return PinList(found_experts, tuple(layers))


def write_pin_list(path: Path, pins: PinList) -> None:
    """Write a pin list, all of it or nothing."""
    lines = [f"# {MARK.decode()}", f"n_layer {len(pins.layers)}", f"n_expert {pins.n_expert}"]
    for layer, experts in enumerate(pins.layers):
        lines.append(" ".join([f"layer {layer}:", *map(str, experts)]))
    write_atomically(path, "\n".join(lines) + "\n")


def most_used(
    trace: RoutingTrace, layers: Sequence[int] | None = None, n_layer: int | None = None
) -> PinList:
    """Return the experts of each layer by their number of selections; the unused are left out.

    Args:
        trace: recorded routing.
        layers: the model layer of each MoE layer of the trace, ascending; by default from 0 on.
        n_layer: layers of the model; by default up to the last one with experts.

    Raises:
        TecError: `layers` are not as many as the trace has, not ascending, or beyond `n_layer`.
    """
    numbers = list(range(trace.n_layers)) if layers is None else list(layers)
    count = numbers[-1] + 1 if n_layer is None and numbers else n_layer or 0
    fits = bool(numbers) and numbers[0] >= 0 and numbers[-1] < count
    if len(numbers) != trace.n_layers or numbers != sorted(set(numbers)) or not fits:
        raise TecError(
            f"the trace has {trace.n_layers} MoE layers, which cannot be layers {numbers} of a "
            f"model with {count}",
            hint="name the model's layers that have experts, ascending, and how many it has in all",
        )
    lists: list[tuple[int, ...]] = [()] * count
    for index, layer in enumerate(numbers):
        uses = np.bincount(trace.selections[:, index].ravel(), minlength=trace.n_expert)
        order = np.argsort(-uses, kind="stable")
        lists[layer] = tuple(int(expert) for expert in order[uses[order] > 0])
    return PinList(trace.n_expert, tuple(lists))


def _at(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def _value(path: Path, lines: Sequence[bytes], line: int, name: str, expected: int | None) -> int:
    """Read `name value` from a line."""
    words = lines[line - 1].split() if line <= len(lines) else []
    if len(words) != 2 or words[0] != name.encode() or not _NUMBER.fullmatch(words[1]):
        raise TecError(f"expected '{name} N'", _at(path, line))
    value = int(words[1])
    if value < 1 or (expected is not None and value != expected):
        raise TecError(
            f"{name} is {value}, but "
            + ("it is at least 1" if expected is None else f"the model has {expected}"),
            _at(path, line),
            "take the pin list of this model",
        )
    return value


def _experts(path: Path, line: int, text: bytes, layer: int, n_expert: int) -> tuple[int, ...]:
    words = text.split()
    if words[:2] != [b"layer", f"{layer}:".encode()]:
        raise TecError(f"expected 'layer {layer}: ...'", _at(path, line))
    experts: list[int] = []
    for word in words[2:]:
        if not _NUMBER.fullmatch(word):
            shown = word.decode(errors="replace")
            raise TecError(f"'{shown}' is not an expert id", _at(path, line))
        expert = int(word)
        if not 0 <= expert < n_expert:
            raise TecError(f"expert {expert} is not in 0..{n_expert - 1}", _at(path, line))
        if expert in experts:
            raise TecError(f"expert {expert} is listed twice", _at(path, line))
        experts.append(expert)
    return tuple(experts)
