"""What a pin list was made from, kept beside it as `<list>.json`, so that a stale one is known."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tec.calibration import Stability
from tec.errors import TecError
from tec.files import sha256_file
from tec.misfit import misfits
from tec.quantities import Count, Sha256

VERSION: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Origin(_Part):
    """What decides a list; where one of these differs, the list is stale."""

    model: Sha256
    prompt: Sha256
    """Of the text's bytes."""
    generated: Count
    """Tokens that the model generated after the prompt."""
    limit: Count | None
    """The most experts of a layer; None for all that were used."""


class LayerSummary(_Part):
    """One MoE layer."""

    layer: Count
    used: Count
    """Experts that any token selected."""
    top: Count
    """Selections of the most used expert."""
    covered: float
    """Share of the selections that go to the `slots` most used."""


class Calibration(_Part):
    """A pin list and where it came from."""

    version: Literal[1] = VERSION
    origin: Origin
    pins: Sha256
    """Of the list's file."""
    model: str
    arch: str
    n_layer: Count
    n_expert: Count
    n_expert_used: Count
    moe_layers: tuple[Count, ...]
    """Model layers with experts, ascending."""
    prompt: str
    tokens: Count
    """Of prompt and generation together."""
    contexts: Count
    """Pieces that the prompt was read in."""
    selections_per_expert: float
    stability: Stability
    layers: tuple[LayerSummary, ...]
    engine: str
    """llama.cpp's commit and the hash of the series."""
    target: str


def record_path(pins: Path) -> Path:
    """Return where the record of a list lies."""
    return pins.with_name(f"{pins.name}.json")


def read_calibration(pins: Path) -> Calibration:
    """Return the record of a list.

    Raises:
        TecError: there is none, it is damaged, or the list was changed since.
    """
    path = record_path(pins)
    hint = "make the list again: tec calibrate"
    try:
        found = Calibration.model_validate_json(path.read_bytes())
        same = sha256_file(pins) == found.pins
    except OSError as error:
        raise TecError(
            f"no record of what the list was made from: {error.strerror}", error.filename, hint
        ) from error
    except ValidationError as error:
        raise TecError(
            f"the record of a list is damaged: {misfits(error)[0]}", path, hint
        ) from None
    if not same:
        raise TecError("the list is not the one of its record", pins, hint)
    return found


def why_stale(pins: Path, origin: Origin) -> str | None:
    """Return what a list differs in from one made from `origin` now; None if in nothing."""
    try:
        found = read_calibration(pins).origin
    except TecError as error:
        return error.what
    differing = [
        name for name in Origin.model_fields if getattr(found, name) != getattr(origin, name)
    ]
    return f"made from another {' and '.join(differing)}" if differing else None


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text's bytes in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
