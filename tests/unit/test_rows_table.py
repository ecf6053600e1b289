"""The table of rows."""

import csv
from pathlib import Path

import pytest

from fake_results import ROUTING, ROW, write_results
from tec.config import load_row
from tec.records import Check, Outcome, Verdict
from tec.rows_table import rows_table

FINE, BROKEN = "gpt-oss-120b-mxfp4", "mixtral-8x7b-instruct-v0.1-q6_k"


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("results")
    write_results(folder, miniatures=[FINE, BROKEN], failed=[BROKEN], locality=False)
    with (folder / "tables" / "rows.csv").open(newline="") as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def test_every_row_has_a_line_in_order(lines: dict[str, dict[str, str]]) -> None:
    assert list(lines) == [ROW, FINE, BROKEN]
    assert [line["variant"] for line in lines.values()] == ["full", "miniature", "miniature"]
    assert [line["outcome"] for line in lines.values()] == ["ok", "ok", "failed"]


def test_miniature_has_its_rows_shape_and_its_own_file(lines: dict[str, dict[str, str]]) -> None:
    row, line = load_row(FINE), lines[FINE]
    assert row.shape
    assert line["title"] == row.title
    assert (line["arch"], line["n_expert"]) == (row.shape.arch, str(row.shape.n_expert))
    assert (line["n_layer"], line["row_layers"]) == ("2", str(row.shape.n_layer))
    assert float(line["overlap_8"]) == ROUTING.overlap_8
    assert float(line["next_token_ratio"]) == pytest.approx(0.125 / 0.1)
    assert lines[ROW]["next_token_ratio"] == ""
    assert (lines[ROW]["overlap_8"], lines[ROW]["row_layers"]) == ("", "2")


def test_failed_row_is_known_from_its_configuration_alone(
    lines: dict[str, dict[str, str]],
) -> None:
    line = lines[BROKEN]
    assert (line["arch"], line["quant"], line["size_gib"]) == ("llama", "", "")
    assert (line["self"], line["bitwise"]) == ("not_run", "not_run")


def verdict(outcome: Outcome, check: Check = "bitwise") -> Verdict:
    return Verdict(
        row="a", arm="cached", check=check, verdict=outcome, detail="", evidence="gpu", batch=1
    )


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "not_run"], "not_run"),
        (["not_run", "fail", "pass"], "fail"),
        ([], "not_run"),
    ],
)
def test_one_verdict_for_all_capacities_is_the_worst(
    outcomes: list[Outcome], expected: Outcome
) -> None:
    verdicts = [verdict("pass", "self"), *(verdict(outcome) for outcome in outcomes)]
    (line,) = rows_table({}, [verdicts], [], ["a"]).rows
    assert (line["self"], line["bitwise"]) == ("pass", expected)


def test_table_is_written_for_people_too(tmp_path: Path) -> None:
    write_results(tmp_path, miniatures=[FINE], locality=False)
    text = (tmp_path / "tables" / "rows.md").read_text()
    assert "gpt-oss-120b-mxfp4 | miniature" in text
