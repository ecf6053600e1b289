import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from history_launches import MACHINE, NEW, OLD, interleaved, launch, session
from tec import cli, regress
from tec.change_points import change_points
from tec.compare_history import compare_history
from tec.compare_paired import compare_paired, suspects
from tec.detection import centre, holm, predicted, rounds_needed, signed_rank, student_p
from tec.exact import Exact, compare_exact
from tec.history import HistoryRecord, Values, append
from tec.regression import EXIT_STATUS, Comparison, Finding, Metric
from tec.trends import median_interval, trend_of

RNG = np.random.default_rng(7)


def timed(cells: Sequence[Comparison]) -> list[Finding]:
    return [cell.finding for cell in cells if cell.metric == "tg_tps"]


@pytest.mark.parametrize(
    "logs", [(0.3, -0.1, 0.2, 0.5), (0.1, 0.1, -0.1, 0.2, 0.0, 0.3), (1.0,) * 7]
)
def test_signed_rank_is_exact(logs: tuple[float, ...]) -> None:
    values = [value for value in logs if value]
    size = np.abs(values)
    ranks = [(size < one).sum() + ((size == one).sum() + 1) / 2 for one in size]
    total = sum(ranks)
    seen = sum(rank for rank, value in zip(ranks, values, strict=True) if value > 0)
    all_sums = [
        sum(rank for rank, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((False, True), repeat=len(values))
    ]
    extreme = [one for one in all_sums if min(one, total - one) <= min(seen, total - seen)]
    assert signed_rank(logs) == pytest.approx(len(extreme) / len(all_sums))


def test_signed_rank_without_rounds_or_differences() -> None:
    assert signed_rank([]) == 1
    assert signed_rank([0.0, 0.0]) == 1


def test_holm_adjusts_by_rank_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_centre_is_not_moved_far_by_one_disturbed_round() -> None:
    assert centre([0.01] * 9 + [5.0]) == pytest.approx(0.01)


@pytest.mark.parametrize(("t", "degrees"), [(12.706, 1), (3.182, 3), (2.228, 10), (2.776, 4)])
def test_student_p_is_that_of_the_tables(t: float, degrees: int) -> None:
    assert student_p(t, degrees) == pytest.approx(0.05, abs=1e-4)


def test_rounds_needed_are_those_with_which_the_test_can_find_anything() -> None:
    for cells in (1, 8, 40):
        needed = rounds_needed(cells, 0.1)
        assert cells * signed_rank([1.0] * needed) <= 0.1
        assert cells * signed_rank([1.0] * (needed - 1)) > 0.1


def test_prediction_of_equal_sessions() -> None:
    assert predicted([1.0] * 5, 1.0)[0] == 1
    assert predicted([1.0] * 5, 1.1)[0] == 0


def test_median_interval_holds_its_level() -> None:
    values = list(range(20))
    lo, hi = median_interval([float(value) for value in values])
    assert (lo, hi) == (5, 14)
    assert median_interval([3.0]) == (3.0, 3.0)


def test_confirmed_slowdown_is_a_regression() -> None:
    rng = np.random.default_rng(1)
    screen, again = (interleaved(rng, 20, effect=-0.08) for _ in range(2))
    (cell,) = suspects(screen, OLD, NEW)
    assert cell.metric == "tg_tps"
    found = compare_paired(screen, again, OLD, NEW)[0]
    assert found.finding == "regressed"
    assert found.confirmed is True
    assert found.lo is not None
    assert found.hi is not None
    assert found.lo < math.exp(-0.08) < found.hi < 1


def test_suspicion_that_fresh_launches_do_not_confirm_is_no_change() -> None:
    rng = np.random.default_rng(1)
    screen = interleaved(rng, 20, effect=-0.08)
    found = compare_paired(screen, interleaved(rng, 20), OLD, NEW)[0]
    assert (found.finding, found.confirmed) == ("no change", False)
    faster = compare_paired(screen, interleaved(rng, 20, effect=0.08), OLD, NEW)[0]
    assert faster.finding == "no change"


def test_improvement_is_told_from_a_regression() -> None:
    rng = np.random.default_rng(2)
    pair = [interleaved(rng, 20, effect=0.1) for _ in range(2)]
    assert compare_paired(pair[0], pair[1], OLD, NEW)[0].finding == "improved"


def test_difference_within_the_noise_floor_is_no_change() -> None:
    """New is 1 % slower in every round; the old build's twin differs by 20 %, up and down."""
    launches = []
    for number in range(20):
        old = [100.0, 120.0 if number % 4 < 2 else 80.0]
        turn = [(NEW, 99.0), *((OLD, speed) for speed in (old, old[::-1])[number % 2])]
        launches += [
            launch(number, order=3 * number + order, build=build, values=Values(tg_tps=speed))
            for order, (build, speed) in enumerate(turn)
        ]
    cell = compare_paired(launches, None, OLD, NEW)[0]
    assert cell.ratio == pytest.approx(0.99)
    assert cell.p_adjusted is not None
    assert cell.p_adjusted < 0.01
    assert cell.noise is not None
    assert cell.noise > 0.05
    assert cell.finding == "no change"


@pytest.mark.parametrize("rounds", [1, 3])
def test_too_few_rounds_are_no_pass(rounds: int) -> None:
    cells = compare_paired(interleaved(RNG, rounds, effect=-0.5), [], OLD, NEW)
    assert timed(cells) == ["measured nothing"]
    assert "are needed to find anything" in cells[0].detail


def history(sessions: int, rng: np.random.Generator, **changes: Any) -> list[HistoryRecord]:
    speeds = 100 * np.exp(rng.normal(0, 0.01, (sessions, 3)))
    return [r for n in range(sessions) for r in session(n, [*map(float, speeds[n])], **changes)]


def test_new_session_after_its_history() -> None:
    rng = np.random.default_rng(3)
    past = history(12, rng)
    assert timed(compare_history(past, session(99, [100.0] * 3))) == ["no change"]
    slower = compare_history(past, session(99, [90.0] * 3))
    assert timed(slower) == ["regressed"]
    assert "--against" in slower[0].detail
    assert timed(compare_history(past, session(99, [110.0] * 3))) == ["improved"]


def test_history_counts_from_the_last_change_of_level_on() -> None:
    rng = np.random.default_rng(4)
    before = history(12, rng)
    after = [
        r for n in range(20, 32) for r in session(n, list(80 * np.exp(rng.normal(0, 0.01, 3))))
    ]
    assert timed(compare_history([*before, *after], session(99, [80.0] * 3))) == ["no change"]
    assert timed(compare_history([*before, *after], session(99, [100.0] * 3))) == ["improved"]


def test_short_history_is_no_pass() -> None:
    cells = compare_history(history(3, RNG), session(99, [100.0] * 3))
    assert timed(cells) == ["measured nothing"]
    assert "3 earlier sessions" in cells[0].detail


def test_one_round_is_compared_with_one_round_of_each_session() -> None:
    cells = compare_history(history(8, RNG), session(99, [100.0]))
    assert timed(cells) == ["no change"]


def test_another_driver_is_named_and_not_compared() -> None:
    past = history(6, RNG)
    new = session(99, [50.0] * 3, system="b" * 12, machine={**MACHINE, "driver": "590.2"})
    cells = compare_history(past, new)
    assert [cell.finding for cell in cells] == ["not comparable"]
    assert "another machine: driver 580.1 became 590.2" in cells[0].detail


def test_other_settings_are_not_compared() -> None:
    cells = compare_history(history(6, RNG), session(99, [50.0] * 3, settings="9" * 12))
    assert [cell.finding for cell in cells] == ["not comparable"]


def test_missing_arm_is_no_pass_unless_it_was_left_out() -> None:
    past = [*history(6, RNG), *session(5, [90.0] * 3, arm="off")]
    new = session(99, [100.0] * 3)
    assert "measured nothing" in timed(compare_history(past, new))
    assert timed(compare_history(past, new, whole=False)) == ["no change"]


def test_new_series_has_nothing_to_be_compared_with() -> None:
    assert compare_history([], session(0, [100.0])) == []


def exact(metric: Metric, old: dict[str, Any], new: dict[str, Any]) -> Exact | None:
    before, after = ([launch(n, values=Values(**one)) for n in range(2)] for one in (old, new))
    return compare_exact(before, after, metric)


COUNTS = {"hits": 80, "misses": 20, "tokens": "f" * 12, "routing": "e" * 12, "bytes_moved": 200}


@pytest.mark.parametrize(
    ("metric", "change", "finding"),
    [
        ("hit_rate", {}, "no change"),
        ("hit_rate", {"hits": 79, "misses": 21}, "regressed"),
        ("hit_rate", {"hits": 81, "misses": 19}, "improved"),
        ("victims", {}, "no change"),
        ("victims", {"routing": "a" * 12}, "regressed"),
        ("bytes_moved", {"bytes_moved": 201}, "regressed"),
        ("bytes_moved", {"bytes_moved": 199}, "improved"),
        ("hit_rate", {"hits": 70, "misses": 30, "tokens": "a" * 12}, "not comparable"),
        ("hit_rate", {"hits": None, "misses": None}, "measured nothing"),
    ],
)
def test_what_the_cache_decides_is_compared_exactly(
    metric: Metric, change: dict[str, Any], finding: Finding
) -> None:
    found = exact(metric, COUNTS, COUNTS | change)
    assert found is not None
    assert found.finding == finding


def test_launches_of_one_build_that_differ_are_no_reference() -> None:
    old = [launch(n, values=Values(**COUNTS | {"hits": 80 + n})) for n in range(2)]
    found = compare_exact(old, old[:1], "hit_rate")
    assert found is not None
    assert found.finding == "not comparable"


@pytest.mark.parametrize(
    ("more", "finding"), [(0, "no change"), (2**19, "no change"), (2**22, "regressed")]
)
def test_vram_may_differ_by_a_mebibyte(more: int, finding: Finding) -> None:
    found = exact("vram_bytes", {"vram_bytes": 2**30}, {"vram_bytes": 2**30 + more})
    assert found is not None
    assert found.finding == finding


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("pass", "fail", "regressed"),
        ("pass", "not_run", "regressed"),
        ("fail", "pass", "improved"),
        ("fail", "fail", "no change"),
    ],
)
def test_parity_is_compared_check_by_check(old: str, new: str, finding: Finding) -> None:
    found = exact("parity", {"parity": {"bitwise": old}}, {"parity": {"bitwise": new}})
    assert found is not None
    assert found.finding == finding
    assert "bitwise" in found.detail


def test_change_points_are_found_where_they_are() -> None:
    rng = np.random.default_rng(5)
    levels = np.repeat([0.0, -0.05, 0.02], 30)
    found = change_points(list(levels + rng.normal(0, 0.01, 90)))
    assert [index for index, _ in found] == [30, 60]
    assert change_points(list(rng.normal(0, 0.01, 90))) == []
    assert change_points([1.0] * 50) == []
    assert change_points([1.0, 2.0]) == []


def test_trend_has_a_point_a_session_and_the_commit_of_a_change() -> None:
    rng = np.random.default_rng(6)
    past = history(12, rng)
    past += [r for n in range(20, 32) for r in session(n, [80.0, 81.0, 79.0], commit="b" * 40)]
    trend = trend_of(past, "tg_tps")
    assert trend is not None
    assert len(trend.points) == 24
    assert [change.commit for change in trend.change_points] == ["b" * 40]
    assert trend.change_points[0].ratio == pytest.approx(0.8, abs=0.01)
    assert (trend.points[-1].lo, trend.points[-1].value, trend.points[-1].hi) == (79, 80, 81)
    assert trend_of(past, "vram_bytes") is None


def status_of(
    monkeypatch: pytest.MonkeyPatch, path: Path, new: Sequence[HistoryRecord], *words: str
) -> int:
    monkeypatch.setattr(regress, "read_launches", lambda files, commit: list(new))
    return cli.main(["regress", "runs.jsonl", "--history", str(path), *words])


def test_exit_status_is_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    new = session(99, [100.0] * 3)
    assert status_of(monkeypatch, path, new) == EXIT_STATUS["measured nothing"]
    assert "nothing to compare with" in capsys.readouterr().err
    append(path, history(12, np.random.default_rng(8)))
    assert status_of(monkeypatch, path, new) == 0
    assert status_of(monkeypatch, path, session(99, [90.0] * 3)) == EXIT_STATUS["regressed"]
    assert status_of(monkeypatch, path, session(99, [110.0] * 3)) == EXIT_STATUS["improved"]
    other = session(99, [90.0] * 3, system="b" * 12)
    assert status_of(monkeypatch, path, other) == EXIT_STATUS["not comparable"]
    assert status_of(monkeypatch, path, []) == EXIT_STATUS["measured nothing"]
    assert len(set(EXIT_STATUS.values()) | {1, 2}) == 7


def test_report_is_written_and_runs_are_appended_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, report = tmp_path / "history.jsonl", tmp_path / "report.json"
    new = session(99, [100.0] * 3)
    for _ in range(2):
        status_of(monkeypatch, path, new, "--append", "--json", str(report), "--status-zero")
    assert len(path.read_text().splitlines()) == 3
    assert '"mode": "history"' in report.read_text()


def test_runs_or_a_revision_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["regress"]) == 2
    assert "--against REV" in capsys.readouterr().err


def test_unknown_revision_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["regress", "--against", "no-such-revision"]) == 2
    assert "no revision 'no-such-revision'" in capsys.readouterr().err
