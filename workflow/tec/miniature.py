"""Miniatures: a row's architecture, experts and quantisation at toy size, made on the spot.

llama.cpp says which tensors the row's metadata asks for and quantises the generated weights; the
row says the rest. The file's name has a hash of all that decides its bytes and its routing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tec.build import Manifest
from tec.config import Miniature, Row, Shape
from tec.errors import TecError
from tec.files import write_atomically
from tec.generated_model import remove_others, scratch_folder
from tec.miniature_check import check
from tec.miniature_file import list_tensors, quantize, write_keys, write_weights
from tec.miniature_groups import token_groups
from tec.miniature_key import recipe_key
from tec.miniature_weights import EMBEDDINGS, Tensor
from tec.nearest import suggestion
from tec.paths import MODELS
from tec.progress import Progress

_OF_THE_SHAPE = {"expert_count": "n_expert", "expert_used_count": "n_expert_used"}


def make(row: Row, manifest: Manifest, folder: Path) -> Path:
    """Return the row's miniature in `folder`; make it if it is not there.

    Beside it lie `.routing.json`, the statistics of its routing, and `.log`, what the tools wrote.

    Args:
        row: with `shape` and `miniature`.
        manifest: the build whose tools make it.
        folder: where miniatures are kept. Earlier ones of the row are removed.

    Raises:
        TecError: the recipe is wrong, a tool fails, or what was made is of no use.
    """
    recipe, shape = _checked(row)
    path = folder / f"{row.name}-{recipe_key(row, manifest)}.gguf"
    if path.exists() and routing_file(path).exists():
        return path
    with scratch_folder(folder, row.name, f"making the miniature of {row.name}") as scratch:
        _make(row, recipe, shape, manifest, scratch, path)
    remove_others(row.name, path)
    return path


def routing_file(path: Path) -> Path:
    """Return where the routing statistics of the miniature at `path` are."""
    return path.with_suffix(".routing.json")


def _make(
    row: Row, recipe: Miniature, shape: Shape, manifest: Manifest, scratch: Path, path: Path
) -> None:
    progress = Progress(f"making the miniature of {row.name}")
    log = path.with_suffix(".log")
    log.unlink(missing_ok=True)
    outcome = "failed"
    try:
        keys, weights, made = (scratch / f"{name}.gguf" for name in ("keys", "weights", "made"))
        write_keys(row, shape.arch, recipe, keys)
        tensors = list_tensors(recipe, keys, manifest, log)
        _check_patterns(row, recipe, tensors)
        groups = token_groups(_n_vocab(tensors), manifest, log)
        write_weights(row, shape.arch, recipe, tensors, groups, weights, progress.update)
        quantize(recipe, weights, made, manifest, log)
        weights.unlink()
        routing = check(row, made, manifest, log)
        write_atomically(routing_file(made), routing.model_dump_json(indent=2) + "\n")
        # The statistics first: a model of that name is complete.
        routing_file(made).replace(routing_file(path))
        _publish(made, path)
        outcome = f"{path.stat().st_size / 1e6:.0f} MB"
    finally:
        progress.finish(outcome)


def _n_vocab(tensors: Sequence[Tensor]) -> int:
    return next(tensor.shape[1] for tensor in tensors if tensor.name == EMBEDDINGS)


def _publish(made: Path, path: Path) -> None:
    """Give a finished file its name, once its bytes are on the disk.

    A run that is killed leaves what it wrote in the scratch folder, which the next one empties.
    """
    with made.open("rb+") as file:
        os.fsync(file.fileno())
    made.replace(path)


def _checked(row: Row) -> tuple[Miniature, Shape]:
    """Return the row's recipe and shape, which have to agree.

    Raises:
        TecError: one of them is missing, or they name different numbers of experts.
    """
    where = MODELS / f"{row.name}.yaml"
    if row.miniature is None or row.shape is None:
        missing = "miniature" if row.miniature is None else "shape"
        raise TecError(f"row {row.name} has no {missing}", where, f"add the section '{missing}'")
    for key, field in _OF_THE_SHAPE.items():
        wanted, found = getattr(row.shape, field), row.miniature.keys.get(key)
        if found != wanted:
            raise TecError(
                f"the miniature of row {row.name} has {key} {found}, the row has {wanted}",
                where,
                f"write {key}: {wanted} under miniature.keys",
            )
    return row.miniature, row.shape


def _check_patterns(row: Row, recipe: Miniature, tensors: Sequence[Tensor]) -> None:
    """Refuse a pattern for types that no tensor has."""
    for pattern in recipe.tensor_types:
        if not any(re.search(pattern, tensor.name) for tensor in tensors):
            known = sorted({re.sub(r"^blk\.\d+\.", "", tensor.name) for tensor in tensors})
            raise TecError(
                f"no tensor of the miniature of row {row.name} fits tensor_types '{pattern}'",
                MODELS / f"{row.name}.yaml",
                suggestion(pattern, known),
            )
