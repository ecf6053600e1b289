import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_results import write_results
from fake_study import make_row, make_study
from tec.inputs import INPUTS
from tec.main_table import main_table
from tec.outcome import Failure
from tec.selection import Selection
from tec.table import write_tables
from tec.verify import problems


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A finished study's outputs."""
    folder = write_results(tmp_path / "results")
    (folder / "figures").mkdir()
    (folder / "figures" / "hit-rate.svg").write_text("<?xml version='1.0'?><svg/>")
    (folder / "figures" / "hit-rate.pdf").write_bytes(b"%PDF-1.7")
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7")
    return folder


@pytest.fixture
def selection(tmp_path: Path) -> Selection:
    row = make_row(tmp_path)
    return Selection(study=make_study(tmp_path), rows={row.name: row}, target="cpu")


def test_finished_study_has_no_problems(selection: Selection, results: Path) -> None:
    assert list(problems(selection, results)) == []


def cut_records(results: Path) -> None:
    file = results / "runs" / "toy.prompts.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"arm":"cached-c8"' not in line))


def fail_parity(results: Path) -> None:
    file = results / "tables" / "parity.csv"
    file.write_text(file.read_text().replace(",bitwise,pass,", ",bitwise,fail,"))


def not_run(results: Path) -> None:
    file = results / "tables" / "parity.csv"
    file.write_text(file.read_text().replace(",self,pass,", ",self,not_run,"))


Line = tuple[str, str, str]
"""Arm, verdict and detail of a bitwise check."""
PAST_IT: Line = ("cached-c2", "not_run", "equal; steps of 4 tokens go past the cache (limit 1)")
SERVED: Line = ("cached-c8", "pass", "equal; 12 experts copied into slots")
RESIDENT: Line = ("cached-c16", "pass", "equal; 0 experts copied into slots")


@pytest.mark.parametrize(
    ("batch", "lines", "found"),
    [
        (4, [PAST_IT, SERVED], []),
        (4, [PAST_IT, RESIDENT], ["toy cached-c2 bitwise not_run: equal; steps of 4"]),
        (
            4,
            [PAST_IT],
            ["toy cached-c2 bitwise not_run", "no passed verdict 'bitwise' for batch 4"],
        ),
        (9, [PAST_IT], []),  # 9 x 2 experts never fit into 16 slots
        (9, [("cached-c2", "not_run", "equal, but nothing was checked")], ["not_run", "batch 9"]),
        (4, [], ["toy has no passed verdict 'bitwise' for batch 4"]),
    ],
)
def test_steps_past_the_cache_need_a_capacity_that_serves_them(
    tmp_path: Path, results: Path, batch: int, lines: list[Line], found: list[str]
) -> None:
    parity = {**make_study(tmp_path).parity.model_dump(), "batches": [1, batch]}
    wanted = Selection(
        make_study(tmp_path, parity=parity), {"toy": make_row(tmp_path)}, target="cpu"
    )
    file = results / "tables" / "parity.csv"
    with file.open(newline="") as table:
        rows = list(csv.DictReader(table))
    first = next(row for row in rows if row["check"] == "self")
    rows.append({**first, "batch": str(batch)})
    for arm, verdict, detail in lines:
        changes = {"arm": arm, "verdict": verdict, "detail": detail, "batch": str(batch)}
        rows.append({**first, "check": "bitwise", **changes})
    with file.open("w", newline="") as table:
        writer = csv.DictWriter(table, list(first))
        writer.writeheader()
        writer.writerows(rows)
    problem = [line for line in problems(wanted, results) if "parity.csv" in line]
    assert len(problem) == len(found)
    assert all(part in line for part, line in zip(found, problem, strict=True))


def claim_speedup(results: Path) -> None:
    file = results / "tables" / "main.csv"
    header, values = (line.split(",") for line in file.read_text().splitlines())
    values[header.index("speedup")] = "2.5"
    file.write_text(f"{','.join(header)}\n{','.join(values)}\n")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut_records, "toy.prompts.jsonl: no record of cached-c8"),
        (fail_parity, "toy cached-c8 bitwise failed"),
        (not_run, "toy off self not_run"),
        (claim_speedup, "toy claims a speed-up on the CPU back end"),
        (lambda results: (results / "tables" / "main.tex").unlink(), "main.tex: missing or empty"),
        (lambda results: (results / "runs" / "toy.random.jsonl").unlink(), "random.jsonl: missing"),
        (lambda results: (results / "paper.pdf").write_text("%%!"), "paper.pdf: not a .pdf file"),
        (lambda results: (results / "paper.pdf").unlink(), "paper.pdf: missing"),
    ],
)
def test_damage_is_named(
    selection: Selection, results: Path, damage: Callable[[Path], object], problem: str
) -> None:
    damage(results)
    assert any(problem in line for line in problems(selection, results))


def test_failed_row_is_named_with_its_reason(selection: Selection, results: Path) -> None:
    failure = Failure(row="toy", stage="measure prompts", what="no memory")
    file = results / "runs" / "toy.prompts.jsonl"
    file.write_text(json.dumps({"failure": failure.model_dump()}) + "\n")
    write_tables([main_table([], [failure])], results / "tables")
    found = list(problems(selection, results))
    assert f"{file}: toy failed at measure prompts: no memory" in found
    assert f"{results / 'tables' / 'main.csv'}: toy failed at measure prompts: no memory" in found


def test_a_cached_arm_with_a_replay_needs_a_bitwise_verdict(
    selection: Selection, results: Path
) -> None:
    text = (results / "runs" / "toy.prompts.jsonl").read_text()
    file = results / "runs" / "toy.replay.jsonl"
    file.write_text(text.replace('"protocol":"prompts"', '"protocol":"replay"'))
    assert list(problems(selection, results)) == []
    table = results / "tables" / "parity.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if "cached-c8,bitwise" not in line))
    found = list(problems(selection, results))
    assert found == [f"{table}: toy cached-c8 has a replay and no verdict 'bitwise'"]


def test_locality_study_is_complete_only_with_its_tables_and_traces(
    tmp_path: Path, results: Path
) -> None:
    protocols = make_study(tmp_path).protocols.model_dump()
    study = make_study(tmp_path, protocols={**protocols, "locality": {"tokens": 8, "threads": 1}})
    wanted = Selection(study=study, rows={"toy": make_row(tmp_path)}, target="cpu")
    found = [line for line in problems(wanted, results) if "traces" in line or "tables" in line]
    assert all("repetitive" in line for line in found)  # an input that the stand-in lacks
    names = ("locality", "reuse", "overlap", "calibration")
    for path in (results / "traces", *(results / "tables" / f"{name}.csv" for name in names)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = list(problems(wanted, results))
    for name in names:
        assert f"{results / 'tables' / name}.csv: missing or no rows" in found
    for trace in INPUTS:
        assert f"{results / 'traces' / f'toy.{trace}.npy'}: missing" in found
        assert f"{results / 'tables' / 'locality.csv'}: no row toy with trace {trace}" in found
