"""What one run of the pipeline covers, checked before anything is built."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tec.config import DEFAULT_STUDY, TARGETS, Row, Study, load_row, load_study
from tec.errors import TecError
from tec.gguf_file import Geometry, ModelInfo, read_geometry
from tec.nearest import check_known
from tec.paths import MODELS, ROOT, STUDIES, model_record

KEYS = ("study", "rows", "target")


@dataclass(frozen=True)
class Selection:
    """What one run of the pipeline covers."""

    study: Study
    rows: dict[str, Row]
    target: str


def select(given: Mapping[str, Any]) -> Selection:
    """Return the study, rows and target that `snakemake --config` names; all have defaults.

    Args:
        given: `study`, a name; `rows`, names separated by commas or a list; `target`, a name.

    Raises:
        TecError: an unknown key, study, row or target, with the nearest known name; a file that is
            missing; arms that the target or a row's model cannot have.
    """
    for key in given:
        check_known("--config key", key, KEYS)
    study = load_study(str(given.get("study", DEFAULT_STUDY)))
    wanted = _names(given.get("rows", study.rows))
    for name in wanted:
        check_known("row", name, study.rows, where=f"study {study.name}")
    target = str(given.get("target", study.target))
    check_known("target", target, TARGETS)
    rows = {name: load_row(name) for name in dict.fromkeys(wanted)}
    _check_target(study, target)
    _check_file("parity text", study.parity.text, STUDIES / f"{study.name}.yaml")
    for row in rows.values():
        _check_row(study, row)
    return Selection(study, rows, target)


def _names(given: object) -> list[str]:
    """Return one name or several, in a list or separated by commas, as a list."""
    if isinstance(given, list | tuple):
        return [str(name) for name in given]
    return str(given).split(",")


def _check_target(study: Study, target: str) -> None:
    """Raise a TecError if an arm needs the cache where it has no kernels yet."""
    if target != "cpu" and any(arm.expert_cache != "off" for arm in study.arms.values()):
        raise TecError(
            f"the expert cache has no CUDA kernels in this version: study {study.name}, which has "
            f"arms with the cache on, cannot run with target {target}",
            STUDIES / f"{study.name}.yaml",
            f"build the CUDA tools alone with: .venv/bin/tec build {target}",
        )


def _check_row(study: Study, row: Row) -> None:
    """Raise a TecError unless the row's prompts exist and its model can have the study's arms.

    A model file that is not here yet is checked when it is.
    """
    _check_file("prompts file", row.prompts, MODELS / f"{row.name}.yaml")
    if geometry := _geometry(row):
        study.expand_arms(geometry.n_expert, geometry.n_expert_used)


def _check_file(what: str, file: Path, named_by: Path) -> None:
    if not (ROOT / file).is_file():
        raise TecError(
            f"the {what} {file} is missing", named_by, "restore the file or correct its path"
        )


def _geometry(row: Row) -> Geometry | None:
    """Return the model's geometry from its record or file, if there is one."""
    record, file = model_record(row.name), ROOT / row.source.path
    if record.is_file():
        known = ModelInfo.model_validate_json(record.read_text())
        if known.sha256 == row.source.sha256:
            return known
    return read_geometry(file) if file.is_file() else None


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec check`."""
    parser = sub.add_parser("check", help="check a study's configuration")
    parser.add_argument("study", nargs="?", default=DEFAULT_STUDY)
    parser.set_defaults(run=lambda options: _check(options.study))


def _check(name: str) -> None:
    selection = select({"study": name})
    print(f"{name}: {len(selection.rows)} rows, {len(selection.study.arms)} arms, no errors")
