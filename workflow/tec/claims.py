"""Numbers in the paper's text: each is a claim, a name for one value in a file of results.

`paper/claims.yaml` says for every claim where its value stands. Text is never typed: it is the
value, scaled, formatted and given its unit here.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tec.errors import TecError
from tec.nearest import suggestion
from tec.yaml_file import Section

Scalar = str | int | float
Entry = Mapping[str, Any]
"""A line of a table, a record, or a whole JSON document."""

_NUMBERS: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "max": max,
    "sum": sum,
    "median": statistics.median,
}


class Claim(Section):
    """Where a value stands and how it is written.

    A text that starts with `@` in `where` and `nearest`, and `{name}` in `file`, stand for the
    value of a claim further up.
    """

    file: str
    """A .csv, .jsonl or .json file in the study's folder; with `base: repository`, in the root."""
    base: Literal["results", "repository"] = "results"
    field: str
    """A column, or a path of keys into a record, such as `system.cpu` or `command.--chunks`."""
    where: dict[str, Scalar] = Field(default_factory=dict)
    """Only entries whose fields have these values; `""` is an empty cell, `"*"` one that is not."""
    nearest: dict[str, Scalar] = Field(default_factory=dict)
    """Of those, the entries whose field is closest to the value."""
    pick: Literal["only", "first", "last", "min", "max", "median", "sum", "count"] = "only"
    scale: float = 1
    format: str = ""
    """Python's format specification, such as `.1f`; empty: the value as it stands."""
    unit: str = ""
    optional: bool = False
    """The value may be missing: no file, entry or field, an empty cell, or null. The claim is then
    null, and so is every optional claim that refers to it."""


class ClaimsFile(Section):
    """paper/claims.yaml."""

    claims: dict[str, Claim]
    allowed: dict[str, str] = Field(default_factory=dict)
    """Words with digits that the text may spell out, each with the reason."""


class Resolved(BaseModel):
    """A claim with its value, as the paper reads it."""

    model_config = ConfigDict(frozen=True)

    value: Scalar | None
    text: str | None
    source: str
    """File, field and selection, for the reader who wants to follow the number."""


@dataclass(frozen=True)
class Bases:
    """The folders that claims name files in."""

    results: Path
    repository: Path


def resolve_claims(claims: Mapping[str, Claim], bases: Bases) -> dict[str, Resolved]:
    """Return every claim with its value.

    Raises:
        TecError: a file, column, key, entry or value is missing; names the claim and the file.
    """
    resolved: dict[str, Resolved] = {}
    for name, claim in claims.items():
        resolved[name] = _resolve(name, claim, bases, resolved)
    return resolved


def _resolve(name: str, claim: Claim, bases: Bases, earlier: Mapping[str, Resolved]) -> Resolved:
    if claim.optional and any(
        earlier[one].value is None for one in references(claim) & set(earlier)
    ):
        return Resolved(value=None, text=None, source=f"{claim.file}: {claim.field}")

    def known(reference: str) -> Scalar:
        return _value_of(reference, name, earlier)

    file = re.sub(r"\{(\w+)\}", lambda found: str(known(found[1])), claim.file)
    path = (bases.results if claim.base == "results" else bases.repository) / file
    where, nearest = (
        {key: known(str(value)[1:]) if _is_reference(value) else value for key, value in w.items()}
        for w in (claim.where, claim.nearest)
    )
    source = _describe(file, claim, where, nearest)
    try:
        missing = claim.optional and not path.exists()
        entries = [] if missing else _select(_read_entries(path), where, nearest)
        value = _pick(claim, [_look_up(entry, claim.field, claim.optional) for entry in entries])
    except _ClaimError as error:
        raise TecError(f"claim '{name}': {error}", f"{path}, {source}", error.hint) from error
    return Resolved(value=value, text=_write(name, claim, value), source=source)


def references(claim: Claim) -> set[str]:
    """Return the names of the claims that a claim starts from."""
    wanted = [*claim.where.values(), *claim.nearest.values()]
    named = {str(value)[1:] for value in wanted if _is_reference(value)}
    return named | set(re.findall(r"\{(\w+)\}", claim.file))


def _is_reference(value: Scalar) -> bool:
    return str(value).startswith("@")


def _value_of(reference: str, name: str, earlier: Mapping[str, Resolved]) -> Scalar:
    """Return the value of a claim further up that the claim `name` refers to."""
    if reference not in earlier:
        what = f"claim '{name}' refers to '{reference}', which is not a claim further up"
        raise TecError(what, "claims.yaml", suggestion(reference, earlier))
    value = earlier[reference].value
    if value is None:
        raise TecError(f"claim '{name}' refers to '{reference}', which has no value", "claims.yaml")
    return value


class _ClaimError(Exception):
    """What is wrong with a claim's file or selection."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


def _read_entries(path: Path) -> list[Entry]:
    readers: dict[str, Callable[[str], list[Entry]]] = {
        ".csv": _read_csv,
        ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
        ".json": lambda text: [json.loads(text)],
    }
    if path.suffix not in readers:
        raise _ClaimError(f"cannot read a '{path.suffix}' file", f"use {', '.join(readers)}")
    try:
        return readers[path.suffix](path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _ClaimError("file not found", "make it first: snakemake") from None
    except (ValueError, csv.Error) as error:
        raise _ClaimError(f"not a valid {path.suffix[1:]} file: {error}") from error


def _read_csv(text: str) -> list[Entry]:
    lines = csv.DictReader(text.splitlines())
    return [{column: _cell(cell) for column, cell in line.items()} for line in lines]


def _cell(cell: str) -> Scalar | None:
    """Return a table's cell as a number where it is one; an empty cell is None."""
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            continue
    return cell or None


def _select(
    entries: Sequence[Entry], where: Mapping[str, Scalar], nearest: Mapping[str, Scalar]
) -> list[Entry]:
    """Return the entries with the wanted values, and of those the nearest ones."""
    found = [
        entry
        for entry in entries
        if all(_equal(_look_up(entry, field), value) for field, value in where.items())
    ]
    for field, value in nearest.items():
        found = _nearest(found, field, _number(value))
    return found


def _nearest(entries: Sequence[Entry], field: str, value: float) -> list[Entry]:
    """Return the entries whose field is closest to the value; those without one are left out."""
    distances = [
        (abs(_number(number) - value), entry)
        for entry in entries
        if (number := _look_up(entry, field)) is not None
    ]
    least = min((distance for distance, _ in distances), default=0.0)
    return [entry for distance, entry in distances if distance == least]


def _look_up(entry: Entry, field: str, optional: bool = False) -> object:
    """Return the value at a path of keys.

    In a list a number is a position, and another text is an item that stands before the value, as
    an option does on a command line.
    """
    value: Any = entry
    for key in field.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, list) and key in value[:-1]:
            value = value[value.index(key) + 1]
        elif optional:
            return None
        else:
            known = value if isinstance(value, Mapping) else ()
            raise _ClaimError(f"there is no field '{field}'", suggestion(key, known))
    return value


def _equal(value: object, wanted: Scalar) -> bool:
    if wanted in ("", "*"):
        return (value is None) == (wanted == "")
    try:
        return _number(value) == _number(wanted)
    except _ClaimError:
        return str(value) == str(wanted)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError):
        raise _ClaimError(f"'{value}' is not a number") from None


def _pick(claim: Claim, values: Sequence[object]) -> Scalar | None:
    """Return the claim's one value."""
    if claim.pick == "count":
        return len(values)
    if not values and claim.optional:
        return None
    if not values:
        raise _ClaimError("no entry matches", "correct the claim or the study")
    if claim.pick in _NUMBERS:
        return _NUMBERS[claim.pick]([_number(value) for value in values])
    if claim.pick == "only" and len(values) > 1:
        raise _ClaimError(f"{len(values)} entries match", "narrow `where` or choose a `pick`")
    value = values[-1 if claim.pick == "last" else 0]
    if value is None:
        if claim.optional:
            return None
        raise _ClaimError("the value is missing")
    return value if isinstance(value, int | float) else str(value)


def _write(name: str, claim: Claim, value: Scalar | None) -> str | None:
    if value is None:
        return None
    scaled = value if isinstance(value, str) or claim.scale == 1 else value * claim.scale
    try:
        return f"{scaled:{claim.format}}{claim.unit}"
    except ValueError as error:
        what = f"claim '{name}': cannot write {value!r} as '{claim.format}': {error}"
        raise TecError(what, hint="correct the claim's `format`") from None


def _describe(
    file: str, claim: Claim, where: Mapping[str, Scalar], nearest: Mapping[str, Scalar]
) -> str:
    words = {"": "empty", "*": "not empty"}
    parts = [f"{field} = {words.get(str(value), value)}" for field, value in where.items()]
    parts += [f"{field} nearest {value}" for field, value in nearest.items()]
    chosen = claim.field if claim.pick == "only" else f"{claim.pick} of {claim.field}"
    return f"{file}: {chosen}" + (f" where {', '.join(parts)}" if parts else "")
