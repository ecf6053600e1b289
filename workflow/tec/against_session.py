"""`tec regress --against REV`: build, measure in turn, confirm, compare."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from tec import choice
from tec.against import build_revision, commit_of
from tec.build import TOOLS, build, default_jobs
from tec.cells import Cell
from tec.compare_paired import compare_paired, suspects
from tec.detection import SCREEN_LEVEL, rounds_needed
from tec.history import HistoryRecord
from tec.interleaving import Side, Work, arms_of, build_key, run_interleaved
from tec.launches import project_commit
from tec.measure import check_parts
from tec.models import read_model
from tec.paths import CACHE, against_folder, build_manifest, model_record
from tec.regress import report_of
from tec.regression import TIMED, Report
from tec.selection import Selection, select

ROUNDS = 10
"""Rounds unless more are asked for, or needed for so many cells to have a chance."""
_SPARE = 2


def against(options: argparse.Namespace) -> tuple[list[HistoryRecord], Report]:
    """Return the launches of both builds and what they show.

    Raises:
        TecError: the revision, a build or a measurement failed.
    """
    commit = commit_of(options.against)
    asked = {name: getattr(options, name) for name in ("study", "rows", "arms", "capacities")}
    given = {name: value for name, value in asked.items() if value is not None}
    selection = select(given | ({"target": options.target} if options.target else {}))
    target, jobs = selection.target, default_jobs()
    manifest = build(target, jobs, TOOLS, build_manifest(target))
    new = Side(manifest, project_commit())
    old = Side(build_revision(commit, target, jobs), commit)
    if build_key(old) == build_key(new):
        warning = f"{commit[:12]} has the same engine: llama.cpp, patches, compiler and options"
        return [], report_of("paired", [], [], [], warnings=[warning])
    works = _works(selection, options)
    return measure(works, old, new, options.wait, options.metrics)


def measure(
    works: Sequence[Work], old: Side, new: Side, wait: float, metrics: str = "all"
) -> tuple[list[HistoryRecord], Report]:
    """Measure rows with two builds in turn; confirm what the first session suspects."""
    keys = build_key(old), build_key(new)
    screen = [launch for work in works for launch in run_interleaved(work, old, new, wait)]
    suspected = suspects(screen, *keys)
    confirm: list[HistoryRecord] | None = None
    if suspected:
        _say(f"{len(suspected)} cells look different; measuring them again")
        again = [again for work in works if (again := _narrowed(work, suspected))]
        confirm = [launch for work in again for launch in run_interleaved(work, old, new, wait)]
    comparisons = compare_paired(screen, confirm or [], *keys)
    launches = [*screen, *(confirm or [])]
    before, after = ([r for r in launches if r.build == key] for key in keys)
    return launches, report_of("paired", before, after, comparisons, metrics)


def _works(selection: Selection, options: argparse.Namespace) -> list[Work]:
    """Return what is run of each row that has the protocol."""
    study, started = selection.study, f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    chosen = choice.choose(options.arms, options.capacities, options.rounds)
    works = []
    for name, row in selection.rows.items():
        if options.protocol not in selection.protocols(name):
            continue
        record = model_record(name, study.variant(name))
        model = read_model(record)
        check_parts(model, record)
        out = against_folder(study.name) / f"{name}.{options.protocol}.{started}.jsonl"
        log = CACHE / "logs" / study.name / f"{name}.{options.protocol}.against.log"
        works.append(Work(study, row, model, options.protocol, chosen, ROUNDS, out, log))
    needed = rounds_needed(sum(len(arms_of(w)) for w in works) * len(TIMED), SCREEN_LEVEL)
    rounds = chosen.rounds or max(ROUNDS, needed + _SPARE)
    return [replace(work, rounds=rounds) for work in works]


def _narrowed(work: Work, suspected: Sequence[Cell]) -> Work | None:
    """Return the part of a row's work that measures its suspected cells again."""
    arms = {cell.series.arm for cell in suspected if cell.series.row == work.row.name}
    if not arms:
        return None
    out = work.out.with_name(f"{work.out.stem}.confirmation{work.out.suffix}")
    return replace(work, choice=replace(work.choice, arms=tuple(sorted(arms))), out=out)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
