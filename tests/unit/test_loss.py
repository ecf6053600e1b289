"""The time above the bound, taken apart on tokens whose cost is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from replay_results import replay_records
from tec.errors import TecError
from tec.loss import Tokens, divide, fit_arms, fit_line
from tec.loss_table import ALL, loss_table
from tec.records import Record
from tec.stats import COLD_STEPS, Floats
from tec.summary import summarise

N_STEP = 64
HIT_NS = 200_000.0
NS_PER_BYTE = 0.025  # 40 GB/s
BANDWIDTH = 50e9
EXPERT = 5_000_000


def resident() -> Floats:
    """A model that slows down as its context grows, after two slow steps."""
    times = 4e6 + 1e3 * np.arange(N_STEP)
    times[:2] += 1e7
    return np.asarray(times, dtype=np.float64)


def tokens(misses: Floats, cold_ns: float = 0.0, noise: float = 0.0) -> Tokens:
    """An arm that costs HIT_NS a token, NS_PER_BYTE a byte, and more in its first steps."""
    moved = misses * EXPERT
    times = resident() + HIT_NS + NS_PER_BYTE * moved
    times[:, :COLD_STEPS] += cold_ns
    times += noise * np.random.default_rng(1).standard_normal(times.shape)
    return Tokens(times, moved)


def misses(mean: float, seed: int = 0, rounds: int = 2) -> Floats:
    return np.random.default_rng(seed).poisson(mean, (rounds, N_STEP)).astype(np.float64)


def test_a_line_is_found_again_with_an_interval_around_it() -> None:
    noise = np.random.default_rng(3).standard_normal(2_000)
    x = np.linspace(0, 3e8, 2_000)
    line = fit_line(x, 7.0 + 2e-8 * x + noise)
    assert line is not None
    assert line.slope is not None
    assert line.intercept.value == pytest.approx(7.0, abs=0.2)
    assert line.slope.value == pytest.approx(2e-8, rel=0.02)
    assert line.intercept.lo < 7.0 < line.intercept.hi
    assert line.slope.lo < 2e-8 < line.slope.hi
    assert line.intercept.hi - line.intercept.lo == pytest.approx(4 * 1.96 / 2_000**0.5, rel=0.1)


def test_without_misses_there_is_an_intercept_and_no_slope() -> None:
    line = fit_line(np.zeros(4), np.array([1.0, 2.0, 3.0, 4.0]))
    assert line is not None
    assert line.intercept.value == pytest.approx(2.5)
    assert line.slope is None


def test_points_that_determine_no_line_give_none() -> None:
    assert fit_line(np.full(9, 5.0), np.arange(9.0)) is None
    assert fit_line(np.array([0.0, 1.0]), np.array([1.0, 2.0])) is None


def test_arms_give_the_cost_without_a_miss_and_that_of_a_byte() -> None:
    line = fit_arms([tokens(misses(60)), tokens(misses(6, 1)), tokens(misses(0))], resident())
    assert line is not None
    assert line.slope is not None
    assert line.intercept.value == pytest.approx(HIT_NS)
    assert line.slope.value == pytest.approx(NS_PER_BYTE)


def test_steps_at_which_the_graph_is_built_anew_do_not_bend_the_line() -> None:
    base, arm = resident(), tokens(misses(6))
    base[40] += 4e6
    arm.ns[:, 40] += 9e6
    line = fit_arms([arm, tokens(misses(30, 1))], base)
    assert line is not None
    assert line.intercept.value == pytest.approx(HIT_NS)


def test_without_a_resident_model_the_intercept_is_the_whole_time() -> None:
    line = fit_arms([tokens(misses(60)), tokens(misses(6, 1))], None)
    assert line is not None
    assert line.intercept.value == pytest.approx(HIT_NS + 4e6, rel=0.05)


def test_the_parts_of_a_loss_are_the_known_ones_and_sum_to_it() -> None:
    arms = [tokens(misses(60), cold_ns=3e6), tokens(misses(6, 1))]
    line = fit_arms(arms, resident())
    assert line is not None
    loss = divide(arms[0], resident(), BANDWIDTH, line)
    warm = (N_STEP - COLD_STEPS) / N_STEP
    moved = arms[0].missed_bytes.mean(axis=0)
    slower = NS_PER_BYTE - 1e9 / BANDWIDTH
    assert loss.hit == pytest.approx(HIT_NS * warm)
    assert loss.fill == pytest.approx(slower * moved[COLD_STEPS:].sum() / N_STEP)
    first = COLD_STEPS * (3e6 + HIT_NS) + slower * moved[:COLD_STEPS].sum()
    assert loss.cold == pytest.approx(first / N_STEP)
    assert loss.rest == pytest.approx(0, abs=1)
    assert loss.total == pytest.approx(loss.hit + loss.fill + loss.cold + loss.rest)


def test_an_arm_at_its_bound_has_lost_nothing() -> None:
    moved = misses(20) * EXPERT
    arm = Tokens(resident() + moved / BANDWIDTH * 1e9, moved)
    line = fit_arms([arm], resident())
    assert line is not None
    assert divide(arm, resident(), BANDWIDTH, line).total == pytest.approx(0, abs=1e-3)


def test_what_the_line_does_not_say_is_the_rest() -> None:
    arm, other = tokens(misses(60)), tokens(misses(6, 1))
    line = fit_arms([arm, other], resident())
    assert line is not None
    arm.ns[:, COLD_STEPS] += 64e6  # one step, after the cold start and before the steady state
    assert divide(arm, resident(), BANDWIDTH, line).rest == pytest.approx(1e6, rel=1e-6)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """A replay with 8 misses per token at 4 slots, 2 at 8 and none at 16, of 2 layers."""
    return replay_records()


def lines(records: list[Record]) -> dict[Any, Any]:
    return {row["arm"]: row for row in loss_table(summarise(records), records).rows}


def test_table_has_a_line_for_every_cached_arm_and_one_for_all(records: list[Record]) -> None:
    found = lines(records)
    assert list(found) == ["cached-c4", "cached-c8", "cached-c16", ALL]
    assert found["cached-c16"]["miss_us"] is None
    assert found[ALL]["loss_ms"] is None
    for name in ("cached-c4", "cached-c8", "cached-c16"):
        line = found[name]
        parts = sum(line[f"{part}_ms"] for part in ("hit", "fill", "cold", "rest"))
        assert parts == pytest.approx(line["loss_ms"])
        assert line["ms_per_token"] == pytest.approx(line["bound_ms"] + line["loss_ms"])


def test_table_states_known_costs_in_its_units(records: list[Record]) -> None:
    found = lines(records)[ALL]
    assert found["hit_us_layer"] == pytest.approx(100, rel=0.05)  # 200 us a token, 2 layers
    assert found["miss_us"] == pytest.approx(EXPERT * NS_PER_BYTE / 1e3, rel=0.02)
    assert found["copy_us"] == pytest.approx(100)
    assert (found["fill_gbs"], found["copy_gbs"]) == pytest.approx((40, 50), rel=0.02)
    assert found["fill_copy_share"] == pytest.approx(0.8, rel=0.02)


def test_without_a_resident_arm_there_is_no_loss_but_a_line(records: list[Record]) -> None:
    found = lines([record for record in records if not record.arm.startswith("resident")])
    assert found["cached-c4"]["loss_ms"] is found["cached-c4"]["bound_ms"] is None
    assert found[ALL]["hit_us_layer"] is None
    assert found[ALL]["all_hit_ms"] == pytest.approx(4.2, rel=0.05)
    assert found[ALL]["miss_us"] == pytest.approx(125, rel=0.02)


def test_arms_with_other_numbers_of_tokens_are_refused(records: list[Record]) -> None:
    short = [
        record.model_copy(update={"result": _cut(record)}) if record.arm == "cached-c8" else record
        for record in records
    ]
    with pytest.raises(TecError, match=r"63 and 64 tokens along one trace .*row toy"):
        loss_table(summarise(short), short)


def _cut(record: Record) -> dict[str, Any]:
    (prompt,) = record.result["prompts"]
    lists = ("tokens", "token_ns", "logits_hash", "logits_margin", "hits", "misses")
    return {**record.result, "prompts": [{**prompt, **{k: prompt[k][1:] for k in lists}}]}
