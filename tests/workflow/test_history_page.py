"""The history page in a real browser: a thousand points a series, keyboard, phone, dark, print."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Page, open_browser
from long_history import HOSTILE, commit_of, make_trends, subjects_of
from tec.history_page import write_page
from tec.paths import ROOT

RUNS = 1000
TIMED = "#timed .plot"
"""The first noisy chart: decoding, of arm cached-c32."""

CONTRAST = {"ink": 4.5, "faint": 4.5, "improved": 4.5, "regressed": 4.5, "line": 3, "focus": 3}
"""Of text and of what is drawn, with the ground: WCAG 2.2, criteria 1.4.3 and 1.4.11."""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "history.html"
    write_page(path, make_trends(RUNS), subjects_of(RUNS), "results/history.jsonl")
    return path


@pytest.fixture
def page(browser: Page, html: Path) -> Iterator[Page]:
    """The page on a desktop's screen, as it is when it was just opened."""
    browser.complaints.clear()
    browser.size(1280, 900)
    browser.scheme("light")
    browser.open(html)
    yield browser
    assert browser.complaints == []


def look(page: Page, selector: str, what: str) -> Any:
    return page.run(f"document.querySelector({selector!r}).{what}")


def show(page: Page, selector: str = TIMED) -> None:
    look(page, selector, "scrollIntoView({block: 'center'})")
    page.settle()


def focus(page: Page) -> None:
    show(page)
    look(page, TIMED, "focus()")


def vertices(page: Page) -> list[tuple[float, float]]:
    """Return the corners of the noisy chart's line, in pixels of the chart."""
    path: str = look(page, f"{TIMED} .line", "getAttribute('d')")
    corners, x = [], 0.0
    for letter, numbers in re.findall(r"([MLHV])([\d. -]+)", path):
        values = [float(number) for number in numbers.split()]
        if letter == "V":
            corners.append((x, values[0]))
        else:
            x = values[0]
            corners.append((x, values[1]))
    return corners


def said(page: Page) -> str:
    return str(look(page, TIMED, "getAttribute('aria-valuetext')"))


def at(page: Page) -> int:
    return int(look(page, TIMED, "getAttribute('aria-valuenow')"))


def middle(page: Page) -> tuple[float, float, float]:
    """Return left edge, width and middle height of the noisy chart on the screen."""
    left, top, width, height = page.run(
        f"(({{left, top, width, height}}) => [left, top, width, height])"
        f"(document.querySelector({TIMED!r}).getBoundingClientRect())"
    )
    return left, width, top + height / 2


def test_a_thousand_points_are_drawn_within_the_width_of_the_chart(page: Page) -> None:
    show(page)
    corners = vertices(page)
    width = look(page, TIMED, "clientWidth")
    assert 300 < len({x for x, _ in corners}) <= width
    assert all(0 <= x <= width for x, _ in corners)
    heights = [y for _, y in corners]
    assert max(heights) - min(heights) > 80
    assert look(page, f"{TIMED} .band", "getAttribute('d').length") > 1000
    assert look(page, f"{TIMED} .changes", "childElementCount") == 3
    assert "runs 1 to 1000 of 1000" in look(page, f"{TIMED} .texts", "textContent")


def test_charts_far_below_wait_until_they_are_seen(page: Page) -> None:
    count = "[...document.querySelectorAll('.plot .axis')].filter(a => a.hasAttribute('d')).length"
    assert 0 < page.run(count) < 12
    page.run("scrollTo(0, document.body.scrollHeight)")
    page.settle()
    assert look(page, "#s11 .axis", "hasAttribute('d')")


def test_arrows_step_and_enter_opens_the_details(page: Page) -> None:
    focus(page)
    assert at(page) == RUNS
    page.press("ArrowLeft", 3)
    assert at(page) == RUNS - 3
    assert f"commit {commit_of(RUNS - 4)[:10]}: Change number {RUNS - 4}" in said(page)
    page.press("Enter")
    text = look(page, "#details", "innerText")
    assert look(page, "#details", "open")
    assert commit_of(RUNS - 4) in text
    assert f"{RUNS - 4:012x}" in text
    page.press("Escape")
    assert not look(page, "#details", "open")
    assert page.run(f"document.activeElement === document.querySelector({TIMED!r})")


def test_keys_reach_changes_ends_and_both_ways(page: Page) -> None:
    focus(page)
    page.press("Home")
    assert at(page) == 1
    page.press("n")
    assert at(page) == 301
    assert "change: regressed: 150.0 to 145.5 tok/s" in said(page)
    page.press("n", 5)
    page.press("p")
    assert at(page) == 621
    page.press("PageDown")
    assert at(page) == 631
    page.press("End")
    page.press("ArrowRight")
    assert at(page) == RUNS


def test_zoomed_in_every_point_has_its_mark_and_follows_the_keys(page: Page) -> None:
    focus(page)
    page.press("+", 5)
    dots = look(page, f"{TIMED} .dots", "getAttribute('d')")
    whiskers = look(page, f"{TIMED} .whiskers", "getAttribute('d')")
    window = look(page, f"{TIMED} .texts", "lastElementChild.textContent")
    first, last = map(int, re.findall(r"\d+", window)[:2])
    assert last == RUNS
    assert dots.count("M") == last - first + 1 < 40
    assert whiskers.count("M") == 3 * dots.count("M")
    page.press("Home")
    assert "runs 1 to" in look(page, f"{TIMED} .texts", "lastElementChild.textContent")
    page.press("0")
    assert "runs 1 to 1000" in look(page, f"{TIMED} .texts", "lastElementChild.textContent")


def test_tab_goes_to_filters_then_charts_and_shows_where(page: Page) -> None:
    order = []
    for _ in range(6):
        page.press("Tab")
        order.append(page.run("document.activeElement.name || document.activeElement.className"))
    assert order[:5] == ["skip", "arm", "metric", "changes", "plot"]
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("Zoom out")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_every_control_has_a_name_and_charts_say_what_they_are(page: Page) -> None:
    nameless = page.run(
        "[...document.querySelectorAll('button, select, input, [tabindex=\"0\"]')].filter(e => "
        "!(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || "
        "e.labels?.length || e.textContent.trim())).length"
    )
    assert nameless == 0
    assert look(page, TIMED, "getAttribute('role')") == "slider"
    label = look(page, TIMED, "getAttribute('aria-label')")
    assert label == "qwen3-30b-a3b-q8_0 · cached-c32 · decode"
    assert "interval" in said(page)


def test_mouse_drags_when_zoomed_and_chooses(page: Page) -> None:
    focus(page)
    page.press("+", 3)
    left, width, y = middle(page)
    before = look(page, f"{TIMED} .texts", "lastElementChild.textContent")
    page.mouse("mousePressed", left + 0.3 * width, y, held=True)
    page.mouse("mouseMoved", left + 0.8 * width, y, held=True)
    page.mouse("mouseReleased", left + 0.8 * width, y)
    page.settle()
    assert look(page, f"{TIMED} .texts", "lastElementChild.textContent") != before
    page.mouse("mouseMoved", left + 0.5 * width, y)
    chosen = at(page)
    page.mouse("mouseMoved", left + 0.6 * width, y)
    assert chosen < at(page) < RUNS


def test_filters_choose_series_and_the_address_keeps_them(page: Page, html: Path) -> None:
    cards, lines = (
        f"[...document.querySelectorAll('{one}')].filter(e => e.checkVisibility()).length"
        for one in (".card", "#summary tbody tr")
    )
    assert page.run(cards) == 12
    page.run(
        "(() => { const s = document.querySelector('select[name=metric]'); s.value = 'hit_rate';"
        "s.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    assert (page.run(cards), page.run(lines)) == (3, 3)
    assert look(page, "#shown", "textContent") == "3 of 12 series shown."
    assert not look(page, "#timed", "checkVisibility()")
    assert page.run("location.hash") == "#metric=hit_rate"
    page.open(html, "#arm=ncmoe-99&metric=tg_tps")
    assert page.run(cards) == 1
    page.open(html, "#arm=</script>")
    assert page.run(cards) == 12


def test_table_has_every_point_newest_first(page: Page) -> None:
    toggle = "#timed .card .tools button:last-child"
    show(page, toggle)
    look(page, toggle, "click()")
    assert look(page, toggle, "getAttribute('aria-expanded')") == "true"
    lines = page.run("document.querySelectorAll('#timed .card:first-child tbody tr').length")
    assert lines == RUNS
    assert HOSTILE.split()[0] in look(page, "#timed tbody tr", "textContent")
    look(page, toggle, "click()")
    assert look(page, "#timed .wide", "hidden")


def test_a_hostile_subject_stays_text(page: Page) -> None:
    focus(page)
    page.press("Enter")
    assert HOSTILE in look(page, "#details", "textContent")
    assert page.run("document.title") == "TEC: history of measurements"
    assert page.run("document.querySelectorAll('#details b').length") == 0
    page.press("Escape")


def test_phone_has_no_sideways_scrolling_and_a_finger_steps_and_pans(
    page: Page, html: Path
) -> None:
    page.size(360, 740, scale=2, touch=True)
    page.open(html)
    assert page.run("document.documentElement.scrollWidth") == 360
    show(page)
    look(page, "#timed .card .tools button:last-child", "click()")
    assert page.run("document.documentElement.scrollWidth") == 360
    small = page.run(
        "[...document.querySelectorAll('button, select')].filter(b => b.checkVisibility() && "
        "Math.min(b.offsetWidth, b.offsetHeight) < 40).length"
    )
    assert small == 0
    show(page)
    left, width, y = middle(page)
    page.touch("touchStart", (left + 0.4 * width, y))
    page.touch("touchEnd")
    page.settle()
    assert 100 < at(page) < 500
    page.touch("touchStart", (left + 0.4 * width, y))
    for share in (0.5, 0.6, 0.7):
        page.touch("touchMove", (left + share * width, y))
    page.touch("touchEnd")
    page.settle()
    assert 500 < at(page) < 900
    page.touch("touchStart", (left + 0.3 * width, y), (left + 0.6 * width, y))
    page.touch("touchMove", (left + 0.1 * width, y), (left + 0.9 * width, y))
    page.touch("touchEnd")
    page.settle()
    window = look(page, f"{TIMED} .texts", "lastElementChild.textContent")
    first, last = map(int, re.findall(r"\d+", window)[:2])
    assert last - first < 700


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Page, scheme: str) -> None:
    page.scheme(scheme)

    def luminance(name: str) -> float:
        rgb = page.run(
            "(() => { const e = document.createElement('i'); document.body.append(e); "
            f"e.style.color = 'var(--{name})'; const c = getComputedStyle(e).color; e.remove(); "
            "return c.match(/[\\d.]+/g).slice(0, 3).map(Number); })()"
        )
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])

    for ground in ("ground", "card"):
        for ink, least in CONTRAST.items():
            pair = sorted((luminance(ink), luminance(ground)))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (ink, ground)


def test_print_has_every_chart_and_no_controls(page: Page, tmp_path: Path) -> None:
    page.print(tmp_path / "history.pdf")
    assert (tmp_path / "history.pdf").read_bytes().startswith(b"%PDF")
    drawn = "[...document.querySelectorAll('.plot .line')].filter(a => a.getAttribute('d')).length"
    assert page.run(drawn) == 12
    page.call("Emulation.setEmulatedMedia", media="print")
    assert not look(page, ".tools", "checkVisibility()")
    assert look(page, "#summary", "checkVisibility()")
    page.call("Emulation.setEmulatedMedia", media="")


def test_benchmark_prints_the_frames() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "history_page.py"), "--longest", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heads, numbers = done.stdout.splitlines()
    assert "frame ms: median" in heads
    assert numbers.split()[:3] == ["100", "x", "12"]
    assert len(numbers.split()) == 10
