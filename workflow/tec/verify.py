"""Small checks of a study's outputs: is everything there, whole, and allowed to stand."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tec.choice import sweep_of
from tec.config import Study
from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.inputs import INPUTS
from tec.outcome import Failure, read_records_or_failure
from tec.paths import RESULTS
from tec.records import PROBE
from tec.selection import Selection, add_study_arguments, select_study
from tec.tables import CALIBRATION_TABLES, LOCALITY_TABLES, POLICY_TABLES, REPLAY_TABLES, TABLES
from tec.verdicts import BY_CPU, ENFORCED, PAST

MAGIC = {".svg": b"<?xml", ".pdf": b"%PDF-", ".npy": b"\x93NUMPY"}
_COPIED = re.compile(r"\b[1-9]\d* experts copied into slots")
"""In the detail of a bitwise check that the cache was at work in."""


def problems(selection: Selection, results: Path) -> Iterator[str]:
    """Yield what is wrong with a study's outputs in the folder `results`, one line each."""
    for row in selection.rows:
        for protocol in selection.protocols(row):
            yield from _run(results / "runs" / f"{row}.{protocol}.jsonl", selection.study)
    replays = any("replay" in selection.protocols(row) for row in selection.rows)
    tables = TABLES | (REPLAY_TABLES if replays else {})
    tables |= POLICY_TABLES if selection.has_policies else {}
    for name, columns in tables.items():
        yield from _table(results / "tables" / f"{name}.csv", columns.split(","))
    if traced := [row for row in selection.rows if "locality" in selection.protocols(row)]:
        yield from _locality(results, traced)
    yield from _parity(results / "tables", selection)
    yield from _replayed(results, selection)
    yield from _speedups(results / "tables" / "main.csv", selection.rows)
    figures = sorted((results / "figures").glob("*.*"))
    if not figures:
        yield f"{results / 'figures'}: no figures"
    prompts = any("prompts" in selection.protocols(row) for row in selection.rows)
    for document in [*figures, *([results / "paper.pdf"] if prompts else [])]:
        yield from _document(document)


def _run(path: Path, study: Study) -> Iterator[str]:
    """Yield arms without records."""
    records = read_records_or_failure(path) if path.is_file() else []
    if isinstance(records, Failure):
        yield f"{path}: {records.row} failed at {records.reason}"
        return
    if not records:
        yield f"{path}: missing or empty"
        return
    model = records[0].model
    arms = study.expand_arms(records[0].row, model.n_expert, model.n_expert_used)
    if records[0].protocol in ("parity", "locality"):  # one arm without a cache is enough there
        arms = {name: arm for name, arm in arms.items() if arm.expert_cache != "off"}
    if study.scope(records[0].row).protocols.replay:  # a capacity may not fit on the card
        arms = {name: arm for name, arm in arms.items() if sweep_of(name, arm) is None}
        arms = {name: arm for name, arm in arms.items() if not name.endswith("-aa")}
    if missing := set(arms).difference(record.arm for record in records):
        yield f"{path}: no record of {', '.join(sorted(missing))}"


def _table(path: Path, columns: list[str]) -> Iterator[str]:
    """Yield a missing or empty table, and columns it lacks; Markdown and LaTeX go with it."""
    for form in (path, path.with_suffix(".md"), path.with_suffix(".tex")):
        if not form.is_file() or form.stat().st_size == 0:
            yield f"{form}: missing or empty"
    yield from _filled(path, columns)


def _filled(path: Path, columns: list[str]) -> Iterator[str]:
    """Yield a table without rows, and columns it lacks."""
    rows = _rows(path)
    if not rows:
        yield f"{path}: missing or no rows"
    elif missing := [column for column in columns if column not in rows[0]]:
        yield f"{path}: no column {', '.join(missing)}"


def _locality(results: Path, rows: Iterable[str]) -> Iterator[str]:
    """Yield what is missing of the locality study."""
    for name, columns in (LOCALITY_TABLES | CALIBRATION_TABLES).items():
        yield from _filled(results / "tables" / f"{name}.csv", columns.split(","))
    path = results / "tables" / "locality.csv"
    seen = {(line["row"], line["trace"]) for line in _rows(path)}
    for row in rows:
        for trace in INPUTS:
            file = results / "traces" / f"{row}.{trace}.npy"
            yield from _document(file)
            if (row, trace) not in seen:
                yield f"{path}: no row {row} with trace {trace}"


def _parity(tables: Path, selection: Selection) -> Iterator[str]:
    """Yield verdicts that decide and have not passed, and rows that lack such verdicts."""
    path = tables / "parity.csv"
    lines = [line for line in _rows(path) if line["check"] in ENFORCED]
    models = {line["row"]: line for line in _rows(tables / "rows.csv")}
    for line in lines:
        elsewhere = _is_served_elsewhere(line, lines, models) or _is_held_otherwise(line)
        if line["verdict"] != "pass" and not elsewhere:
            what = "failed" if line["verdict"] == "fail" else line["verdict"]
            yield f"{path}: {line['row']} {line['arm']} {line['check']} {what}: {line['detail']}"
    for row in selection.rows:
        for batch in map(str, selection.study.scope(row).parity.batches):
            found = [line for line in lines if (line["row"], line["batch"]) == (row, batch)]
            for check in ENFORCED:
                of_check = [line for line in found if line["check"] == check]
                if not any(
                    line["verdict"] == "pass" or _is_too_big(line, models) for line in of_check
                ):
                    yield f"{path}: {row} has no passed verdict '{check}' for batch {batch}"


def _replayed(results: Path, selection: Selection) -> Iterator[str]:
    """Yield arms that copied their misses along a trace and were never checked bitwise."""
    path = results / "tables" / "parity.csv"
    checked = {(line["row"], line["arm"]) for line in _rows(path) if line["check"] == "bitwise"}
    for row in selection.rows:
        file = results / "runs" / f"{row}.replay.jsonl"
        records = read_records_or_failure(file) if file.is_file() else []
        for arm in dict.fromkeys(
            record.arm
            for record in (records if isinstance(records, list) else [])
            if record.test != PROBE and ExpertBench.model_validate(record.result).policy == "lru"
        ):
            if (row, arm) not in checked:
                yield f"{path}: {row} {arm} has a replay and no verdict 'bitwise'"


def _is_served_elsewhere(
    line: dict[str, str], lines: Sequence[dict[str, str]], models: dict[str, dict[str, str]]
) -> bool:
    """Say whether a check that was not run for want of slots was run where there are enough.

    It is where another arm of the row copied experts at the same batch, or none ever can.
    """
    if line["verdict"] != "not_run" or PAST not in line["detail"]:
        return False
    same = [
        other
        for other in lines
        if all(other[key] == line[key] for key in ("row", "check", "batch"))
    ]
    served = any(other["verdict"] == "pass" and _COPIED.search(other["detail"]) for other in same)
    return served or _is_too_big(line, models)


def _is_held_otherwise(line: dict[str, str]) -> bool:
    """Say whether bits were not compared because the CPU computed misses."""
    return line["verdict"] == "not_run" and BY_CPU in line["detail"]


def _is_too_big(line: dict[str, str], models: dict[str, dict[str, str]]) -> bool:
    """Say whether no cache smaller than the layer can serve the step: batch x K reaches N."""
    model = models.get(line["row"], {})
    if PAST not in line["detail"] or not (model.get("n_expert") and line["batch"]):
        return False
    return int(line["batch"]) * int(model["n_expert_used"]) >= int(model["n_expert"])


def _speedups(path: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield failed rows, and rows of functional evidence that claim a speed-up all the same."""
    rows = _rows(path)
    for row in rows:
        if row.get("outcome") == "failed":
            yield f"{path}: {row['row']} failed at {row['reason']}"
        if row["evidence"] == "functional" and (row["speedup"] or row["speedup_lo"]):
            yield f"{path}: {row['row']} claims a speed-up on the CPU back end"
    for name in sorted(set(names).difference(row["row"] for row in rows)):
        yield f"{path}: no row {name}"


def _document(path: Path) -> Iterator[str]:
    """Yield a file that is missing or does not start as its kind does."""
    if not path.is_file():
        yield f"{path}: missing"
    elif not path.read_bytes().lstrip().startswith(MAGIC.get(path.suffix, b"")):
        yield f"{path}: not a {path.suffix} file"


def _rows(path: Path) -> list[dict[str, str]]:
    """Return a CSV file's rows; none when it is missing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec verify`."""
    parser = sub.add_parser("verify", help="check that a study's outputs are complete")
    add_study_arguments(parser)
    parser.set_defaults(run=lambda options: _verify(select_study(options)))


def _verify(selection: Selection) -> None:
    study = selection.study.name
    if found := list(problems(selection, RESULTS / study)):
        hint = f"make all, or: snakemake --cores all all --config study={study}"
        raise TecError("the outputs are not complete\n" + "\n".join(found), RESULTS / study, hint)
    print(f"{study}: all outputs are there and complete, parity passed")
