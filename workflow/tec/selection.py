"""What one run of the pipeline covers, checked before anything is built."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tec.choice import Choice, choose, names
from tec.config import (
    DEFAULT_STUDY,
    TARGETS,
    Arm,
    FileSource,
    Row,
    Shape,
    Study,
    Variant,
    load_row,
    load_study,
)
from tec.errors import TecError
from tec.gguf_file import Geometry, ModelInfo, read_geometry
from tec.nearest import check_known
from tec.outcome import failure_in
from tec.paths import MODELS, ROOT, STUDIES, model_record
from tec.records import Protocol

KEYS = ("study", "rows", "target", "arms", "capacities", "rounds")


@dataclass(frozen=True)
class Selection:
    """What one run of the pipeline covers."""

    study: Study
    rows: dict[str, Row]
    """In the order of the study's rows."""
    target: str
    choice: Choice = field(default_factory=Choice)
    shapes: Mapping[str, Shape | Geometry | None] = field(default_factory=dict)
    """How many experts each row's model has, as far as that is known yet."""

    def protocols(self, row: str) -> list[Protocol]:
        """Return what is run for a row; parity last."""
        wanted = self.study.scope(row).protocols
        optional: dict[Protocol, object] = {
            "prompts": wanted.prompts,
            "random": wanted.random,
            "locality": wanted.locality,
            "replay": wanted.replay,
        }
        return [*(name for name, given in optional.items() if given), "parity"]

    def choice_of(self, row: str, protocol: Protocol) -> Choice:
        """Return what of the choice a row's protocol has."""
        arms = self.arms(row)
        choice = self.choice if arms is None else self.choice.of_row(arms)
        return choice.with_reference(self.study.scope(row), protocol)

    def arms(self, row: str) -> dict[str, Arm] | None:
        """Return a row's expanded arms before any choice; None while its model is not known."""
        shape = self.shapes.get(row)
        if shape is None:
            return None
        return self.study.expand_arms(row, shape.n_expert, shape.n_expert_used)

    def chosen(self, row: str) -> dict[str, Arm]:
        """Return a row's arms that are run; all of the study's while its model is not known."""
        arms = self.arms(row)
        return self.study.scope(row).arms if arms is None else self.choice.narrow(arms)

    def check_protocol(self, row: str, protocol: str) -> None:
        """Raise a TecError unless the study runs the protocol for the row."""
        runs = self.protocols(row)
        if protocol not in runs:
            raise TecError(
                f"protocol {protocol} is not run for row {row}, which has {', '.join(runs)}",
                f"study {self.study.name}",
                f"ask for results/{self.study.name}/runs/{row}.{runs[0]}.jsonl",
            )

    def check_variant(self, row: str, variant: Variant) -> None:
        """Raise a TecError for a miniature or replica of a row without a recipe for one."""
        if variant != "full" and getattr(self.rows[row], variant) is None:
            raise TecError(
                f"row {row} has no {variant}: it says how its full model is had and no more",
                MODELS / f"{row}.yaml",
                f"ask for {model_record(row, 'full').name}, or add the section {variant}:",
            )

    @property
    def has_policies(self) -> bool:
        """Whether arms whose misses the CPU computes are measured along a trace."""
        return any(
            arm.computes_misses
            for row in self.rows
            if "replay" in self.protocols(row)
            for arm in self.chosen(row).values()
        )

    @property
    def compares(self) -> bool:
        """Whether every row runs with the cache on and off, as figures and paper need it."""
        modes = [{arm.expert_cache == "off" for arm in self.chosen(r).values()} for r in self.rows]
        return all(len(found) == 2 for found in modes)


def select(given: Mapping[str, Any]) -> Selection:
    """Return what `snakemake --config` names; all of it has defaults.

    Args:
        given: `study`, a name; `target`, a name; `rows` and `arms`, names, and `capacities`, slots
            per layer, each separated by commas or a list; `rounds`, a number.

    Raises:
        TecError: an unknown key, study, row, arm or target, with the nearest known name; a file or
            recipe that is missing; arms or capacities that the target or a row's model cannot have.
    """
    for key in given:
        check_known("--config key", key, KEYS)
    study = load_study(str(given.get("study", DEFAULT_STUDY)))
    _check_once(study)
    wanted = names(given.get("rows", study.all_rows))
    for name in wanted:
        check_known("row", name, study.all_rows, where=f"study {study.name}")
    target = str(given.get("target", study.target))
    check_known("target", target, TARGETS)
    rows = {name: load_row(name) for name in study.all_rows if name in wanted}
    for row in rows.values():
        _check_row(study, row)
    choice = choose(given.get("arms"), given.get("capacities"), given.get("rounds"))
    shapes = {name: _shape(row, study) for name, row in rows.items()}
    selection = Selection(study, rows, target, choice, shapes)
    _check_choice(selection)
    _check_target(selection)
    return selection


def _check_once(study: Study) -> None:
    """Raise a TecError for a row that is named twice."""
    twice = [name for name, count in Counter(study.all_rows).items() if count > 1]
    if twice:
        raise TecError(
            f"row '{twice[0]}' stands twice in study {study.name}: a row takes part in full or as "
            "a miniature, once",
            STUDIES / f"{study.name}.yaml",
            "remove one of them",
        )


def _check_row(study: Study, row: Row) -> None:
    """Raise a TecError unless the row has what it needs to take part in its variant.

    A model file that is not here yet is checked when it is.
    """
    named_by = MODELS / f"{row.name}.yaml"
    _check_file("prompts file", row.prompts, named_by)
    _check_file("parity text", study.scope(row.name).parity.text, STUDIES / f"{study.name}.yaml")
    variant = study.variant(row.name)
    if variant == "miniature" and row.miniature is None:
        raise TecError(
            f"row '{row.name}' cannot take part as a miniature: it has no recipe for one",
            named_by,
            f"add the section miniature:, or move the row to `rows` of study {study.name}",
        )
    if variant == "replica" and row.replica is None:
        raise TecError(
            f"row '{row.name}' cannot take part as a replica: it has no recipe for one",
            named_by,
            f"add the section replica:, or take the row out of study {study.name}",
        )


def _check_file(what: str, file: Path, named_by: Path) -> None:
    if not (ROOT / file).is_file():
        raise TecError(
            f"the {what} {file} is missing", named_by, "restore the file or correct its path"
        )


def _check_choice(selection: Selection) -> None:
    """Raise a TecError unless every row's model can have the arms, and what is chosen exists."""
    choice = selection.choice
    known: list[str] = []
    for name, shape in selection.shapes.items():
        arms = selection.arms(name)
        if arms and shape:
            choice.of_row(arms).check(name, arms, shape.n_expert, shape.n_expert_used)
            known += choice.known(arms)
    if all(selection.shapes.values()):
        for arm in choice.arms:
            check_known("arm", arm, known, where=f"study {selection.study.name}")
    for name in selection.rows:
        if choice.arms and not selection.choice_of(name, selection.protocols(name)[0]).arms:
            raise TecError(
                f"row {name} has none of the arms {', '.join(choice.arms)}",
                f"study {selection.study.name}",
                "name rows that have them too, such as rows=NAME",
            )


def _check_target(selection: Selection) -> None:
    """Raise a TecError if a row's arms are compared at limits of VRAM and there is no GPU."""
    study = selection.study
    limited = [row for row in selection.rows if "replay" in selection.protocols(row)]
    if selection.target == "cpu" and limited:
        raise TecError(
            f"study {study.name} compares arms at limits of a GPU's memory: it cannot run with "
            f"target cpu (row {limited[0]})",
            STUDIES / f"{study.name}.yaml",
            "on a CUDA machine: --config target=sm_90, or the card's; without one: study demo",
        )


def _shape(row: Row, study: Study) -> Shape | Geometry | None:
    """Return how many experts the row's model has, from its configuration, record or file.

    A file that cannot be read fails its row when the model is checked, and no other row.
    """
    if row.shape:
        return row.shape
    known = _recorded(model_record(row.name, study.variant(row.name)))
    if not isinstance(row.source, FileSource):
        return known
    if known and known.sha256 == row.source.sha256:
        return known
    try:
        return read_geometry(ROOT / row.source.path)
    except TecError:
        return None


def _recorded(record: Path) -> ModelInfo | None:
    """Return what is recorded of a model; None without a whole record or where it failed."""
    if not record.is_file() or failure_in(record):
        return None
    try:
        return ModelInfo.model_validate_json(record.read_bytes())
    except ValidationError:  # the row's measurements say so
        return None


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec check`."""
    parser = sub.add_parser("check", help="check a study's configuration")
    add_study_arguments(parser)
    parser.set_defaults(run=lambda options: _check(select_study(options)))


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `select_study` reads."""
    parser.add_argument("study", nargs="?", default=DEFAULT_STUDY)
    parser.add_argument("--target", help="in place of the study's own")


def select_study(options: argparse.Namespace) -> Selection:
    """Return the whole study that a command was given; the errors are those of `select`."""
    target = {} if options.target is None else {"target": options.target}
    return select({"study": options.study, **target})


def _check(selection: Selection) -> None:
    study = selection.study
    print(f"{study.name}: {len(selection.rows)} rows, {len(study.arms)} arms, no errors")
