"""What TEC has to know about a GGUF file before anything runs on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gguf import GGUFReader, LlamaFileType
from pydantic import BaseModel, ConfigDict

from tec.errors import TecError
from tec.quantities import Bytes, Count, Sha256

_MAGIC = b"GGUF"
_EXPERT_TENSOR = re.compile(r"^blk\.(\d+)\.ffn_(?:gate|up|gate_up|down)_exps\.weight$")


class Geometry(BaseModel):
    """The shape of a Mixture-of-Experts model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str
    quant: str
    n_layer: Count
    n_moe_layers: Count
    n_expert: Count
    n_expert_used: Count
    n_params: Count


class ModelInfo(Geometry):
    """A row's model file and its geometry, as kept in `.cache/models/<row>.json`."""

    row: str
    path: str
    bytes: Bytes
    sha256: Sha256


def read_geometry(path: Path) -> Geometry:
    """Read the geometry of the GGUF file at `path`.

    Raises:
        TecError: the file is missing, no GGUF, truncated or damaged, or a dense model.
    """
    reader = _open(path)
    arch = str(_value(reader, "general.architecture", path))
    n_expert = int(_value(reader, f"{arch}.expert_count", path, default=0))
    n_expert_used = int(_value(reader, f"{arch}.expert_used_count", path, default=0))
    layers = {match[1] for t in reader.tensors if (match := _EXPERT_TENSOR.match(t.name))}
    if n_expert == 0 or not layers:
        raise TecError(
            f"{arch} model without experts (a dense model)",
            path,
            "choose a Mixture-of-Experts GGUF: an expert cache has nothing to keep here",
        )
    if not 0 < n_expert_used <= n_expert:
        raise TecError(
            f"{n_expert_used} of {n_expert} experts used per token makes no sense",
            path,
            "convert or download the model again",
        )
    return Geometry(
        arch=arch,
        quant=_quant(reader, path),
        n_layer=int(_value(reader, f"{arch}.block_count", path)),
        n_moe_layers=len(layers),
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_params=sum(int(tensor.n_elements) for tensor in reader.tensors),
    )


def _open(path: Path) -> GGUFReader:
    """Open a GGUF file; every tensor's data must lie inside the file."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise TecError(
            f"cannot read the model: {error.strerror}", path, "check the row's source"
        ) from error
    if magic != _MAGIC:
        raise TecError("not a GGUF file", path, "check the row's source; download the model again")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        # the reader maps each tensor's bytes, so data past the end of the file surfaces here
        raise TecError(
            "truncated or damaged GGUF file: what its header announces does not fit into its "
            f"{path.stat().st_size} bytes",
            path,
            "delete the file and download or make it again",
        ) from error


def _value(reader: GGUFReader, key: str, path: Path, default: Any = None) -> Any:
    """Return the value of a metadata key; without a default the key has to be there."""
    field = reader.get_field(key)
    if field is not None:
        return field.contents()
    if default is None:
        raise TecError(f"the GGUF file has no key {key}", path, "convert the model again")
    return default


def _quant(reader: GGUFReader, path: Path) -> str:
    """Return the file's quantisation by llama.cpp's name, such as `Q8_0`."""
    number = int(_value(reader, "general.file_type", path, default=-1))
    try:
        name = LlamaFileType(number).name
    except ValueError:
        return "unknown"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
