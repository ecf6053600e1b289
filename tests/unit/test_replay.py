"""What fits at which limit, and the measurement that follows from it, with stand-ins for the tools.

The stand-in's model has 12 layers with 16 experts of 100 MiB each: 1650 MiB a layer, and 150 MiB of
output and buffers; a slot in every layer takes 1200 MiB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fake_tools
from fake_replay import STUDY
from fake_study import make_session, make_steps, make_study
from tec import placement, replay, replay_inputs, replay_steps
from tec.baselines_table import baselines_table
from tec.errors import TecError
from tec.layer_sizes import LayerSizes
from tec.placement import Placement
from tec.prober import Prober
from tec.quantities import MIB
from tec.records import PROBE, Record, read_records
from tec.replay import STREAMED, measure
from tec.replay_steps import ReplaySteps
from tec.session import Session
from tec.steps import Steps

pytestmark = pytest.mark.usefixtures("apart")

LAYERS = 12
SIZES = LayerSizes((1600 * MIB,) * LAYERS, (50 * MIB,) * LAYERS, 50 * MIB)
WHOLE = 100 + 50 + LAYERS * 1650
MARGIN = 320


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stand-in's model has no file."""
    monkeypatch.setattr(placement, "read_layer_sizes", lambda _: SIZES)
    monkeypatch.setattr(replay_inputs, "_vocabulary", lambda *_: 100)
    monkeypatch.setattr(replay_steps, "input_folder", lambda *_: tmp_path / "inputs")


def make(folder: Path, gpu_mib: int | None = 25_000, **changes: Any) -> tuple[Steps, Session]:
    """Return steps and session of the fake study on a card with so much memory free."""
    faults = changes.pop("faults", {})
    card = {} if gpu_mib is None else {"gpu_mib": gpu_mib}
    study = make_study(folder, **{**STUDY, **changes})
    steps = make_steps(folder, study, layers=LAYERS, **card, **faults)
    info = steps.model.model_copy(update={"n_layer": LAYERS, "n_moe_layers": 2})
    steps = Steps(study, steps.row, info, steps.manifest, steps.choice)
    return steps, make_session(folder, steps, "replay")


def place(folder: Path, **changes: Any) -> tuple[dict[str, Any], Placement]:
    steps, session = make(folder, **changes)
    found = Placement(ReplaySteps(steps), Prober(session, folder / "search.jsonl", 0))
    return found.place(), found


def test_limits_are_what_the_cached_arms_use_and_a_margin(tmp_path: Path) -> None:
    placed, found = place(tmp_path)
    fixed = 100 + 50 * (LAYERS + 1)
    assert found.limits == {c: fixed + c * 1200 + MARGIN for c in (4, 8, 16)}
    assert placed["cached-c8"].limit_mib == found.limits[8]
    assert placed["resident"].limit_mib == 25_000 - 512
    assert placed["ncmoe-all"].limit_mib == found.limits[4]


def test_the_search_finds_what_the_limit_holds(tmp_path: Path) -> None:
    placed, found = place(tmp_path)
    for slots in (4, 8, 16):
        assert {placed[f"{kind}-c{slots}"].limit_mib for kind in ("ncmoe", "ngl", "fit")} == {
            found.limits[slots]
        }
    words = " ".join(placed["ncmoe-c8"].words)
    on_gpu = (8 * 1200 + MARGIN) // 1600
    assert words == f"--gpu-layers 99 --fit off --n-cpu-moe {LAYERS - on_gpu} --expert-cache off"
    layers = (found.limits[8] - 150) // 1650
    assert placed["ngl-c8"].words[:2] == ("--gpu-layers", str(1 + layers))
    assert placed["fit-c8"].words[:4] == ("--fit", "on", "--fit-target", "128")
    assert "--n-cpu-moe 0" in " ".join(placed["ncmoe-c16"].words)


def test_one_more_was_tried_and_the_evidence_is_kept(tmp_path: Path) -> None:
    _, found = place(tmp_path)
    tried = [r for r in found.prober.used if r.arm == "ncmoe-c8"]
    assert [r.fits for r in tried] == [True, False]  # the estimate is right
    assert "unable to allocate" in tried[1].result["error"]
    before = len(fake_tools.calls(tmp_path / "bin"))
    again, _ = place(tmp_path)
    assert len(fake_tools.calls(tmp_path / "bin")) == before
    assert set(again) == {*("resident", "resident-aa", "ncmoe-all")} | {
        f"{kind}-c{slots}" for kind in ("cached", "ncmoe", "ngl", "fit") for slots in (4, 8, 16)
    }


def test_what_does_not_fit_is_no_failure(tmp_path: Path) -> None:
    steps, session = make(tmp_path, gpu_mib=WHOLE - 1000)
    measure(steps, session, wait=0)
    records = read_records(session.kept)
    assert {r.arm for r in records if r.test == PROBE and not r.fits} >= {"resident", "cached-c16"}
    measured = {r.arm for r in records if r.test != PROBE}
    assert not measured & {"resident", "resident-aa", "cached-c16", "ncmoe-c16"}
    assert {"cached-c4", "cached-c8", "ncmoe-c8"} <= measured
    lines = {str(line["arm"]): line for line in baselines_table(records).rows}
    assert lines["resident"]["outcome"] == "does not fit"
    assert lines["resident"]["tg_tps"] is None
    assert lines["ncmoe-c8"]["refused"] == (lines["ncmoe-c8"]["value"] or 0) - 1  # type: ignore[operator]
    assert "card" not in lines


def test_measured_once_and_continued_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, session = make(tmp_path, faults={"fail": "--expert-cache 8 -x"})
    measure(steps, session, wait=0)
    measured = [r for r in read_records(session.kept) if r.test != PROBE]
    assert len(measured) == 2 * 15
    calls = len(fake_tools.calls(tmp_path / "bin"))
    measure(steps, session, wait=0)
    assert len(fake_tools.calls(tmp_path / "bin")) == calls
    assert "nothing to measure" in capsys.readouterr().err
    text = session.kept.read_text().splitlines(keepends=True)
    session.kept.unlink()
    whole = [line for line in text if '"test":"replay"' in line]
    session.partial.write_text("".join(whole[:-3]))
    measure(steps, session, wait=0)
    assert len(fake_tools.calls(tmp_path / "bin")) == calls + 3
    assert len(read_records(session.kept)) == len(text)


def test_an_error_that_is_not_about_memory_fails_the_row(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="capacity 1 is below"):
        place(tmp_path, faults={"fail": "--n-cpu-moe 6"})


def test_without_a_card_the_limit_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="there is no GPU"):
        place(tmp_path, gpu_mib=None)


def test_a_card_too_small_for_the_smallest_capacity_fails_the_row(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="smallest capacity, 4 slots, does not fit") as caught:
        place(tmp_path, gpu_mib=4000)
    assert "choose smaller capacities" in str(caught.value)


def test_a_margin_that_is_too_small_is_widened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Placement, "_slot_bytes", 1180.0 * MIB)  # 240 MiB short at 16 slots
    protocols = {"replay": {**STUDY["protocols"]["replay"], "margin_mib": 200}}
    _, found = place(tmp_path, protocols=protocols)
    assert found.limits[16] == 750 + 4 * 1200 + 12 * 1180 + 400
    monkeypatch.setattr(Placement, "_slot_bytes", 600.0 * MIB)
    with pytest.raises(TecError, match="make margin_mib of the study larger"):
        place(tmp_path, protocols=protocols)


def test_stock_arms_alone_have_the_limits_of_the_capacities(tmp_path: Path) -> None:
    arms = {name: arm for name, arm in STUDY["arms"].items() if name != "cached"}
    placed, found = place(tmp_path, arms=arms)
    assert found.limits[8] == 750 + 8 * 1200 + MARGIN
    assert "ncmoe-c8" in placed


def parity(folder: Path, **changes: Any) -> tuple[list[str], list[Record]]:
    batches = {"n_gen": 8, "rounds": 2, "batches": [1, 2], "text": str(folder / "text.txt")}
    steps, _ = make(folder, parity=batches, **changes)
    session = make_session(folder, steps, "parity")
    plan = replay.parity_plan(steps, session, wait=0)
    session.run(plan, wait=0)
    return [f"{s.arm} {s.test} {s.round}" for s in plan], read_records(session.kept)


def test_parity_compares_with_the_resident_arm_along_the_trace(tmp_path: Path) -> None:
    plan, records = parity(tmp_path)
    assert plan[:4] == [f"resident {test} {n}" for n in (0, 1) for test in ("replay", "greedy")]
    assert plan[4:6] == ["cached-c4 replay 0", "cached-c4 greedy 0"]
    assert all("--vram-limit" not in record.command for record in records)
    together = next(record.command for record in records if record.test == "greedy")
    assert "--parallel" in together
    assert "--replay" not in together


def test_where_the_model_does_not_fit_parity_streams_the_experts(tmp_path: Path) -> None:
    plan, records = parity(tmp_path, gpu_mib=WHOLE - 1000)
    assert plan[0] == f"{STREAMED} replay 0"
    first = records[0]
    assert first.environment == {"GGML_OP_OFFLOAD_MIN_BATCH": "1"}
    assert " ".join(first.command).endswith("--n-cpu-moe 99 --expert-cache off")
    assert not any(line.startswith("cached-c16") for line in plan)
