import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tec.stats import COLD_STEPS, cold_tps, decode_steps, latency_curve, paired_ratio, steady_tps


def result(*prompts_ms: list[float]) -> dict[str, object]:
    """Return an expert-bench result whose decode steps take these times."""
    return {"prompts": [{"token_ns": [0, *(int(t * 1e6) for t in p)]} for p in prompts_ms]}


def test_ratio_is_the_geometric_mean_of_paired_rounds() -> None:
    ratio = paired_ratio({0: 2.0, 1: 8.0, 2: 99.0}, {0: 1.0, 1: 2.0, 7: 1.0})
    assert ratio.value == pytest.approx(8**0.5)
    assert ratio.n == 2


def test_drift_common_to_both_arms_cancels() -> None:
    drift = {r: 100.0 * 0.7**r for r in range(5)}
    ratio = paired_ratio({r: 1.1 * v for r, v in drift.items()}, drift)
    assert (ratio.value, ratio.lo, ratio.hi) == pytest.approx((1.1, 1.1, 1.1))


def test_one_round_has_no_interval() -> None:
    ratio = paired_ratio({0: 3.0}, {0: 2.0})
    assert (ratio.value, ratio.lo, ratio.hi, ratio.n) == (1.5, None, None, 1)


def test_no_common_round_is_an_error() -> None:
    with pytest.raises(ValueError, match="round"):
        paired_ratio({0: 1.0}, {1: 1.0})


values = st.lists(st.floats(0.1, 100), min_size=2, max_size=8)


@given(values)
def test_interval_holds_the_estimate_and_repeats(numbers: list[float]) -> None:
    numerator, denominator = dict(enumerate(numbers)), dict.fromkeys(range(len(numbers)), 1.0)
    ratio = paired_ratio(numerator, denominator)
    assert ratio.lo is not None
    assert ratio.hi is not None
    assert min(numbers) * 0.999 <= ratio.lo <= ratio.value * 1.001
    assert ratio.value * 0.999 <= ratio.hi <= max(numbers) * 1.001
    assert paired_ratio(numerator, denominator) == ratio


@given(values)
def test_swapping_the_arms_inverts_the_ratio(numbers: list[float]) -> None:
    one, other = dict(enumerate(numbers)), dict.fromkeys(range(len(numbers)), 2.0)
    assert paired_ratio(one, other).value * paired_ratio(other, one).value == pytest.approx(1)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sample = np.exp(generator.normal(np.log(1.2), 0.1, 20))
        ratio = paired_ratio(dict(enumerate(sample)), dict.fromkeys(range(20), 1.0))
        covered += (ratio.lo or 0) <= 1.2 <= (ratio.hi or 0)
    assert 0.86 <= covered / 200 <= 0.99


def test_cold_and_steady_state_are_apart() -> None:
    run = result([10.0] * COLD_STEPS + [1.0] * 14, [2.0] * 30)
    assert cold_tps(run) == pytest.approx(100)
    assert steady_tps(run) == pytest.approx(500)


def test_latency_curve_leaves_out_each_prompts_first_token() -> None:
    curve = latency_curve([result([4.0, 2.0], [1.0]), result([6.0, 2.0], [3.0])])
    assert curve.step.tolist() == [0, 1, 2]
    assert curve.median_ms.tolist() == [5.0, 2.0, 2.0]
    assert (curve.lo_ms.tolist(), curve.hi_ms.tolist()) == ([4.0, 2.0, 1.0], [6.0, 2.0, 3.0])


def test_with_given_tokens_the_first_is_a_decode_step_too() -> None:
    run = {"forced": True, "prompts": [{"token_ns": [8_000_000, 1_000_000], "hits": [3, 4]}]}
    assert latency_curve([run]).median_ms.tolist() == [8.0, 1.0]
    assert cold_tps(run) == pytest.approx(2 / 9e-3)
    assert decode_steps(run, "hits") == [3, 4]
    assert decode_steps({**run, "forced": False}, "hits") == [4]
