"""Rows' model files: found, checked, and described for the stages that run them."""

from __future__ import annotations

import argparse
from pathlib import Path

from tec.config import Row, load_row
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.gguf_file import ModelInfo, read_geometry
from tec.paths import ROOT, model_record


def resolve_model(row: Row) -> ModelInfo:
    """Return the row's model file and geometry.

    Raises:
        TecError: the file is missing, is not the one the row names, or is no usable MoE model.
    """
    path = ROOT / row.source.path
    if not path.is_file():
        raise TecError(
            "the model file is missing", path, "restore it (git checkout) or correct the row"
        )
    found = sha256_file(path)
    if found != row.source.sha256:
        raise TecError(
            f"the model file is corrupt or another one: expected sha256 {row.source.sha256}, "
            f"found {found}",
            path,
            f"restore the file, or write its sha256 into configs/models/{row.name}.yaml",
        )
    return ModelInfo(
        row=row.name,
        path=str(row.source.path),
        bytes=path.stat().st_size,
        sha256=found,
        **read_geometry(path).model_dump(),
    )


def read_model(record: Path) -> ModelInfo:
    """Return the model that a record under .cache/models describes."""
    if not record.exists():
        raise TecError("this model is not resolved yet", record, f"tec model {record.stem}")
    return ModelInfo.model_validate_json(record.read_text())


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec model`."""
    parser = sub.add_parser("model", help="check a row's model file and record its geometry")
    parser.add_argument("row")
    parser.set_defaults(run=_model)


def _model(options: argparse.Namespace) -> None:
    model = resolve_model(load_row(options.row))
    write_atomically(model_record(model.row), model.model_dump_json(indent=2) + "\n")
    print(
        f"{model.row}: {model.arch} {model.quant}, {model.n_moe_layers} MoE layers of "
        f"{model.n_expert} experts, top-{model.n_expert_used}, {model.bytes / 2**20:.1f} MiB"
    )
