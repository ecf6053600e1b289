"""The model that a calibration is for: a row of the project, a row's record, or any GGUF file."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader

from tec.config import load_row
from tec.gguf_file import Geometry, ModelInfo, read_geometry, split_paths
from tec.measure import check_parts
from tec.models import joint_hash, read_model, resolve_model
from tec.paths import ROOT
from tec.verified import sha256_of

_HEAD = 2**16
"""Bytes from a GGUF file's beginning that are searched first."""
_UINT32 = 4
"""GGUF's number of the type."""
_NUMBER = struct.Struct("<I")
_PARTS = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class CalibratedModel:
    """What a calibration has to know of its model."""

    name: str
    """Of the row, or of the file."""
    path: Path
    sha256: str
    """As `ModelInfo.sha256`."""
    geometry: Geometry
    context: int
    """Tokens that the model was trained to see at once; 0 where its file does not say."""


def find_model(wanted: str) -> CalibratedModel:
    """Return the model that `wanted` names.

    Args:
        wanted: a file `*.gguf`, of a split model its first part; a record `*.json` of a row's
            model; else the name of a row.

    Raises:
        TecError: there is no such row or file, it is not the one that the row names, is damaged, or
            has no layer with experts.
    """
    path = Path(wanted)
    if path.suffix == ".gguf":
        geometry = read_geometry(path)
        return _model(path.name, path, _hash(path), geometry)
    if path.suffix == ".json":
        found = read_model(path)
        check_parts(found, path)
    else:
        found = resolve_model(load_row(wanted))
    return _of_row(found)


def _of_row(found: ModelInfo) -> CalibratedModel:
    geometry = Geometry(**found.model_dump(include=set(Geometry.model_fields)))
    return _model(found.row, ROOT / found.path, found.sha256, geometry)


def _model(name: str, path: Path, sha256: str, geometry: Geometry) -> CalibratedModel:
    context = _context(path, f"{geometry.arch}.context_length")
    return CalibratedModel(name, path.resolve(), sha256, geometry, context)


def _context(path: Path, key: str) -> int:
    """Return a number of a GGUF file's metadata, 0 where it has none.

    It is looked for where converters write it, before the vocabulary: to read all of that takes
    seconds.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    entry = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", _UINT32)
    place = head.find(entry) + len(entry)
    if len(entry) <= place <= len(head) - _NUMBER.size:
        return int(_NUMBER.unpack_from(head, place)[0])
    field = GGUFReader(path).get_field(key)
    return int(field.contents()) if field is not None else 0


def _hash(path: Path) -> str:
    """Return the SHA-256 of a model file, for a split model that of the list of its parts."""
    count = _PARTS.search(path.name)
    parts = split_paths(path, int(count[1]) if count else 1)
    return joint_hash([(part.name, sha256_of(part, lambda: None)) for part in parts])
