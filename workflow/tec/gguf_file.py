"""What TEC has to know about a GGUF file before anything runs on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gguf import GGUFReader, LlamaFileType
from pydantic import BaseModel, ConfigDict

from tec.config import Variant
from tec.errors import TecError
from tec.quantities import Bytes, Count, Sha256
from tec.routing_summary import RoutingSummary

_MAGIC = b"GGUF"
_EXPERT_TENSOR = re.compile(r"^blk\.(\d+)\.ffn_(?:gate|up|gate_up|down)_exps\.weight$")
_SPLIT_NAME = re.compile(r"^(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
"""How llama.cpp finds the parts of a split model; the first has number 1."""


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


class Part(BaseModel):
    """One file of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    bytes: Bytes
    sha256: Sha256


class ModelInfo(Geometry):
    """A row's model and its geometry, as kept in `.cache/models/<row>.<variant>.json`."""

    row: str
    variant: Variant = "full"
    path: str
    """The first part: the one that is opened."""
    bytes: Bytes
    """Of all parts together."""
    sha256: Sha256
    """Of the file; of a split model, of the lines `<sha256>  <name>` of its parts; of a replica, of
    what decides its bytes (`tec.replica.identity`)."""
    parts: tuple[Part, ...] = ()
    routing: RoutingSummary | None = None
    """How much reuse the routing of a miniature has; measured when it was made."""


def read_geometry(path: Path, n_files: int | None = None) -> Geometry:
    """Read the geometry of the GGUF model at `path`; of a split one, `path` is the first part.

    Args:
        path: the model.
        n_files: how many files it has to have, where that is known.

    Raises:
        TecError: a file is missing, no GGUF, truncated or damaged, or the model is a dense one; it
            is split into another number of files than `n_files`.
    """
    reader = _open(path)
    count = int(_value(reader, "split.count", path, default=1))
    if n_files is not None and max(count, 1) != n_files:
        raise TecError(
            f"the model's number of files is {max(count, 1)}, but its row names {n_files}",
            path,
            "name every part in the row, in order, and nothing else",
        )
    arch = str(_value(reader, "general.architecture", path))
    n_expert = int(_value(reader, f"{arch}.expert_count", path, default=0))
    n_expert_used = int(_value(reader, f"{arch}.expert_used_count", path, default=0))
    tensors = _tensors(reader, path, count)
    layers = {match[1] for name in tensors if (match := _EXPERT_TENSOR.match(name))}
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
        n_params=sum(tensors.values()),
    )


def split_paths(path: Path, count: int) -> list[Path]:
    """Return the files of a model split into `count` parts; `path` is the first.

    Raises:
        TecError: `path` is not named as the first of so many; a part is missing, naming it.
    """
    if count <= 1:
        return [path]
    match = _SPLIT_NAME.match(path.name)
    if match is None or int(match["number"]) != 1 or int(match["count"]) != count:
        raise TecError(
            f"the file is split into {count} parts but not named as the first of them",
            path,
            f"name the parts NAME-00001-of-{count:05d}.gguf and so on, and open the first",
        )
    names = [
        f"{match['prefix']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)
    ]
    paths = [path.with_name(name) for name in names]
    for part in paths:
        if not part.is_file():
            raise TecError(
                f"part {part.name} of the split model is missing",
                path.parent,
                "fetch it into the folder of the others",
            )
    return paths


def _tensors(first: GGUFReader, path: Path, count: int) -> dict[str, int]:
    """Return the number of elements of each tensor in all `count` parts."""
    readers = [first, *(_open(part) for part in split_paths(path, count)[1:])]
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    wanted = int(_value(first, "split.tensors.count", path, default=len(tensors)))
    if len(tensors) != wanted:
        raise TecError(
            f"the parts have {len(tensors)} tensors together, the first announces {wanted}",
            path,
            "the parts belong to different models; fetch them again",
        )
    return {tensor.name: int(tensor.n_elements) for tensor in tensors}


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
