"""Rows' model files: found, fetched or made, checked, and described for later stages."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import get_args

from pydantic import ValidationError

from tec import outcome
from tec.build import Manifest, load_manifest
from tec.config import FileSource, Row, Shape, Variant, load_row
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.gguf_file import Geometry, ModelInfo, Part, read_geometry
from tec.misfit import misfits
from tec.paths import MINIATURES, MODELS, REPLICAS, ROOT, model_record
from tec.routing_summary import RoutingSummary

FEWEST_EXPERTS = 32
"""Below this number nearly every expert is used all the time, and a cache has nothing to skip."""

FEWEST_TIMES_USED = 4
"""The published capacity is at least so many times the experts of a token: all of them, here."""


def resolve_model(
    row: Row,
    variant: Variant = "full",
    manifest: Manifest | None = None,
    layers: int | None = None,
) -> ModelInfo:
    """Return the row's model in one of its variants, with its geometry.

    Args:
        row: the row.
        variant: the full model, checked or fetched; the miniature or the replica, made if need be.
        manifest: the build whose tools make a miniature, or say what a replica has.
        layers: of a replica, the first so many blocks only.

    Raises:
        TecError: the model cannot be had, is not the one the row names, does not have the shape
            that the row gives, or is no usable MoE model.
    """
    parts = _parts(row, variant, manifest, layers)
    geometry = read_geometry(ROOT / parts[0].path, len(parts))
    if row.shape is not None:
        whole = variant != "miniature" and layers is None
        _check_shape(row, row.shape, geometry, f"{variant} model", whole)
    return ModelInfo(
        row=row.name,
        variant=variant,
        path=parts[0].path,
        bytes=sum(part.bytes for part in parts),
        sha256=joint_hash([(PurePath(part.path).name, part.sha256) for part in parts]),
        parts=tuple(parts),
        routing=_routing(ROOT / parts[0].path) if variant == "miniature" else None,
        **geometry.model_dump(),
    )


def read_model(record: Path) -> ModelInfo:
    """Return the model that a record under .cache/models describes.

    Raises:
        TecError: there is no such record; it is damaged, or of an older layout.
    """
    if not record.exists():
        row, _, variant = record.stem.rpartition(".")
        raise TecError(
            "this model is not resolved yet", record, f"tec model {row} --variant {variant}"
        )
    try:
        return ModelInfo.model_validate_json(record.read_bytes())
    except ValidationError as error:
        raise TecError(
            f"the record of a model is damaged or of an older layout: {misfits(error)[0]}",
            record,
            "delete it and run again",
        ) from None


def has_few_experts(model: Geometry) -> bool:
    """Say whether TEC's preconditions do not hold; the programs have the same criterion."""
    least = max(FEWEST_EXPERTS, FEWEST_TIMES_USED * model.n_expert_used + 1)
    return model.n_expert < least


def warning(model: ModelInfo) -> str | None:
    """Say so if the model lacks what an expert cache lives from."""
    if not has_few_experts(model):
        return None
    return (
        f"warning: {model.row} has {model.n_expert} experts per layer, of which a token uses "
        f"{model.n_expert_used}; with fewer than {FEWEST_EXPERTS}, or no more than "
        f"{FEWEST_TIMES_USED} times those used, TEC's preconditions do not hold: expect no gain "
        "from an expert cache"
    )


def _parts(row: Row, variant: Variant, manifest: Manifest | None, layers: int | None) -> list[Part]:
    """Return the model's files in order; paths in the repository are relative to its root."""
    if variant == "miniature":
        return [_described(_miniature(row, manifest))]
    if variant == "replica":
        return [_replica(row, manifest, layers)]
    if isinstance(row.source, FileSource):
        return [_checked(row.name, row.source)]
    if row.source is None:
        raise TecError(
            f"row {row.name} is only ever a replica",
            MODELS / f"{row.name}.yaml",
            f"tec model {row.name} --variant replica --build MANIFEST, or add its source",
        )
    from tec import hub, hub_links  # the client takes a while to load; only these rows need it

    return hub_links.linked(row.name, hub.fetch(row))


def _checked(row: str, source: FileSource) -> Part:
    path = ROOT / source.path
    if not path.is_file():
        raise TecError(
            "the model file is missing", path, "restore it (git checkout) or correct the row"
        )
    part = _described(path)
    if part.sha256 != source.sha256:
        raise TecError(
            f"the model file is corrupt or another one: expected sha256 {source.sha256}, "
            f"found {part.sha256}",
            path,
            f"restore the file, or write its sha256 into configs/models/{row}.yaml",
        )
    return part


def _miniature(row: Row, manifest: Manifest | None) -> Path:
    if row.miniature is None:
        raise TecError(
            f"row {row.name} does not say how its miniature is made",
            MODELS / f"{row.name}.yaml",
            "add the section 'miniature', or use the row in full",
        )
    if manifest is None:
        raise TecError(
            "making a miniature needs llama.cpp's tools",
            f"row {row.name}",
            f"tec model {row.name} --variant miniature --build MANIFEST",
        )
    from tec import miniature  # as the hub: slow to load, and few need it

    return miniature.make(row, manifest, MINIATURES)


def _replica(row: Row, manifest: Manifest | None, layers: int | None) -> Part:
    if manifest is None:
        raise TecError(
            "making a replica needs llama.cpp's tools",
            f"row {row.name}",
            f"tec model {row.name} --variant replica --build MANIFEST",
        )
    from tec import replica

    path = replica.make(row, manifest, REPLICAS, layers)
    return Part(path=named(path), bytes=path.stat().st_size, sha256=replica.identity(path))


def _routing(path: Path) -> RoutingSummary:
    """Return what was measured when the miniature was made."""
    from tec.miniature import routing_file

    return RoutingSummary.model_validate_json(routing_file(path).read_text())


def _described(path: Path) -> Part:
    return Part(path=named(path), bytes=path.stat().st_size, sha256=sha256_file(path))


def named(path: Path) -> str:
    """Return a path as records name it: relative to the repository where it lies inside."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def joint_hash(parts: Sequence[tuple[str, str]]) -> str:
    """Return the file's SHA-256; of a split model, that of the list of its parts.

    Args:
        parts: name and SHA-256 of each.
    """
    if len(parts) == 1:
        return parts[0][1]
    lines = [f"{sha256}  {name}\n" for name, sha256 in parts]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_shape(row: Row, shape: Shape, geometry: Geometry, what: str, whole: bool) -> None:
    """Check the numbers that the row gives; one that is not whole has fewer layers.

    Raises:
        TecError: the model differs; names each number.
    """
    fields = ["arch", "n_expert", "n_expert_used"]
    if whole:
        fields += ["n_layer", "n_moe_layers"]
    wanted, found = shape.model_dump(), geometry.model_dump()
    differing = [f"{name} is {found[name]}" for name in fields if found[name] != wanted[name]]
    if differing:
        expected = ", ".join(f"{name} {wanted[name]}" for name in fields)
        raise TecError(
            f"the {what} of row {row.name} does not have the row's shape: "
            f"{', '.join(differing)}; expected {expected}",
            MODELS / f"{row.name}.yaml",
            "correct shape there if the file is the right one, or else files",
        )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec model`."""
    parser = sub.add_parser("model", help="have a row's model file and record its geometry")
    parser.add_argument("row")
    parser.add_argument("--variant", choices=get_args(Variant), default="full")
    parser.add_argument(
        "--build", type=Path, metavar="MANIFEST", help="tools for a miniature or a replica"
    )
    parser.add_argument(
        "--layers", type=int, metavar="N", help="a replica's first blocks only; leaves no record"
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="write what a replica holds, for: python3 -m tec.replica_file FILE MODEL.gguf",
    )
    outcome.add_argument(parser)
    parser.set_defaults(run=_attempt)


def _attempt(options: argparse.Namespace) -> None:
    if options.variant != "replica" and (options.plan or options.layers):
        raise TecError("only a replica has --layers and --plan", hint="add --variant replica")
    if options.plan:
        _plan(options)
        return
    outcome.attempt(
        partial(_model, options),
        options,
        row=options.row,
        variant=options.variant,
        stage="model",
        reads=[],
        makes=[model_record(options.row, options.variant)],
    )


def _plan(options: argparse.Namespace) -> None:
    """Write the plan of a row's replica."""
    if options.build is None:
        raise TecError("planning a replica needs llama.cpp's tools", hint="add --build MANIFEST")
    from tec import replica

    with tempfile.TemporaryDirectory() as scratch:
        plan = replica.make_plan(
            load_row(options.row), load_manifest(options.build), Path(scratch), options.layers
        )
    write_atomically(options.plan, plan.to_json())


def _model(options: argparse.Namespace) -> None:
    manifest = load_manifest(options.build) if options.build else None
    model = resolve_model(load_row(options.row), options.variant, manifest, options.layers)
    if options.layers is None:
        content = model.model_dump_json(indent=2) + "\n"
        write_atomically(model_record(model.row, model.variant), content)
    if model.variant == "replica":
        print(model.path)
    print(
        f"{model.row}: {model.arch} {model.quant}, {model.n_moe_layers} MoE layers of "
        f"{model.n_expert} experts, top-{model.n_expert_used}, {model.bytes / 2**20:.1f} MiB"
    )
    if text := warning(model):
        print(text, file=sys.stderr)
