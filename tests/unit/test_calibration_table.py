"""The table of pins on held-out text, and its figure, from a finished study's folder."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fake_results import ROW, write_results
from routing import local_trace
from tec.calibration import choose_pins
from tec.calibration_check import POLICIES, hit_rates
from tec.calibration_figure import calibration
from tec.calibration_record import read_calibration, record_path
from tec.calibration_table import FOLDER, write_calibration_table
from tec.cli import main
from tec.errors import TecError
from tec.figure_data import Results
from tec.pin_list import read_pin_list
from tec.records import read_records
from tec.routing_trace import RoutingTrace, read_trace, write_trace
from unit.test_calibration import write_list

N_EXPERT = 16
SECOND = "second-row"


def calibrate(results: Path, row: str) -> None:
    """Write what calibrating a row leaves."""
    model = read_records(results / "runs" / f"{row}.locality.jsonl")[0].model
    trace = local_trace(120, model.n_moe_layers, N_EXPERT, model.n_expert_used, seed=7)
    (results / FOLDER).mkdir(exist_ok=True)
    write_trace(results / FOLDER / f"{row}.npy", trace)
    write_list(results / FOLDER / f"{row}.pins.txt", trace, model.sha256)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two rows."""
    results = write_results(tmp_path_factory.mktemp("study"), (ROW, SECOND))
    for row in (ROW, SECOND):
        calibrate(results, row)
    return results


@pytest.fixture
def results(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "results"))


def table(results: Path) -> list[dict[str, str]]:
    with (results / "tables" / "calibration.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_text_policy_and_capacity_has_a_line(results: Path) -> None:
    assert main(["calibration", str(results), "--row", ROW, "--row", SECOND]) == 0
    rows = table(results)
    assert list(rows[0])[:5] == ["row", "text", "policy", "capacity", "hit_rate"]
    keys = [(r["row"], r["calibrated_on"], r["text"], r["capacity"], r["policy"]) for r in rows]
    assert keys == [
        (row, on, text, capacity, policy)
        for row in (ROW, SECOND)
        for on in ("prompt", "text")
        for text in ("calibration", "held-out")
        for capacity in ("2", "4", "8", "12")
        for policy in POLICIES
    ]


def test_lines_are_the_rates_of_the_traces_they_name(results: Path) -> None:
    write_calibration_table(results, [ROW])
    pins = read_pin_list(results / FOLDER / f"{ROW}.pins.txt")
    text = read_trace(results / "traces" / f"{ROW}.text.npy", N_EXPERT)
    first, second = (
        RoutingTrace(part, N_EXPERT) for part in (text.selections[:40], text.selections[40:])
    )
    layers = range(text.n_layers)
    same = choose_pins(first, tuple(layers), text.n_layers)
    own = read_trace(results / FOLDER / f"{ROW}.npy", N_EXPERT)
    for on, kind, trace, chosen in (
        ("prompt", "calibration", own, pins),
        ("prompt", "held-out", text, pins),
        ("text", "calibration", first, same),
        ("text", "held-out", second, same),
    ):
        rows = [r for r in table(results) if (r["calibrated_on"], r["text"]) == (on, kind)]
        wanted = hit_rates(trace, chosen, layers, [2, 4, 8, 12])
        assert [int(row["pinned"]) for row in rows] == [rate.pinned for rate in wanted]
        found = [float(row["hit_rate"]) for row in rows]
        assert found == pytest.approx([rate.rate for rate in wanted], abs=1e-6)
        assert {row["tokens"] for row in rows} == {str(trace.n_tokens)}


def test_for_people_both_texts_stand_side_by_side(results: Path) -> None:
    write_calibration_table(results, [ROW])
    lines = [
        line.split("|")[1:-1]
        for line in (results / "tables" / "calibration.md").read_text().splitlines()
        if line.startswith(f"| {ROW}")
    ]
    assert len(lines) == 24
    for *_, own, held_out, lost in lines:
        assert float(lost) == pytest.approx(float(own) - float(held_out), abs=0.11)


def test_the_figure_shows_both_calibrations_of_each_row_above_lru(results: Path) -> None:
    write_calibration_table(results, [ROW, SECOND])
    figure = calibration(Results(results))
    assert [axis.get_title() for axis in figure.axes] == [
        f"{row}\n{on}"
        for row in (ROW, SECOND)
        for on in ("built-in prompt", "same text, first half")
    ]
    rates = {
        (r["calibrated_on"], r["text"], r["policy"], r["capacity"]): float(r["hit_rate"])
        for r in table(results)
        if r["row"] == ROW
    }
    drawn = [line for line in figure.axes[0].lines if np.size(line.get_xdata()) == 4]
    wanted = [
        [rates["prompt", text, policy, c] - rates["prompt", text, "lru", c] for c in "248"]
        for policy in ("pins", "pins+lru")
        for text in ("calibration", "held-out")
    ]
    assert [np.asarray(line.get_ydata())[:3].tolist() for line in drawn] == [
        pytest.approx(w) for w in wanted
    ]


def other_routing(results: Path) -> None:
    path = results / FOLDER / f"{ROW}.npy"
    write_trace(path, local_trace(120, 2, N_EXPERT, 2, seed=8))


def shorter_routing(results: Path) -> None:
    path = results / FOLDER / f"{ROW}.npy"
    write_trace(path, RoutingTrace(read_trace(path).selections[:100], N_EXPERT))


def other_model(results: Path) -> None:
    pins = results / FOLDER / f"{ROW}.pins.txt"
    record = read_calibration(pins)
    origin = record.origin.model_copy(update={"model": "e" * 64})
    record_path(pins).write_text(record.model_copy(update={"origin": origin}).model_dump_json())


def other_text(results: Path) -> None:
    shutil.copy(results / "traces" / f"{ROW}.random.npy", results / "traces" / f"{ROW}.text.npy")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_routing, "the list is not made from the routing beside it"),
        (shorter_routing, "the routing is of 100 tokens in 2 layers, the list is made from 120"),
        (other_model, "the list is of another model than the records"),
        (other_text, "the trace is not the one of the record"),
        (lambda r: (r / FOLDER / f"{ROW}.npy").unlink(), "cannot read the trace"),
        (lambda r: (r / FOLDER / f"{ROW}.pins.txt").unlink(), "no record of what the list"),
    ],
)
def test_files_that_do_not_belong_together_make_no_table(
    results: Path, damage: Callable[[Path], None], message: str
) -> None:
    (results / "tables" / "calibration.csv").unlink(missing_ok=True)
    damage(results)
    with pytest.raises(TecError, match=message):
        write_calibration_table(results, [ROW])
    assert not (results / "tables" / "calibration.csv").exists()


@pytest.mark.parametrize("file", [f"runs/{ROW}.locality.jsonl", f"{FOLDER}/{ROW}.pins.txt"])
def test_a_failed_row_is_left_out(results: Path, file: str) -> None:
    failure = {"failure": {"row": ROW, "stage": "calibrate", "what": "no memory"}}
    (results / file).write_text(json.dumps(failure) + "\n")
    write_calibration_table(results, [ROW, SECOND])
    assert {row["row"] for row in table(results)} == {SECOND}


def test_where_nothing_was_calibrated_the_figure_says_so(results: Path) -> None:
    failure = {"failure": {"row": ROW, "stage": "calibrate", "what": "no memory"}}
    (results / FOLDER / f"{ROW}.pins.txt").write_text(json.dumps(failure))
    write_calibration_table(results, [ROW])
    (text,) = calibration(Results(results)).texts
    assert text.get_text() == "no row could be calibrated"
