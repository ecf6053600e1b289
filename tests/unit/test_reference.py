"""What is kept of measured runs: that it is theirs, and what is not taken over."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tec import reference
from tec.errors import TecError
from tec.headline import BEGIN, END, headline, write_headline
from tec.paths import REFERENCE, ROOT
from tec.records import append_record, read_records
from tec.reference import drift, keep, kept_studies, make_tables, system_name
from tec.reference_index import INDEX, index_of
from tec.system import System

ROW = "qwen3-30b-a3b-q8_0"
KEPT = next(REFERENCE.glob(f"*/replicas/runs/{ROW}.replay.jsonl")).parents[1]
NAMES = (f"{ROW}.replay.jsonl", f"{ROW}.parity.jsonl")


FOLDERS = re.compile(r"""["'= ]/(?:home|mnt|root|srv|tmp|work)/""")


def test_what_is_kept_is_what_its_records_give() -> None:
    assert drift() == [], "run: tec reference rebuild"


def test_what_is_kept_names_no_folder_of_a_machine() -> None:
    found = [path for path in REFERENCE.rglob("*.jsonl") if FOLDERS.search(path.read_text())]
    assert not found


def test_folders_are_left_out_of_messages_too(results: Path, tmp_path: Path) -> None:
    path = next((results / "runs").glob("*.replay.jsonl"))
    message = "cannot load '/home/somebody/models/toy.gguf'"
    change(path, lambda record: record["result"].update(error=message))
    target = keep(results, tmp_path / "reference", functional=True, incomplete=True)[0]
    kept = (target / "runs" / path.name).read_text()
    assert "somebody" not in kept
    assert "cannot load 'toy.gguf'" in kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One row's study as it was measured, with its tables, and something for its figures."""
    folder = tmp_path_factory.mktemp("finished") / "replicas"
    for name in NAMES:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        shutil.copy(KEPT / "runs" / name, folder / "runs")
    make_tables(folder)
    (folder / "figures").mkdir()
    (folder / "figures" / "speed.svg").write_text("<?xml version='1.0'?><svg/>")
    return folder


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "results" / "replicas"))


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the figures that would be drawn."""
    names: list[str] = []
    monkeypatch.setattr(reference, "make_figures", lambda _, wanted: names.extend(wanted))
    return names


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit every record of a file."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        edit(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_records_are_taken_over_as_they_are_and_everything_else_is_made(
    results: Path, tmp_path: Path, figures: list[str]
) -> None:
    (folder,) = keep(results, tmp_path / "reference")
    system = read_records(results / "runs" / NAMES[0])[0].system
    assert folder == tmp_path / "reference" / system_name(system) / "replicas"
    assert folder.parent.name == f"nvidia-h100-80gb-hbm3-{system.fingerprint}"
    for name in NAMES:
        assert (folder / "runs" / name).read_bytes() == (results / "runs" / name).read_bytes()
    tables = {path.name: path.read_bytes() for path in (folder / "tables").iterdir()}
    assert tables == {path.name: path.read_bytes() for path in (results / "tables").iterdir()}
    assert {"loss.csv", "headline.md", "capacity.tex"} <= tables.keys()
    assert (folder / "verdicts" / f"{ROW}.jsonl").is_file()
    assert figures == ["speed", "split", "loss", "replay-start", "parity"]
    assert keep(results, tmp_path / "reference") == [folder]  # the same again changes nothing


def test_other_records_are_replaced_only_when_asked(results: Path, tmp_path: Path) -> None:
    (folder,) = keep(results, tmp_path / "reference")
    change(results / "runs" / NAMES[0], lambda record: record.update(environment={"A": "1"}))
    with pytest.raises(TecError, match=r"kept already .*replay\.jsonl") as caught:
        keep(results, tmp_path / "reference")
    assert "--replace" in str(caught.value)
    assert b'"A"' not in (folder / "runs" / NAMES[0]).read_bytes()
    keep(results, tmp_path / "reference", replace=True)
    assert b'"A"' in (folder / "runs" / NAMES[0]).read_bytes()


def test_another_row_is_kept_beside_those_that_are_there(results: Path, tmp_path: Path) -> None:
    (folder,) = keep(results, tmp_path / "reference")
    other = "qwen3.5-35b-a3b-q8_0"
    for name in NAMES:
        path = results / "runs" / name
        change(path, lambda record: record.update(row=other))
        path.rename(path.with_name(name.replace(ROW, other)))
    shutil.rmtree(results / "tables")
    make_tables(results)
    assert keep(results, tmp_path / "reference") == [folder]
    assert [line["row"] for line in lines(folder / "tables" / "main.csv")] == [ROW, other]


def test_the_cpu_back_end_is_no_evidence(results: Path, tmp_path: Path) -> None:
    for name in NAMES:
        change(results / "runs" / name, lambda record: record["build"].update(target="cpu"))
    make_tables(results)
    with pytest.raises(TecError, match=rf"CPU back end, so no evidence: {ROW}"):
        keep(results, tmp_path / "reference")
    with pytest.raises(TecError, match="cannot run with target cpu"):  # and is asked for as such
        keep(results, tmp_path / "reference", functional=True)
    assert keep(results, tmp_path / "reference", functional=True, incomplete=True)


def drop_parity(results: Path) -> None:
    (results / "runs" / NAMES[1]).unlink()
    shutil.rmtree(results / "tables")
    make_tables(results)


def drop_a_round(results: Path) -> None:
    path = results / "runs" / NAMES[0]
    last = [r for r in read_records(path) if (r.arm, r.round) != ("cached-c64", 1)]
    path.unlink()
    for record in last:
        append_record(path, record)
    make_tables(results)


def drop_a_table(results: Path) -> None:
    (results / "tables" / "overhead.md").unlink()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop_parity, r"parity\.jsonl: missing or empty"),
        (drop_a_round, "arm cached-c64 has 1 of 2 rounds"),
        (drop_a_table, r"overhead\.md: missing or empty"),
    ],
)
def test_a_half_finished_study_is_refused(
    results: Path, tmp_path: Path, edit: Callable[[Path], None], said: str
) -> None:
    edit(results)
    with pytest.raises(TecError, match=said) as caught:
        keep(results, tmp_path / "reference")
    assert "--incomplete" in str(caught.value)
    assert not (tmp_path / "reference").exists()
    assert keep(results, tmp_path / "reference", incomplete=True)


def test_tables_of_other_records_are_refused(results: Path, tmp_path: Path) -> None:
    path = results / "tables" / "capacity.csv"
    path.write_text(path.read_text().replace("155.653", "255.653"))
    with pytest.raises(TecError, match="tables are not those of the records: capacity"):
        keep(results, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


def test_the_order_of_a_tables_lines_does_not_count(results: Path, tmp_path: Path) -> None:
    path = results / "tables" / "capacity.csv"
    head, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(rest)]) + "\n")
    assert keep(results, tmp_path / "reference")


def test_a_failed_row_is_told(results: Path, tmp_path: Path) -> None:
    failure = {"row": ROW, "stage": "measure replay", "what": "no space"}
    (results / "runs" / NAMES[0]).write_text(json.dumps({"failure": failure}) + "\n")
    with pytest.raises(TecError, match=f"row {ROW} failed at measure replay: no space"):
        keep(results, tmp_path / "reference")


def test_records_of_a_row_come_from_one_system(results: Path, tmp_path: Path) -> None:
    path = results / "runs" / NAMES[0]
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(first.replace('"cores":16', '"cores":8') + "".join(rest))
    make_tables(results)
    with pytest.raises(TecError, match=f"from 2 systems: .*row {ROW}, protocol replay"):
        keep(results, tmp_path / "reference")


def test_folders_without_records_or_tables_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "replicas"
    with pytest.raises(TecError, match=r"has no tables .*main\.csv"):
        keep(folder, tmp_path / "reference")
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "main.csv").write_text(f"row\n{ROW}\n")
    with pytest.raises(TecError, match="there are no records"):
        keep(folder, tmp_path / "reference")


def test_a_systems_name_is_its_device_and_fingerprint() -> None:
    system = read_records(KEPT / "runs" / NAMES[0])[0].system
    bare = System(**{**system.model_dump(), "gpus": (), "cpu": "AMD EPYC(TM) 9654"})
    assert system_name(bare) == f"amd-epyc-tm-9654-{bare.fingerprint}"


@pytest.fixture
def kept(results: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of what is kept, with its index, and a README that shows it."""
    folder, readme = tmp_path / "reference", tmp_path / "README.md"
    keep(results, folder)
    (folder / INDEX).write_text(index_of(kept_studies(folder)))
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_headline(folder, readme)
    return folder, readme


def test_changed_tables_index_and_readme_are_found(kept: tuple[Path, Path]) -> None:
    folder, readme = kept
    assert drift(folder, readme) == []
    (table,) = folder.glob("*/replicas/tables/loss.csv")
    for path in (table, folder / INDEX, readme):
        path.write_text(path.read_text().replace(",2,", ",3,").replace("2 rounds", "3 rounds"))
    assert drift(folder, readme) == [str(table), str(folder / INDEX), str(readme)]


def test_the_headline_is_the_kept_table_in_its_place(kept: tuple[Path, Path]) -> None:
    folder, readme = kept
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    (path,) = folder.glob("*/replicas/tables/headline.csv")
    for line in lines(path):
        (shown,) = [x for x in text.splitlines() if x.startswith(f"| {line['capacity']} (")]
        assert f"`{line['baseline_option']}`" in shown
        assert f"{float(line['speedup']):.2f}\N{MULTIPLICATION SIGN} [" in shown
        assert f"{100 * float(line['bound_share']):.1f} %" in shown
    assert "2 rounds" in text
    assert "generated weights" in text
    for target in re.findall(r"\]\(results/reference/([^)]+)\)", text):
        assert (folder / target).parent.is_dir()


def test_bits_that_differ_stand_out_and_missing_numbers_are_dashes(kept: tuple[Path, Path]) -> None:
    folder, _ = kept
    (path,) = folder.glob("*/replicas/tables/headline.csv")
    head, first, *rest = lines(path)[0].keys(), *lines(path)
    changed = {**first, "batches_unequal": "2 8", "bound_share": "", "speedup": ""}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows([changed, *rest])
    (shown,) = [x for x in headline(folder).splitlines() if x.startswith("| 32 (")]
    assert shown.endswith("| **differ** at 2, 8 |")
    assert shown.count("| \N{EN DASH} |") == 2


def test_kept_runs_of_the_policies_have_their_figure_below(kept: tuple[Path, Path]) -> None:
    folder, _ = kept
    index = folder / INDEX
    before = headline(folder)
    first = index.read_text().splitlines()[1]
    name = first.split(",")[0]
    line = first.replace(f"{name},replicas", "card/policies,policies")
    index.write_text(index.read_text() + line + "\n")
    tables = folder / "card" / "policies" / "tables"
    tables.mkdir(parents=True)
    (tables / "policies.csv").write_text("row\ntoy\ntoy\n")
    text = headline(folder)
    assert text.startswith(before.removesuffix(END))
    assert 'card/policies/figures/policies.svg" width="420"' in text
    index.write_text(index.read_text().replace("policies,policies,", "policies,other,"))
    assert headline(folder) == before


def test_without_anything_kept_the_headline_says_so(tmp_path: Path) -> None:
    assert "Nothing is kept yet" in headline(tmp_path)
    assert drift(tmp_path, ROOT / "README.md") == [str(ROOT / "README.md")]


def test_a_readme_without_the_marks_is_named(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no marks\n")
    with pytest.raises(TecError, match=r"marks of the headline are missing .*README\.md"):
        write_headline(tmp_path, readme)


def test_the_index_has_most_rows_first_and_the_cpu_last(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    one, two, cpu = (folder / name / "replicas" / "runs" for name in ("one", "two", "cpu"))
    for target in (one, two, cpu):
        target.mkdir(parents=True)
        shutil.copy(results / "runs" / NAMES[0], target)
    other = two / "other.replay.jsonl"
    shutil.copy(results / "runs" / NAMES[0], other)
    change(other, lambda record: record.update(row="other"))
    change(cpu / NAMES[0], lambda record: record["build"].update(target="cpu", commit="f" * 40))
    found = list(csv.DictReader(index_of(kept_studies(folder)).splitlines()))
    assert [line["folder"] for line in found] == ["two/replicas", "one/replicas", "cpu/replicas"]
    assert [(line["rows"], line["rounds"], line["evidence"]) for line in found] == [
        ("2", "2", "gpu"),
        ("1", "2", "gpu"),
        ("1", "2", "functional"),
    ]
    assert found[2]["llama_cpp"] == "fffffff"
