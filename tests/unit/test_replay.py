"""What fits at which limit, and the measurement that follows from it, with stand-ins for the tools.

The stand-in's model has 12 layers with 16 experts of 100 MiB each: 1650 MiB a layer, and 150 MiB of
output and buffers; a slot in every layer takes 1200 MiB.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import fake_tools
from fake_replay import STUDY
from fake_study import make_session, make_steps, make_study
from tec import placement, replay, replay_inputs, replay_steps
from tec.baselines_table import baselines_table
from tec.belady import belady_misses
from tec.errors import TecError
from tec.layer_sizes import LayerSizes
from tec.pin_list import read_pin_list
from tec.placement import Placement
from tec.prober import STEADY_MIB, Prober
from tec.quantities import MIB
from tec.records import PROBE, Record, read_records
from tec.replay import STREAMED, measure
from tec.replay_steps import Placed, ReplaySteps, option
from tec.routing_trace import read_trace
from tec.session import Session
from tec.steps import Steps
from tec.summary import summarise
from tec.traces_table import traces_table
from tec.verdicts import judge

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
    assert len(fake_tools.calls(tmp_path / "bin")) == before + 1  # what the card has free
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


def test_a_placed_arm_that_runs_out_of_memory_later_is_an_error(tmp_path: Path) -> None:
    steps, session = make(tmp_path, faults={"grows": "--n-cpu-moe 6 "})
    with pytest.raises(TecError, match="arm ncmoe-c8 was found to fit into 10670 MiB") as caught:
        measure(steps, session, wait=0)
    assert "margin_mib" in str(caught.value)
    assert "toy.search.*.jsonl so that it is searched again" in str(caught.value)
    assert not session.kept.exists()


def test_another_error_in_the_measurement_is_told_as_it_is(tmp_path: Path) -> None:
    steps, session = make(tmp_path, faults={"fail": "-n 36 "})
    with pytest.raises(TecError, match="capacity 1 is below") as caught:
        measure(steps, session, wait=0)
    assert caught.value.__cause__ is None


def test_the_resident_arm_may_turn_out_not_to_fit(tmp_path: Path) -> None:
    steps, session = make(tmp_path, faults={"grows": "--vram-limit 24488 "})
    measure(steps, session, wait=0)
    records = read_records(session.kept)
    assert {r.arm for r in records if r.test != PROBE and not r.fits} == {"resident", "resident-aa"}
    arms = {arm.arm for arm in summarise(records)}
    assert "ncmoe-c8" in arms
    assert "resident" not in arms
    (line,) = (line for line in baselines_table(records).rows if line["arm"] == "resident")
    assert line["outcome"] == "does not fit"


def test_kept_records_of_a_baseline_that_did_not_fit_make_no_tables(tmp_path: Path) -> None:
    steps, session = make(tmp_path)
    measure(steps, session, wait=0)
    misfit = {"fits": False, "error": "out of memory"}
    records = [
        r.model_copy(update={"result": misfit}) if (r.arm, r.test) == ("ngl-c8", "replay") else r
        for r in read_records(session.kept)
    ]
    with pytest.raises(TecError, match="arm ngl-c8 did not fit when it was measured"):
        summarise(records)


def test_the_value_taken_is_not_shown_as_refused(tmp_path: Path) -> None:
    steps, session = make(tmp_path)
    measure(steps, session, wait=0)
    records = [r for r in read_records(session.kept) if r.arm == "ncmoe-all"]
    smaller = records[0].model_copy(update={"result": {"fits": False, "error": "out of memory"}})
    (line,) = baselines_table([smaller, *records]).rows
    assert (line["value"], line["refused"]) == (99, None)


def test_the_records_say_what_trace_was_followed(tmp_path: Path) -> None:
    steps, session = make(tmp_path)
    measure(steps, session, wait=0)
    (line,) = traces_table(read_records(session.kept)).rows
    assert (line["row"], line["profile"], line["seed"]) == ("toy", "qwen3-30b-a3b", 1)
    assert "interpolated" in str(line["source"])
    assert line["tokens"] == 40
    assert 0 < float(line["next_token"] or 0) < float(line["within_8"] or 0) < 1
    assert 0 < float(line["lru_0.25"] or 0) < float(line["lru_0.5"] or 0) < 1
    assert traces_table(r for r in read_records(session.kept) if r.test == PROBE).rows == ()


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
    assert len(fake_tools.calls(tmp_path / "bin")) == calls + 1 + 3
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


def test_parity_checks_arms_of_one_capacity_too(tmp_path: Path) -> None:
    arms = {
        **STUDY["arms"],
        "ten": {"expert_cache": 10, "options": {"n-cpu-moe": 99}},
        "auto": {"expert_cache": "auto", "options": {"n-cpu-moe": 99}},
    }
    plan, records = parity(tmp_path, arms=arms)
    assert {"ten replay 0", "ten greedy 0", "auto replay 0", "auto greedy 0"} <= set(plan)
    limited = {(r.arm, r.test) for r in records if "--vram-limit" in r.command}
    assert limited == {("auto", "replay")}
    judged = {v.arm for v in judge(records) if v.check == "bitwise" and v.verdict == "pass"}
    assert {"ten", "auto", "cached-c4"} <= judged


POLICIES = {
    **STUDY["arms"],
    **{
        name: {
            "expert_cache": "sweep",
            "expert_cache_policy": name,
            "options": {"n-cpu-moe": 99},
        }
        for name in ("hot", "hybrid")
    },
}


def test_parity_runs_a_policy_of_the_cpu_once_along_the_trace(tmp_path: Path) -> None:
    plan, records = parity(tmp_path, arms=POLICIES)
    own = [line for line in plan if line.startswith(("hot", "hybrid"))]
    assert own == ["hot-c4 replay 0", "hybrid-c4 replay 0"]
    made = {"model": records[0].model.model_copy(update={"variant": "replica"})}
    verdicts = judge([record.model_copy(update=made) for record in records])
    found = {(v.arm, v.check, v.batch): v for v in verdicts}
    bits = found["hot-c4", "bitwise", 1]
    assert bits.verdict == "not_run"
    assert "trained models are held to tokens" in bits.detail
    assert ("hot-c4", "bitwise", 2) not in found
    assert found["cached-c8", "bitwise", 2].verdict == "pass"


def test_limits_are_those_of_lru_and_every_policy_is_tried_at_the_largest(tmp_path: Path) -> None:
    placed, found = place(tmp_path, arms=POLICIES)
    assert found.limits == {c: 750 + c * 1200 + MARGIN for c in (4, 8, 16)}
    assert placed["hybrid-c8"].limit_mib == placed["cached-c8"].limit_mib == found.limits[8]
    tried = {r.arm for r in found.prober.used if r.arm.startswith(("cached", "hot", "hybrid"))}
    assert tried == {"cached-c4", "cached-c16", "hot-c16", "hybrid-c16"}


def test_a_policy_with_larger_buffers_widens_the_limit_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = 750 + 16 * 1200 + MARGIN
    options = "--gpu-layers 99 --fit off --expert-cache 16 --expert-cache-policy hybrid"
    grows = {"grows": f"--vram-limit {narrow} {options}"}
    monkeypatch.setattr(replay_steps, "PROBE_TOKENS", 9)
    _, found = place(tmp_path, arms=POLICIES, faults=grows)
    assert found.limits[16] == narrow + MARGIN


def test_a_record_says_what_belady_misses_on_the_tokens_that_were_decoded(
    tmp_path: Path,
) -> None:
    steps, session = make(tmp_path)
    measure(steps, session, wait=0)
    records = {r.arm: r for r in read_records(session.kept) if r.test == "replay"}
    whole = read_trace(ReplaySteps(steps).inputs.trace, 16)
    followed = dataclasses.replace(whole, selections=whole.selections[:36])
    for slots in (4, 8, 16):
        misses = int(belady_misses(followed, slots).sum())
        found = records[f"cached-c{slots}"].result["belady"]
        assert found == {"misses": misses, "bytes": misses * 100 * MIB}
    assert "belady" not in records["resident"].result


def test_where_the_model_does_not_fit_parity_streams_the_experts(tmp_path: Path) -> None:
    plan, records = parity(tmp_path, gpu_mib=WHOLE - 1000)
    assert plan[0] == f"{STREAMED} replay 0"
    first = records[0]
    assert first.environment == {"GGML_OP_OFFLOAD_MIN_BATCH": "1"}
    assert " ".join(first.command).endswith("--n-cpu-moe 99 --expert-cache off")
    assert not any(line.startswith("cached-c16") for line in plan)


def test_a_placement_refuses_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(TecError, match="2 GPUs are visible"):
        place(tmp_path)
    assert not fake_tools.calls(tmp_path / "bin")


def calls(folder: Path) -> int:
    return len(fake_tools.calls(folder / "bin"))


def test_memory_that_another_program_held_is_looked_for_again(tmp_path: Path) -> None:
    small, _ = place(tmp_path, gpu_mib=WHOLE - 1000)
    assert "resident" not in small
    large, found = place(tmp_path, gpu_mib=25_000)
    assert large["resident"].limit_mib == found.card_mib == 25_000 - 512
    again, _ = place(tmp_path, gpu_mib=WHOLE - 1000)
    assert again == small


def test_a_misfit_of_another_day_is_tried_again_at_the_same_limit(tmp_path: Path) -> None:
    """What did not fit at a limit may have been kept from it by a program that is gone."""
    place(tmp_path)
    search = tmp_path / "search.jsonl"
    known = read_records(search)
    misfits = sum(not record.fits for record in known) - 1  # the first one is about the card
    assert misfits > 0
    shift = 2 * STEADY_MIB
    before = calls(tmp_path)
    place(tmp_path, gpu_mib=25_000 + shift)
    tried = fake_tools.calls(tmp_path / "bin")[before:]
    old = {" ".join(record.command[1:]) for record in known if not record.fits}
    assert sum(line.split(" ", 1)[1] in old for line in tried) >= misfits


def test_nearly_the_same_memory_is_the_same(tmp_path: Path) -> None:
    placed, _ = place(tmp_path)
    before = calls(tmp_path)
    size = (tmp_path / "search.jsonl").stat().st_size
    again, found = place(tmp_path, gpu_mib=25_000 - STEADY_MIB)
    assert again == placed
    assert found.card_mib == 25_000 - 512
    assert calls(tmp_path) == before + 1  # the card itself
    assert (tmp_path / "search.jsonl").stat().st_size == size


def test_too_little_memory_for_known_limits_says_what_to_do(tmp_path: Path) -> None:
    steps, session = make(tmp_path)
    found = Placement(ReplaySteps(steps), Prober(session, tmp_path / "search.jsonl", 0))
    placed = found.place()
    fake_tools.set_faults(tmp_path / "bin", gpu_mib=3_000, layers=LAYERS)
    for arm in ("resident", "cached-c8"):
        step = ReplaySteps(steps).decode(arm, 0, placed[arm])
        with pytest.raises(TecError, match="less of the GPU's memory is free") as caught:
            session.run([step], wait=0)
        assert f"{tmp_path / 'toy.search.*.jsonl'}" in str(caught.value)


def test_unified_arms_pin_what_the_tokens_that_are_not_decoded_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = LayerSizes((0, 1) * 2 + (0,) * (LAYERS - 4), (1,) * LAYERS, 1)
    monkeypatch.setattr(replay_inputs, "read_layer_sizes", lambda _: sizes)
    arms = {"off": {}, "unified": {"expert_cache": "sweep", "unified": True}}
    protocols = {"replay": {**STUDY["protocols"]["replay"], "host_limit_mib": 700}}
    steps, _ = make(tmp_path, arms=arms, protocols=protocols)
    made = ReplaySteps(steps)
    words = made.words("unified-c8")
    assert "--expert-cache-unified" in words
    assert "--expert-cache-unified" not in made.words("off")
    pins = read_pin_list(Path(option(words, "--expert-cache-pin-list") or ""), LAYERS, 16)
    assert [bool(experts) for experts in pins.layers[:4]] == [False, True, False, True]
    rest = read_trace(made.inputs.trace, 16).selections[36:, 1].ravel().tolist()
    assert set(pins.layers[3]) == set(rest)
    assert pins.layers[3][0] == min(set(rest), key=lambda expert: (-rest.count(expert), expert))
    placed = Placed(words, 1000)
    assert option(made.decode("unified-c8", 0, placed).command, "--host-limit") == "700"
    assert "--host-limit" not in made.whole("unified-c8", 0, words).command


def test_a_trace_is_drawn_for_the_model_it_is_of(tmp_path: Path) -> None:
    """Its name says so: a file that is there belongs to a row of that shape."""
    steps, _ = make(tmp_path)
    made = {ReplaySteps(steps).inputs.trace}
    for change in ({"n_moe_layers": 3}, {"n_expert": 32}, {"n_expert_used": 3}):
        info = steps.model.model_copy(update=change)
        other = Steps(steps.study, steps.row, info, steps.manifest, steps.choice)
        trace = ReplaySteps(other).inputs.trace
        assert trace not in made
        made.add(trace)
        shape = read_trace(trace)
        assert shape.selections.shape[1:] == (info.n_moe_layers, info.n_expert_used)
