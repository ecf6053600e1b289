"""Replicas: a row's full geometry and quantisation with generated weights, streamed to disk.

llama.cpp says which tensors the row's metadata asks for, and its quantiser which types it would
give them (`llama-quantize --dry-run` on a file that has the row's shapes and no data). The weights
are then drawn in those types. The file's name has a hash of all that decides its bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import gguf

from tec.build import Manifest
from tec.config import Replica, Row, Shape
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.generated_model import remove_others, scratch_folder
from tec.gguf_header import TensorInfo, Value, encode_header, padded
from tec.miniature_file import TOKENIZER, list_tensors
from tec.miniature_key import KEY_DIGITS
from tec.miniature_weights import Tensor, stored_as
from tec.paths import MODELS
from tec.process import run_tool
from tec.replica_blocks import BLOCKS
from tec.replica_file import check_space, write_with_progress
from tec.replica_plan import Plan, plan_tensors, read_plan, whole_metadata
from tec.replica_weights import VERSION as DRAWN

PLANNED = 1
"""Version of the plans; to be raised when a row gets another one (tests/unit/test_versions.py)."""

_TYPE = re.compile(
    r"^\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[.*?\], +type = +(?P<old>\w+), size = +"
    r"[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<new>\w+)\))?$",
    re.MULTILINE,
)
"""How llama-quantize prints a tensor in a dry run."""


def make(row: Row, manifest: Manifest, folder: Path, layers: int | None = None) -> Path:
    """Return the row's replica in `folder`; write it if it is not there.

    Beside it lie `.plan.json`, what decides its bytes, and `.log`, what the tools wrote.

    Args:
        row: with `shape` and `replica`.
        manifest: the build whose tools say what the file has to hold.
        folder: where replicas are kept. Earlier ones of the row are removed.
        layers: make the first so many blocks only; such a file is for tests.

    Raises:
        TecError: the recipe is wrong, or a tool fails.
        RunError: the disk is full.
    """
    recipe, shape = _checked(row)
    name = row.name if layers is None else f"{row.name}-first{layers}"
    path = folder / f"{name}-{_key(row, manifest, layers)}.gguf"
    if path.exists() and plan_file(path).exists():
        return path
    with scratch_folder(folder, row.name, f"making the replica of {row.name}") as scratch:
        plan = _plan(row, recipe, shape, manifest, scratch, path.with_suffix(".log"), layers)
        remove_others(name, path)
        check_space(plan, folder)
        made = scratch / path.name
        write_with_progress(plan, made)
        # The plan first: a model of that name is complete.
        write_atomically(plan_file(path), plan.to_json())
        made.replace(path)
    return path


def make_plan(row: Row, manifest: Manifest, scratch: Path, layers: int | None = None) -> Plan:
    """Return what the row's replica holds, without writing it.

    Args:
        row: with `shape` and `replica`.
        manifest: the build whose tools say so.
        scratch: an empty folder for files that the tools read, and their log.
        layers: as for `make`.

    Raises:
        TecError: as for `make`.
    """
    recipe, shape = _checked(row)
    return _plan(row, recipe, shape, manifest, scratch, scratch / "plan.log", layers)


def plan_file(path: Path) -> Path:
    """Return where the plan of the replica at `path` is."""
    return path.with_suffix(".plan.json")


def identity(path: Path) -> str:
    """Return the hash of what decides the bytes of the replica at `path`, as a SHA-256 in hex.

    It stands for the file's own hash, which takes longer to compute than the file to make.
    """
    return _digest(read_plan(plan_file(path)).to_json(), _drawn_by())


def _plan(
    row: Row,
    recipe: Replica,
    shape: Shape,
    manifest: Manifest,
    scratch: Path,
    log: Path,
    layers: int | None,
) -> Plan:
    log.unlink(missing_ok=True)
    metadata = _metadata(row, recipe, shape, layers)
    keys = scratch / "keys.gguf"
    keys.write_bytes(encode_header(whole_metadata(metadata, recipe.vocabulary), []))
    tensors = list_tensors(recipe, keys, manifest, log)
    types = _types(recipe, metadata, tensors, scratch, manifest, log)
    planned = plan_tensors(tensors, types, MODELS / f"{row.name}.yaml")
    return Plan(row.name, recipe.seed, recipe.vocabulary, metadata, tuple(planned))


def _checked(row: Row) -> tuple[Replica, Shape]:
    """Return the row's recipe and shape.

    Raises:
        TecError: one of them is missing.
    """
    if row.replica is None or row.shape is None:
        missing = "replica" if row.replica is None else "shape"
        raise TecError(
            f"row {row.name} has no {missing}",
            MODELS / f"{row.name}.yaml",
            f"add the section '{missing}'",
        )
    return row.replica, row.shape


def _metadata(row: Row, recipe: Replica, shape: Shape, layers: int | None) -> dict[str, Value]:
    """Return the file's metadata, with the tokenizer that miniatures have."""
    file_type = gguf.LlamaFileType[f"MOSTLY_{recipe.quantize}"]
    metadata: dict[str, Value] = {
        "general.architecture": shape.arch,
        "general.name": f"{row.title} (replica)",
        "general.file_type": int(file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    for key, value in _cut(recipe.keys, layers, row).items():
        metadata[f"{shape.arch}.{key}"] = value
    for name, field in gguf.GGUFReader(TOKENIZER).fields.items():
        if name.startswith("tokenizer."):
            metadata[name] = field.contents()
    return metadata


def _cut(keys: Mapping[str, Value], layers: int | None, row: Row) -> Mapping[str, Value]:
    """Return the keys of a model that has only the first blocks; lists have a value for each."""
    count = keys["block_count"]
    if layers is None:
        return keys
    if not isinstance(count, int) or not 1 <= layers <= count:
        raise TecError(f"{layers} of {count} layers make no sense", f"row {row.name}", "--layers N")
    short: dict[str, Value] = {"block_count": layers}
    for key, value in keys.items():
        if isinstance(value, list) and len(value) == count:
            short[key] = value[:layers]
    return {**keys, **short}


def _types(
    recipe: Replica,
    metadata: dict[str, Value],
    tensors: Sequence[Tensor],
    scratch: Path,
    manifest: Manifest,
    log: Path,
) -> dict[str, str]:
    """Return the type that llama.cpp's quantiser gives each tensor.

    It is asked about a file of the right shapes whose data is a hole: a dry run reads none of it.
    """
    hollow = scratch / "hollow.gguf"
    _write_hollow(whole_metadata(metadata, recipe.vocabulary), tensors, hollow)
    command = [str(manifest.bin_dir / "llama-quantize"), "--dry-run"]
    for pattern, name in recipe.tensor_types.items():
        command += ["--tensor-type", f"{pattern}={name}"]
    done = run_tool([*command, str(hollow), recipe.quantize], {}, log)
    hollow.unlink()
    found = _TYPE.finditer(done.stderr + done.stdout)
    types = {match["name"]: (match["new"] or match["old"]).upper() for match in found}
    if missing := [tensor.name for tensor in tensors if tensor.name not in types]:
        raise TecError(f"llama-quantize does not say which type {missing[0]} gets", log)
    return types


def _write_hollow(metadata: dict[str, Value], tensors: Sequence[Tensor], path: Path) -> None:
    """Write a model that is not quantised and has no data; it takes hardly any room on the disk."""
    infos, end = [], 0
    for tensor in tensors:
        kind = BLOCKS["F16" if stored_as(tensor).itemsize == 2 else "F32"]
        infos.append(TensorInfo(tensor.name, tensor.shape, kind.code, end))
        end += padded(kind.bytes_of(tensor.size))
    header = encode_header(metadata, infos)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + end)


def _key(row: Row, manifest: Manifest, layers: int | None) -> str:
    """Return the hash of what decides the replica's bytes, in hex; no tool has to run for it."""
    settings = row.model_dump(mode="json", include={"title", "shape", "replica"})
    engine = [manifest.digest, manifest.series_hash]
    decides = (settings, layers, engine, sha256_file(TOKENIZER), PLANNED, _drawn_by())
    return _digest(*decides)[:KEY_DIGITS]


def _drawn_by() -> dict[str, int | str]:
    """Return the versions of what makes a replica's bytes of its plan."""
    return {"replica": DRAWN, "numpy": version("numpy")}


def _digest(*decides: object) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
