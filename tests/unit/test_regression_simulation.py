import json
from pathlib import Path

import numpy as np
import pytest

from history_launches import NEW, OLD, interleaved
from tec.detection import LEVEL
from tec.history import load
from tec.paths import ROOT
from tec.regression_simulation import (
    Noise,
    history_trial,
    long_series,
    noise_of,
    paired_trial,
    share,
)

LAUNCHES = ROOT / "benchmarks" / "regression" / "launches.jsonl"


@pytest.fixture(scope="module")
def noise() -> Noise:
    """That of the real launches, mean step: the heaviest tails there are."""
    return noise_of("real", load(LAUNCHES).records, "tg_tps", session=0.01)


def test_noise_is_that_of_the_launches() -> None:
    rng = np.random.default_rng(0)
    launches = [r for r in interleaved(rng, 300, spread=0.03) if r.build in (OLD, NEW)]
    found = noise_of("made", launches, "tg_tps", session=0.0)
    logs = rng.standard_t(3, 900) * 0.03
    assert found.spread == pytest.approx(np.std(logs), rel=0.3)
    assert np.median(np.abs(found.launches)) == pytest.approx(np.median(np.abs(logs)), rel=0.25)
    assert found.memory > 0.8


def test_too_few_rounds_give_no_noise() -> None:
    with pytest.raises(ValueError, match="3 rounds have two launches"):
        noise_of("made", interleaved(np.random.default_rng(0), 3), "tg_tps", session=0.0)


def test_false_alarms_stay_at_the_stated_rate(noise: Noise) -> None:
    """Of 300 reports without a change; more than 7 have a chance of 1 % at the stated rate."""
    rng = np.random.default_rng(11)
    outcomes = [paired_trial(rng, noise, cells=8, rounds=12, effect=0) for _ in range(300)]
    assert pytest.approx(0.01) == LEVEL
    assert sum(outcome.alarm for outcome in outcomes) <= 7
    assert sum(outcome.threshold_alarm for outcome in outcomes) > 200


def test_false_alarms_after_a_history_stay_at_the_stated_rate(noise: Noise) -> None:
    rng = np.random.default_rng(12)
    outcomes = [history_trial(rng, noise, 4, 8, 3, 0) for _ in range(300)]
    assert sum(outcome.alarm for outcome in outcomes) <= 7


def test_slowdown_of_three_percent_is_found_on_a_steady_machine(noise: Noise) -> None:
    steady = Noise("steady", tuple(value / 5 for value in noise.launches), 0.02, 0.9, 0.01)
    rng = np.random.default_rng(13)
    outcomes = [paired_trial(rng, steady, 8, 20, -0.03) for _ in range(15)]
    assert sum(outcome.found for outcome in outcomes) > 12


def test_series_changes_where_it_is_told_to(noise: Noise) -> None:
    series = long_series(np.random.default_rng(0), noise, 40, 5, effect=-1.0, at=20)
    assert min(series[:20]) > max(series[20:])


def test_interval_of_a_share_is_wilsons() -> None:
    rate, lo, hi = share([True] + [False] * 9)
    assert (rate, lo, hi) == pytest.approx((0.1, 0.0179, 0.4042), abs=1e-4)


def test_planted_slowdown_of_the_real_binary_was_found() -> None:
    """The report of `benchmarks/planted_slowdown.py`, kept as it came."""
    report = json.loads((LAUNCHES.parent / "planted.json").read_text())
    found = {cell["metric"]: cell for cell in report["comparisons"]}
    assert found["step_tps"]["finding"] == "regressed"
    assert found["step_tps"]["confirmed"] is True
    assert found["victims"]["finding"] == "no change"
    assert Path(LAUNCHES.parent / "detection.csv").is_file()
