"""Writing a miniature: its metadata, the tensors llama.cpp wants for it, their quantisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf

from tec.build import Manifest, default_jobs
from tec.config import Key, Miniature, Row
from tec.errors import TecError
from tec.miniature_weights import EMBEDDINGS, Groups, Tensor, embed, generate, stored_as
from tec.paths import ROOT
from tec.process import run_tool

TOKENIZER = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
"""Whose tokenizer every miniature has, so that real text becomes real tokens."""


def write_keys(row: Row, arch: str, recipe: Miniature, path: Path) -> None:
    """Write a GGUF file that has the metadata of the row's miniature and no tensors."""
    writer = _writer(row, arch, recipe, path)
    _write_header(writer)
    writer.close()


def list_tensors(recipe: Miniature, keys: Path, manifest: Manifest, log: Path) -> list[Tensor]:
    """Return the tensors that llama.cpp creates for the metadata in the file `keys`.

    Raises:
        TecError: llama.cpp makes no model of this metadata; says which key it misses.
    """
    command = [str(manifest.bin_dir / "llama-tensor-list"), "-m", str(keys)]
    command += [word for pattern in recipe.without for word in ("--without", pattern)]
    lines = run_tool(command, {}, log).stdout.splitlines()
    described = [json.loads(line) for line in lines]
    return [Tensor(item["name"], tuple(item["shape"])) for item in described]


def write_weights(
    row: Row,
    arch: str,
    recipe: Miniature,
    tensors: Sequence[Tensor],
    groups: Groups,
    path: Path,
    update: Callable[[int, int], None],
) -> None:
    """Write the row's miniature with generated weights, not quantised yet.

    Args:
        row: named in the file.
        arch: llama.cpp's name of the architecture.
        recipe: keys and seed.
        tensors: what the file holds.
        groups: the group of every token.
        path: GGUF file.
        update: called with the number of weights done and of all.
    """
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    writer = _writer(row, arch, recipe, path)
    for tensor in tensors:
        dtype = stored_as(tensor)
        writer.add_tensor_info(tensor.name, tensor.shape[::-1], dtype, tensor.size * dtype.itemsize)
    _write_header(writer)
    total = sum(tensor.size for tensor in tensors)
    done = 0
    for tensor in tensors:
        if tensor.name == EMBEDDINGS:
            values = embed(tensor, recipe.seed, groups, tied)
        else:
            values = generate(tensor, recipe.seed)
        writer.write_tensor_data(values)
        done += tensor.size
        update(done, total)
    writer.close()


def quantize(recipe: Miniature, source: Path, target: Path, manifest: Manifest, log: Path) -> None:
    """Let llama.cpp's own quantiser write `target`, with the types the row's file has."""
    types = recipe.tensor_types.items()
    command = [str(manifest.bin_dir / "llama-quantize")]
    command += [word for item in types for word in ("--tensor-type", "=".join(item))]
    command += [str(source), str(target), recipe.quantize, str(default_jobs())]
    run_tool(command, {}, log)


def _writer(row: Row, arch: str, recipe: Miniature, path: Path) -> gguf.GGUFWriter:
    """Return a writer to `path` that has all of the metadata."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"{row.title} (miniature)")
    for key, value in recipe.keys.items():
        _add(writer, f"{arch}.{key}", value)
    reader = gguf.GGUFReader(TOKENIZER)
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    return writer


def _write_header(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _add(writer: gguf.GGUFWriter, key: str, value: Key) -> None:
    """Add a key with the type that converters give such a value."""
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < 2**32:
        raise TecError(f"{key} is {value}, which is no 32-bit number without sign", key)
    adders[type(value)](key, value)
