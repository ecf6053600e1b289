from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from history_launches import NEW, OLD, session
from long_history import commit_of, make_trend
from tec.history import History
from tec.regress import after_history
from tec.regress_summary import LIMIT, code_span, markdown_summary, plain
from tec.regression import Comparison, Finding, Report, Side

HOSTILE = "a|b`c``d </script> @someone #1 **x**\n| new | line |"
RECORDS = ("results/history.jsonl", "results/demo/runs")


def side(**changes: Any) -> Side:
    values = {"builds": ("0" * 12,), "commits": ("f" * 40,), "launches": 10, "sessions": 2}
    return Side.model_validate({**values, **changes})


def cell(finding: Finding = "no change", **changes: Any) -> Comparison:
    values = {
        "row": "qwen3",
        "arm": "cached-c32",
        "protocol": "replay",
        "system": "0" * 12,
        "evidence": "gpu",
        "metric": "tg_tps",
        "finding": finding,
        "old": 150.0,
        "new": 145.5,
        "ratio": 0.97,
        "lo": 0.964,
        "hi": 0.976,
        "noise": 0.0042,
        "p": 0.0001,
        "p_adjusted": 0.002,
        "confirmed": None,
        "old_launches": 10,
        "new_launches": 5,
        "detail": "below the noise floor",
    }
    return Comparison.model_validate({**values, **changes})


def report(*cells: Comparison, **changes: Any) -> Report:
    values = {
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "mode": "paired",
        "level": 0.05,
        "new": side(),
        "old": side(commits=("e" * 40,)),
        "comparisons": cells,
        "trends": (),
        "warnings": (),
    }
    return Report.model_validate({**values, **changes})


def summary(*cells: Comparison, **changes: Any) -> str:
    return markdown_summary(report(*cells, **changes), RECORDS)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        ("regressed", "**Regressed.** 2 cells: 2 regressed."),
        ("improved", "**Improved.** 2 cells: 2 improved."),
        ("no change", "**No change.** 2 cells: 2 no change."),
        ("not comparable", "**Not comparable.** 2 cells: 2 not comparable."),
        ("measured nothing", "**Measured nothing, which is no pass.** 2 cells: 2 measured"),
    ],
)
def test_verdict_comes_first(finding: Finding, words: str) -> None:
    marker, verdict = lines(summary(cell(finding), cell(finding)))[:2]
    assert marker == "<!-- tec regress -->"
    assert verdict.startswith(words)


def test_a_regression_outweighs_the_rest() -> None:
    text = summary(cell(), cell("improved"), cell("regressed"), cell("not comparable"))
    counts = "4 cells: 1 regressed, 1 not comparable, 1 improved, 1 no change."
    assert f"**Regressed.** {counts}" in text


def test_nothing_compared_is_measured_nothing() -> None:
    assert "**Measured nothing, which is no pass.** No cell was compared." in summary(old=None)


def test_nothing_changed_is_short() -> None:
    text = summary(*[cell(noise=n / 1000) for n in range(1, 200)])
    assert len(text) < 700
    assert "Noise floor: 0.10 % to 19.90 %." in text
    assert "|" not in text


def test_changed_cells_stand_with_interval_and_noise_floor() -> None:
    moved = cell(
        "improved",
        metric="bytes_moved",
        old=2.0**31,
        new=2.0**30,
        ratio=0.5,
        lo=None,
        hi=None,
        noise=None,
    )
    table = [
        line
        for line in lines(summary(moved, cell(), cell("regressed", confirmed=True)))
        if line.startswith("|")
    ]
    assert table[2:] == [
        "| `qwen3` | `cached-c32` | replay | decode tok/s | 150.0 tok/s | 145.5 tok/s "
        "| \N{MINUS SIGN}3.0 % [\N{MINUS SIGN}3.6 %, \N{MINUS SIGN}2.4 %] | 0.42 % "
        "| regressed, confirmed |",
        "| `qwen3` | `cached-c32` | replay | bytes moved | 2048 MiB | 1024 MiB "
        "| \N{MINUS SIGN}50.0 % | \N{EN DASH} | improved |",
    ]


def test_a_change_that_is_no_number_is_said_in_words() -> None:
    none = dict.fromkeys(("old", "new", "ratio", "lo", "hi", "noise"))
    text = summary(cell("regressed", metric="parity", detail="greedy: pass became fail", **none))
    dash = "\N{EN DASH}"
    assert f"| parity | {dash} | {dash} | greedy: pass became fail | {dash} | regressed |" in text


def test_what_was_not_compared_has_its_reason() -> None:
    text = summary(
        cell("not comparable", detail="another driver: 580 was 570"),
        cell("measured nothing", arm="off", detail="no launch of this arm"),
    )
    assert "Not comparable:\n\n* `qwen3`, `cached-c32`, replay, decode tok/s: another" in text
    assert "`off`, replay, decode tok/s: no launch of this arm" in text


def test_sides_method_records_and_warnings_are_named() -> None:
    text = summary(cell(), warnings=("the clock went backwards",))
    assert (
        "\n\nNew: commit `ffffffffff`, 10 launches in 2 sessions. Old: commit `eeeeeeeeee`" in text
    )
    assert "\n\nLaunches of both" in text
    assert "compared round by round; chance of a false alarm in all of this: 5 %." in text
    assert "Raw records: `results/history.jsonl`, `results/demo/runs`" in text
    assert "* the clock went backwards" in text


def test_many_builds_are_counted() -> None:
    many = side(commits=(), builds=tuple(f"{n:012x}" for n in range(9)))
    text = summary(cell(), mode="history", old=many)
    assert "Old: builds `000000000000`, " in text
    assert "`000000000004` and 4 more, 10 launches" in text


def test_only_times_of_a_cpu_are_marked() -> None:
    assert "no evidence of speed" in summary(cell(evidence="functional"))
    counted = cell(evidence="functional", metric="hit_rate", old=0.9, new=0.9)
    assert "no evidence of speed" not in summary(counted)


def test_a_long_report_says_what_it_leaves_out() -> None:
    cells = [cell("regressed", row=f"row-{n}") for n in range(3000)]
    text = summary(*cells, warnings=tuple(f"warning {n}" for n in range(3000)))
    assert 5_000 < len(text) <= LIMIT < 65_536
    assert "2700 more changed cells are left out" in text
    assert "and 2700 more, left out here for length" in text


def test_names_cannot_leave_their_cell_or_notify_anybody() -> None:
    text = summary(cell("regressed", row=HOSTILE), cell("not comparable", detail=HOSTILE))
    (line,) = [line for line in lines(text) if line.startswith("| ```")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 10
    (detail,) = [line for line in lines(text) if line.startswith("* ")]
    assert "@someone" not in detail
    assert "</script>" not in detail.replace("\\", "") or "\\<" in detail


@pytest.mark.parametrize(
    ("text", "code"),
    [("a", "`a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("a|b", "`a\\|b`"), ("", "`(empty)`")],
)
def test_code_spans(text: str, code: str) -> None:
    assert code_span(text) == code


def test_plain_text_has_no_effect() -> None:
    assert plain("@me #1 <b> a_b\nc") == "@\u200bme #\u200b1 \\<b\\> a\\_b c"


def test_the_latest_change_of_a_level_is_named() -> None:
    trend = make_trend("qwen", "cached-c32", "tg_tps", 100)
    text = summary(cell(), trends=(trend, make_trend("other", "off", "pp_tps", 200)))
    assert (
        f"latest change of a level is at commit `{commit_of(90)[:10]}`, 10 runs ago: `qwen`, "
        "`cached-c32`, decode tok/s, regressed: 161.0 to 160.0 tok/s" in text
    )


def test_what_a_comparison_with_a_history_found_is_said() -> None:
    speeds = (100.0, 101.0, 99.0, 100.5, 99.5)
    past = [one for n in range(20) for one in session(n, [v + n % 3 for v in speeds], build=OLD)]
    new = session(30, [v * 0.9 for v in speeds], build=NEW)
    history = History(Path("history.jsonl"), tuple(past), ())
    text = markdown_summary(after_history(history, new, True, "all"), RECORDS)
    assert "**Regressed.** 1 cell: 1 regressed." in text
    (line,) = [line for line in lines(text) if line.startswith("| `toy`")]
    assert "| decode tok/s | 101.0 tok/s | 90.00 tok/s | \N{MINUS SIGN}10." in line
    assert "The new launches were compared with those of the history" in text
