"""The history page without a browser: what it says, and that no text of the history can run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from history_launches import launch
from long_history import HOSTILE, SYSTEM, commit_of, make_trend, make_trends, subjects_of
from tec.cli import main
from tec.history import Values
from tec.history_page import write_page
from tec.history_view import (
    METRICS,
    NO_SUBJECT,
    change_text,
    in_order,
    page_data,
    percent_change,
    system_name,
)
from tec.paths import REFERENCE
from tec.quantities import MIB
from tec.regression import TIMED, ChangePoint, Metric, Trend
from tec.trends import trend_of

SOURCE = "results/history.jsonl"


class Parts(HTMLParser):
    """The scripts, styles and other text of a page, as a browser takes them apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.inside: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(("", {}))

    def handle_data(self, data: str) -> None:
        self.inside.setdefault(self.tags[-1][0], []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(tmp_path: Path, trends: list[Trend], subjects: dict[str, str] | None = None) -> str:
    write_page(tmp_path / "history.html", trends, subjects or {}, SOURCE)
    return (tmp_path / "history.html").read_text(encoding="utf-8")


def drawn(trend: Trend) -> dict[str, Any]:
    series: dict[str, Any] = page_data([trend], {}, SOURCE)["series"][0]
    return series


def hostile() -> Trend:
    trend = make_trend("qwen", "cached-c32", "tg_tps", 20).model_dump()
    return Trend.model_validate({**trend, "row": HOSTILE, "machine": {"gpus": HOSTILE}})


def test_no_text_of_the_history_is_markup(tmp_path: Path) -> None:
    found = Parts(page(tmp_path, [hostile()], subjects_of(20)))
    assert len(found.attributes("script")) == 2
    assert not found.attributes("b")
    data = json.loads("".join(found.inside["script"][:1]))
    assert data["runs"][-1]["subject"] == HOSTILE
    assert data["series"][0]["row"] == HOSTILE
    assert HOSTILE in found.inside["a"]


def test_page_needs_nothing_and_allows_nothing(tmp_path: Path) -> None:
    html = page(tmp_path, make_trends(10))
    found = Parts(html)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert all("src" not in script for script in found.attributes("script"))
    assert [link["href"] for link in found.attributes("link")] == ["data:,"]
    (policy,) = [m["content"] for m in found.attributes("meta") if "http-equiv" in m]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    style, script = "".join(found.inside["style"]), found.inside["script"][-1]
    for text in (style, script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_same_history_gives_the_same_bytes(tmp_path: Path) -> None:
    assert page(tmp_path, make_trends(30)) == page(tmp_path, make_trends(30)[::-1])


def test_summary_has_every_series_without_scripts(tmp_path: Path) -> None:
    found = Parts(page(tmp_path, make_trends(10), subjects_of(10)))
    assert len([line for line in found.attributes("tr") if "data-series" in line]) == 12
    assert "93.11 %" in found.inside["td"]
    assert any(text.startswith("regressed: 161.0 to 160.0 tok/s") for text in found.inside["td"])


def test_an_empty_history_is_said(tmp_path: Path) -> None:
    empty = make_trend("qwen", "off", "tg_tps", 10).model_copy(update={"points": ()})
    assert "The history has no measured series yet." in page(tmp_path, [empty])


def test_a_session_stands_once_and_commits_have_their_subject() -> None:
    data = page_data(make_trends(7), {commit_of(2): "Copy less"}, SOURCE)
    assert len(data["runs"]) == 7
    assert [run["subject"] for run in data["runs"][1:4]] == [NO_SUBJECT, "Copy less", NO_SUBJECT]
    command = data["runs"][3]["more"]["Its launches"]
    assert command == "grep 000000000003 results/history.jsonl"
    assert all(series["run"] == list(range(7)) for series in data["series"])


def test_an_edited_commit_keeps_its_mark_and_its_subject() -> None:
    trend = make_trend("qwen", "off", "tg_tps", 10)
    edited = trend.points[0].model_copy(update={"commit": commit_of(2) + "-dirty"})
    unknown = trend.points[1].model_copy(update={"commit": None})
    trend = trend.model_copy(update={"points": (edited, unknown)})
    first, second = page_data([trend], {commit_of(2): "Copy less"}, SOURCE)["runs"]
    assert first["short"] == commit_of(2)[:10] + "-dirty"
    assert first["subject"] == "Copy less"
    assert second["short"] == "unknown"


def test_values_are_in_the_unit_of_the_axis() -> None:
    rate, moved = (
        drawn(make_trend("q", "off", metric, 5)) for metric in ("hit_rate", "bytes_moved")
    )
    assert (rate["value"][0], rate["axis"]) == (94.01, "hit rate (%), more is better")
    assert moved["value"][0] == pytest.approx(5.1e10 / 1024**2, rel=1e-9)
    assert moved["axis"] == "bytes moved (MiB), less is better"


def test_only_timed_series_have_levels_intervals_and_the_mark_of_a_cpu() -> None:
    timed = drawn(make_trend("q", "off", "tg_tps", 100, evidence="functional"))
    counted = drawn(make_trend("q", "off", "hit_rate", 100, evidence="functional"))
    bounds = [(begin, end) for begin, end, _ in timed["levels"]]
    assert bounds == [(0, 30), (30, 62), (62, 90), (90, 100)]
    assert timed["levels"][1][2] == 145.5
    assert all(lo < value for lo, value in zip(timed["lo"], timed["value"], strict=True))
    assert (timed["kind"], timed["functional"]) == ("timed", True)
    assert (counted["levels"], set(counted["lo"])) == ([], {None})
    assert (counted["kind"], counted["functional"]) == ("counted", False)


def test_one_level_where_nothing_changed() -> None:
    trend = make_trend("q", "off", "tg_tps", 9).model_copy(update={"change_points": ()})
    ((begin, end, level),) = drawn(trend)["levels"]
    assert (begin, end) == (0, 9)
    assert level == pytest.approx(sorted(drawn(trend)["value"])[4])


@pytest.mark.parametrize(
    ("metric", "before", "after", "text"),
    [
        ("tg_tps", 150.0, 145.5, "regressed: 150.0 to 145.5 tok/s (\N{MINUS SIGN}3.0 %)"),
        ("tg_tps", 100.0, 100.04, "improved: 100.0 to 100.0 tok/s (+0.04 %)"),
        ("hit_rate", 0.94, 0.940001, "improved: 94 to 94.0001 % (+0.0001 %)"),
        ("bytes_moved", 2.0**30, 2.0**31, "regressed: 1024 to 2048 MiB (+100.0 %)"),
        ("vram_bytes", 2.0**31, 2.0**30, "improved: 2 to 1 GiB (\N{MINUS SIGN}50.0 %)"),
        ("victims", 1.0, 2.0, "changed: 1 to 2 (+100.0 %)"),
    ],
)
def test_changes_in_words(metric: Metric, before: float, after: float, text: str) -> None:
    change = ChangePoint(
        index=3, commit=None, before=before, after=after, ratio=after / before, p=0
    )
    assert change_text(change, metric) == text


def test_no_change_in_percent_is_no_change() -> None:
    assert percent_change(1) == "+0.0 %"


def test_deterministic_series_come_first_and_in_a_fixed_order() -> None:
    order = in_order(make_trends(5)[::-1])
    metrics = [trend.metric for trend in order]
    assert metrics == ["hit_rate", "bytes_moved"] * 3 + ["tg_tps", "pp_tps"] * 3
    arms = [make_trend("q", arm, "tg_tps", 5) for arm in ("c128", "off", "c32")]
    assert [trend.arm for trend in in_order(arms)] == ["c32", "c128", "off"]


def test_every_metric_can_be_shown() -> None:
    assert set(METRICS) == set(get_args(Metric))
    assert {metric for metric, shown in METRICS.items() if shown.timed} == set(TIMED)


def test_system_is_described_once_and_named_by_its_card() -> None:
    described = {
        "name": f"NVIDIA H100 80GB HBM3, driver 580.159.04, {SYSTEM}",
        "text": "cpu Xeon, gpus NVIDIA H100 80GB HBM3, 85 GB, driver 580.159.04",
    }
    assert page_data(make_trends(3), {}, SOURCE)["systems"] == {SYSTEM: described}


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ({"cpu": "Xeon", "gpus": "none", "driver": "none"}, f"Xeon, {SYSTEM}"),
        ({}, SYSTEM),
    ],
)
def test_system_without_a_card(machine: dict[str, str], name: str) -> None:
    trend = make_trend("q", "off", "tg_tps", 5).model_copy(update={"machine": machine})
    assert system_name(trend) == name


def test_command_draws_measured_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = sorted(map(str, REFERENCE.glob("*/replicas/runs/*.replay.jsonl")))[:1]
    history, out = str(tmp_path / "history.jsonl"), tmp_path / "page.html"
    assert main(["history", "append", *runs, "--history", history, "--commit", "f" * 40]) == 0
    assert main(["history", "page", "--history", history, "--out", str(out)]) == 0
    found = Parts(out.read_text())
    assert "cached-c32" in found.inside["td"]
    assert NO_SUBJECT in "".join(found.inside["script"])
    capsys.readouterr()
    summary = tmp_path / "summary.md"
    assert main(["regress", *runs, "--history", history, "--markdown", str(summary)]) == 12
    assert summary.read_text().startswith("<!-- tec regress -->\n**Measured nothing")


def test_command_does_not_draw_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["history", "page", "--history", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "there is nothing to draw" in capsys.readouterr().err
    assert not out.exists()


def test_exact_metrics_change_where_they_differ_and_vram_beyond_a_drivers_own() -> None:
    rates = [(80, 20), (80, 20), (79, 21), (79, 21)]
    vram = [1000, 1001, 1001, 1003]
    launches = [
        launch(
            number,
            session=f"{number:012d}",
            values=Values(hits=hits, misses=misses, vram_bytes=used * MIB),
        )
        for number, ((hits, misses), used) in enumerate(zip(rates, vram, strict=True))
    ]
    changes = {
        metric: [(c.index, c.before, c.after) for c in trend.change_points]
        for metric in ("hit_rate", "vram_bytes")
        if (trend := trend_of(launches, metric))
    }
    assert changes == {
        "hit_rate": [(2, 0.8, 0.79)],
        "vram_bytes": [(3, 1001 * MIB, 1003 * MIB)],
    }
