"""Policies of the cache: how arms of them are run, judged, bounded and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fake_study import make_session, make_steps, make_study
from replay_results import COPY, EXPERT_BYTES, FEWEST, N_LAYER, replay_records
from routing import local_trace, traces
from tec.belady import belady_misses
from tec.config import Arm, load_study
from tec.errors import TecError
from tec.headline_table import headline_table
from tec.launches import condense_alone
from tec.locality import analyse
from tec.loss_table import loss_table
from tec.main_table import main_table
from tec.measure import locality_plan
from tec.parity import parity_plan
from tec.policies_table import policies_table
from tec.records import Record, Verdict, read_records
from tec.routing_trace import RoutingTrace
from tec.summary import ArmSummary, summarise
from tec.tables import capacity_table, has_policies
from tec.verdicts import enforce, judge

pytestmark = pytest.mark.usefixtures("apart")

HOT = {"expert_cache": "sweep", "expert_cache_policy": "hot"}
ARMS = {"off": {}, "cached": {"expert_cache": "sweep"}, "hot": HOT}


class TestArm:
    def test_policy_and_flags_are_arguments(self) -> None:
        options = {"n-cpu-moe": 99, "no-repack": True}
        arm = Arm(expert_cache=8, expert_cache_policy="hybrid", options=options)
        assert arm.computes_misses
        assert " ".join(arm.arguments()) == (
            "--expert-cache 8 --expert-cache-policy hybrid --n-cpu-moe 99 --no-repack"
        )

    @pytest.mark.parametrize("wrong", [{"expert_cache": "off"}, {"unified": True}])
    def test_the_cpu_needs_all_experts_and_slots_beside_them(self, wrong: dict[str, Any]) -> None:
        given = {"expert_cache": 8, "expert_cache_policy": "hot", **wrong}
        with pytest.raises(ValidationError, match="policy hot is for arms with the cache on"):
            Arm.model_validate(given)

    def test_a_flag_is_given_or_left_out(self) -> None:
        with pytest.raises(ValidationError, match="no-repack"):
            Arm.model_validate({"options": {"no-repack": False}})


def test_study_policies_has_all_of_them_at_equal_slots() -> None:
    study = load_study("policies")
    arms = study.expand_arms(study.rows[0], 128, 8)
    for slots in (16, 32, 64, 96):
        at_it = {name.split("-")[0] for name in arms if name.endswith(f"-c{slots}")}
        assert at_it == {"cached", "hot", "hybrid", "ncmoe", "ngl", "fit"}
    assert arms["resident-aa"] == arms["resident"]


class TestBelady:
    @settings(deadline=None)  # the first call compiles
    @given(trace=traces(), data=st.data())
    def test_misses_are_those_of_the_compiled_simulation(
        self, trace: RoutingTrace, data: st.DataObject
    ) -> None:
        capacity = data.draw(st.integers(1, trace.n_expert))
        hits = analyse(trace).hits["belady"][:, capacity]
        assert (belady_misses(trace, capacity) == trace.n_tokens * trace.top_k - hits).all()

    def test_lru_misses_no_less(self) -> None:
        trace = local_trace()
        found = analyse(trace)
        for capacity in (4, 8, 12):
            lru = trace.n_tokens * trace.top_k - found.hits["lru"][:, capacity]
            assert (belady_misses(trace, capacity) < lru).all()

    def test_what_comes_after_the_last_token_is_not_known(self) -> None:
        trace = local_trace(tokens=60)
        begin = replace(trace, selections=trace.selections[:30])
        assert belady_misses(begin, 4).sum() < belady_misses(trace, 4).sum()


def judged(folder: Path, **faults: Any) -> tuple[list[Record], dict[tuple[str, str], Verdict]]:
    steps = make_steps(folder, make_study(folder, arms=ARMS), **faults)
    session = make_session(folder, steps, "parity")
    session.run(parity_plan(steps), wait=0)
    records = read_records(session.kept)
    return records, {(v.arm, v.check): v for v in judge(records)}


class TestParity:
    def test_bits_are_not_asked_for_and_the_verdict_says_why(self, tmp_path: Path) -> None:
        _, found = judged(tmp_path)
        bits = found["hot-c2", "bitwise"]
        assert bits.verdict == "not_run"
        assert bits.detail == (
            "56 misses computed by the CPU, whose sums have another order: the arm is held to "
            "tokens, perplexity and divergence"
        )
        assert found["cached-c2", "bitwise"].verdict == "pass"
        enforce(list(found.values()))

    def test_tokens_perplexity_and_divergence_are_at_every_capacity(self, tmp_path: Path) -> None:
        records, found = judged(tmp_path)
        assert {r.arm for r in records if r.test == "kl"} == {
            *("off", "cached-c2", "cached-c16", "hot-c2", "hot-c8", "hot-c16")
        }
        checks = {v.verdict for (arm, check), v in found.items() if arm in ("hot-c2", "hot-c8")}
        assert checks == {"not_run", "pass"}
        for check in ("greedy", "ppl", "kl"):
            assert found["hot-c8", check].verdict == "pass"

    def test_the_cpus_order_of_sums_is_allowed_for_and_no_other_arms(self, tmp_path: Path) -> None:
        records, found = judged(tmp_path)
        assert "3.00e-04" in found["hot-c2", "kl"].detail
        other = [
            r.model_copy(update={"result": {**r.result, "kl_mean": 3e-4}})
            if (r.arm, r.test) == ("cached-c2", "kl")
            else r
            for r in records
        ]
        again = {(v.arm, v.check): v for v in judge(other)}
        assert again["cached-c2", "kl"].verdict == "fail"

    def test_where_nothing_was_computed_bits_are_compared(self, tmp_path: Path) -> None:
        _, found = judged(tmp_path, wrong_logits="--expert-cache 16 --expert-cache-policy hot")
        assert found["hot-c16", "bitwise"].verdict == "fail"

    def test_a_divergence_that_is_too_large_fails_the_run(self, tmp_path: Path) -> None:
        _, found = judged(tmp_path, wrong_logits="--expert-cache 8 --expert-cache-policy hot")
        assert found["hot-c8", "bitwise"].verdict == "not_run"
        with pytest.raises(TecError, match="hot-c8 kl: mean 5"):
            enforce(list(found.values()))


def test_locality_counts_lru_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocols = {"locality": {"tokens": 8, "threads": 1}}
    study = make_study(tmp_path, arms=ARMS)
    protocols = {**study.protocols.model_dump(exclude_none=True), **protocols}
    steps = make_steps(tmp_path, make_study(tmp_path, arms=ARMS, protocols=protocols))
    monkeypatch.setattr("tec.measure.input_folder", lambda *_: tmp_path)
    inputs = [type("Input", (), {"name": "text", "path": tmp_path / "text.jsonl"})]
    monkeypatch.setattr("tec.measure.write_inputs", lambda *_: inputs)
    plan = locality_plan(steps, tmp_path / "kept.jsonl")
    assert [step.arm for step in plan] == ["off", "cached-c2", "cached-c8", "cached-c16"]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return replay_records(slots=(2, 4, 8, 12), policies=("hot", "hybrid"))


@pytest.fixture(scope="module")
def arms(records: list[Record]) -> list[ArmSummary]:
    return summarise(records)


def table(arms: list[ArmSummary], records: list[Record], *verdicts: Verdict) -> dict[Any, Any]:
    rows = policies_table(arms, records, [verdicts]).rows
    return {(row["capacity"], row["policy"]): row for row in rows}


class TestTable:
    def test_every_capacity_has_every_policy(
        self, arms: list[ArmSummary], records: list[Record]
    ) -> None:
        policies = ("stock", "lru", "hot", "hybrid", "belady")
        wanted = [(slots, policy) for slots in (2, 4, 8, 12) for policy in policies]
        assert list(table(arms, records)) == [*wanted, (None, "resident")]

    def test_numbers_are_those_of_the_capacity_table(
        self, arms: list[ArmSummary], records: list[Record]
    ) -> None:
        found = table(arms, records)
        capacity = {row["arm"]: row for row in capacity_table(arms).rows}
        for (slots, policy), row in found.items():
            if policy in ("lru", "hot", "hybrid"):
                name = f"{'cached' if policy == 'lru' else policy}-c{slots}"
                assert row["arm"] == name
                for mine, its in (("tps", "tg_tps"), ("lo", "tg_tps_lo"), ("hit_rate", "hit_rate")):
                    assert row[mine] == capacity[name][its]
                assert row["against_stock"] == capacity[name]["speedup"]
                assert row["share_of_resident"] == capacity[name]["resident_share"]
        assert found[8, "stock"]["arm"] == capacity["cached-c8"]["baseline_arm"] == "ncmoe-c8"
        assert found[8, "lru"]["trace"] == "trace-64x2x4of16-p-1"
        assert found[None, "resident"]["share_of_resident"] == 1

    def test_beladys_line_is_the_bound_with_its_misses(
        self, arms: list[ArmSummary], records: list[Record]
    ) -> None:
        found = table(arms, records)
        lru = next(r for r in records if r.arm == "cached-c8").result
        misses = int(FEWEST * lru["misses"]) / lru["decode_tokens"]
        resident = found[None, "resident"]["tps"]
        line = found[8, "belady"]
        assert line["tps"] == pytest.approx(1 / (1 / resident + misses * EXPERT_BYTES / COPY))
        assert line["hit_rate"] == pytest.approx(1 - misses / (8 * N_LAYER))
        assert line["arm"] is line["against_stock"] is line["exact"] is None

    def test_without_a_resident_run_there_is_no_bound(self) -> None:
        runs = replay_records(policies=("hot",), resident=False)
        policies = {policy for _, policy in table(summarise(runs), runs)}
        assert policies == {"stock", "lru", "hot"}

    def test_exact_is_what_was_compared(
        self, arms: list[ArmSummary], records: list[Record]
    ) -> None:
        verdict = Verdict(
            row="toy", arm="cached-c8", check="bitwise", verdict="pass", detail="", evidence="gpu"
        )
        found = table(arms, records, verdict)
        assert found[8, "lru"]["exact"] == "bitwise"
        assert found[4, "lru"]["exact"] is None
        assert found[8, "hot"]["exact"] == found[8, "hybrid"]["exact"] == "no"
        failed = verdict.model_copy(update={"verdict": "fail", "batch": 2})
        assert table(arms, records, verdict, failed)[8, "lru"]["exact"] == "no"

    def test_no_ratio_that_was_not_measured_on_a_card(
        self, arms: list[ArmSummary], records: list[Record]
    ) -> None:
        functional = [replace(arm, evidence="functional") for arm in arms]
        rows = table(functional, records).values()
        assert {row["against_stock"] for row in rows} == {None}
        assert {row["evidence"] for row in rows} == {"functional"}

    def test_a_study_without_such_policies_has_no_table(self, records: list[Record]) -> None:
        assert has_policies([records])
        assert not has_policies([replay_records()])


def test_arms_of_the_cpu_are_no_part_of_headline_loss_and_main_table(
    arms: list[ArmSummary], records: list[Record]
) -> None:
    lru = [arm for arm in arms if not arm.computes_misses]
    only = [record for record in records if record.arm.split("-")[0] not in ("hot", "hybrid")]
    assert main_table(arms).rows == main_table(lru).rows
    assert main_table(arms).rows[0]["tec_arm"] == "cached-c8"
    assert loss_table(arms, records).rows == loss_table(lru, only).rows
    headline = headline_table(capacity_table(arms).rows, arms, [])
    assert headline.rows == headline_table(capacity_table(lru).rows, lru, []).rows
    hot = [arm for arm in arms if arm.policy != "lru"]
    assert main_table(hot).rows[0]["tec_arm"] is main_table(hot).rows[0]["speedup"] is None


def test_the_bound_of_copies_is_none_for_misses_that_are_not_copied(
    arms: list[ArmSummary],
) -> None:
    bounds = {row["arm"]: row["bound_tps"] for row in capacity_table(arms).rows}
    assert bounds["cached-c8"] is not None
    assert bounds["hot-c8"] is bounds["hybrid-c8"] is None


def test_hits_of_a_policy_that_goes_by_times_are_not_compared_exactly(
    records: list[Record],
) -> None:
    values = {record.arm: condense_alone(record).values for record in records}
    assert values["cached-c8"].hits is not None
    assert values["hot-c8"].routing is not None
    assert (values["hybrid-c8"].hits, values["hybrid-c8"].routing) == (None, None)
    assert values["hybrid-c8"].tg_tps is not None
