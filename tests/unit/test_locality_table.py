"""Tables of the locality study: what is predicted must be what was counted."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_results import ROW, write_results
from tec.cli import main
from tec.errors import TecError
from tec.locality import POLICIES, analyse
from tec.locality_table import write_locality_tables
from tec.records import read_records
from tec.routing_trace import RoutingTrace, read_trace, write_trace

N_EXPERT, TOP_K = 16, 2

Lines = list[dict[str, Any]]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path, (ROW, "second-row"))


def table(results: Path, name: str) -> list[dict[str, str]]:
    with (results / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def change(results: Path, edit: Callable[[Lines], None]) -> None:
    """Edit the records of the first row."""
    path = results / "runs" / f"{ROW}.locality.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def cached(lines: Lines, arm: str = "cached-c8", test: str = "text") -> dict[str, Any]:
    (line,) = (line for line in lines if (line["arm"], line["test"]) == (arm, test))
    result: dict[str, Any] = line["result"]
    return result


def test_every_policy_has_every_capacity(results: Path) -> None:
    rows = table(results, "locality")
    assert list(rows[0]) == [
        *("row", "trace", "policy", "capacity", "hit_rate"),
        *("counted_hit_rate", "n_selections", "variant"),
    ]
    wanted = [
        (row, trace, policy, str(capacity))
        for row in (ROW, "second-row")
        for trace in ("text", "random")
        for policy in POLICIES
        for capacity in range(TOP_K, N_EXPERT + 1)
    ]
    assert [(r["row"], r["trace"], r["policy"], r["capacity"]) for r in rows] == wanted
    assert {r["variant"] for r in rows} == {"full"}


def test_counted_hit_rates_stand_beside_the_predicted_ones(results: Path) -> None:
    rows = [row for row in table(results, "locality") if row["counted_hit_rate"]]
    assert {(row["policy"], row["capacity"]) for row in rows} == {
        ("lru", "2"), ("lru", "8"), ("lru", "16"),
    }  # fmt: skip
    assert all(row["counted_hit_rate"] == row["hit_rate"] for row in rows)
    records = read_records(results / "runs" / f"{ROW}.locality.jsonl")
    hits = [r.result["hits"] for r in records if (r.arm, r.test) == ("cached-c8", "text")]
    (row,) = (r for r in rows if (r["row"], r["trace"], r["capacity"]) == (ROW, "text", "8"))
    assert float(row["hit_rate"]) == pytest.approx(hits[0] / int(row["n_selections"]), abs=1e-6)


def test_people_get_some_capacities_side_by_side(results: Path) -> None:
    text = (results / "tables" / "locality.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(f"| {ROW} | text |")]
    assert [line.split(" | ")[2] for line in lines] == ["2", "4", "6", "8", "10", "12", "14", "16"]
    counted = [line.split(" | ")[4] != "\N{EN DASH}" for line in lines]
    assert counted == [True, False, False, True, False, False, False, True]


def test_reuse_has_a_line_per_row_and_input(results: Path) -> None:
    rows = table(results, "reuse")
    assert [(row["row"], row["trace"]) for row in rows] == [
        (ROW, "text"), (ROW, "random"), ("second-row", "text"), ("second-row", "random"),
    ]  # fmt: skip
    trace = read_trace(results / "traces" / f"{ROW}.text.npy", N_EXPERT)
    found = analyse(trace)
    assert float(rows[0]["overlap_8"]) == pytest.approx(found.overlap()[7], abs=1e-6)
    assert float(rows[0]["uniform_8"]) == pytest.approx(1 - (14 / 16) ** 8, abs=1e-6)
    assert int(rows[0]["median_reuse"]) == found.median_reuse
    assert (rows[0]["n_tokens"], rows[0]["n_selections"]) == ("80", "320")


def test_overlap_has_windows_up_to_the_whole_trace(results: Path) -> None:
    rows = [r for r in table(results, "overlap") if (r["row"], r["trace"]) == (ROW, "text")]
    windows = [int(row["window"]) for row in rows]
    assert windows == [*range(1, 65), 76, 79]
    found = analyse(read_trace(results / "traces" / f"{ROW}.text.npy", N_EXPERT))
    assert float(rows[7]["overlap"]) == pytest.approx(found.overlap()[7], abs=1e-6)
    assert float(rows[-1]["reused"]) == pytest.approx(1 - found.first_uses, abs=1e-6)


def test_one_hit_too_many_is_found_and_named(results: Path) -> None:
    def edit(lines: Lines) -> None:
        prompt = cached(lines)["prompts"][0]
        prompt["hits"][37] += 1

    change(results, edit)
    with pytest.raises(TecError, match=rf"at token 37 .* \({ROW}, input text, C = 8\)"):
        write_locality_tables(results, [ROW])


def test_a_wrong_sum_is_found(results: Path) -> None:
    change(results, lambda lines: cached(lines).update(misses=0))
    with pytest.raises(TecError, match=r"of 320, the program counted .* C = 8\)"):
        write_locality_tables(results, [ROW])


def test_missing_tokens_are_found(results: Path) -> None:
    def edit(lines: Lines) -> None:
        prompt = cached(lines)["prompts"][0]
        prompt.update({key: value[1:] for key, value in prompt.items() if key != "id"})

    change(results, edit)
    with pytest.raises(TecError, match="counted over 79 of 80 tokens"):
        write_locality_tables(results, [ROW])


def test_another_trace_is_refused(results: Path) -> None:
    path = results / "traces" / f"{ROW}.text.npy"
    trace = read_trace(path, N_EXPERT)
    write_trace(path, RoutingTrace(np.flip(trace.selections, axis=0), N_EXPERT))
    with pytest.raises(TecError, match=r"not the one of the record .*toy\.text\.npy"):
        write_locality_tables(results, [ROW])


def test_a_trace_of_another_shape_is_refused(results: Path) -> None:
    def edit(lines: Lines) -> None:
        for line in lines:
            line["model"]["n_moe_layers"] = 3

    change(results, edit)
    with pytest.raises(TecError, match="2 layers and 2 experts per token, the model 3 and 2"):
        write_locality_tables(results, [ROW])


def test_a_trace_needs_the_record_of_its_process(results: Path) -> None:
    change(results, lambda lines: cached(lines, "off").pop("trace_sha256"))
    with pytest.raises(TecError, match="process that wrote the trace of the input 'text'"):
        write_locality_tables(results, [ROW])


def test_a_missing_trace_is_named(results: Path) -> None:
    (results / "traces" / f"{ROW}.random.npy").unlink()
    with pytest.raises(TecError, match=r"cannot read the trace.*toy\.random\.npy"):
        write_locality_tables(results, [ROW])


def test_a_failed_row_is_left_out(results: Path) -> None:
    failure = {"failure": {"row": ROW, "stage": "measure locality", "what": "no memory"}}
    (results / "runs" / f"{ROW}.locality.jsonl").write_text(json.dumps(failure) + "\n")
    assert main(["locality", str(results), "--row", ROW, "--row", "second-row"]) == 0
    for name in ("locality", "reuse", "overlap"):
        assert {row["row"] for row in table(results, name)} == {"second-row"}
