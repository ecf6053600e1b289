"""Time the history page against the length of the history: `python benchmarks/history_page.py`.

Twelve series of made-up points. Seconds to make the page and its size; then, in a real browser
without a graphics card, the seconds until every chart on the screen is drawn, and the frames while
a chart is dragged to and fro: milliseconds from frame to frame, and of those what the browser
spent on script, style and layout. Needs Debian's chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tec.history_page import write_page
from tec.paths import ROOT

sys.path.insert(0, str(ROOT / "tests"))

from browser import Page, open_browser
from long_history import make_trends, subjects_of

RUNS = (100, 1_000, 10_000)
MOVES = 120
WORK = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
COUNT_FRAMES = """
window.frames_ms = [];
let last = performance.now();
const count = (now) => { frames_ms.push(now - last); last = now; requestAnimationFrame(count); };
requestAnimationFrame(count);
"""


def main() -> None:
    """Print a line per length of the history."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=RUNS[-1], help="points of a series at most")
    longest = parser.parse_args().longest
    print("points x series  make s   MB  shown s  frame ms: median   95 %    max  work ms a frame")
    for runs in (number for number in RUNS if number <= longest):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), runs)


def measure(folder: Path, runs: int) -> None:
    """Print the line of one length."""
    path = folder / "history.html"
    trends = make_trends(runs)
    start = time.perf_counter()
    write_page(path, trends, subjects_of(runs), "made up")
    made = time.perf_counter() - start
    with open_browser(folder / "profile") as page:
        page.size(1280, 900)
        start = time.perf_counter()
        page.open(path)
        shown = time.perf_counter() - start
        frames, work = drag(page)
    median, most, longest = np.percentile(frames, (50, 95, 100))
    megabytes = path.stat().st_size / 1e6
    print(
        f"{runs:>6} x {len(trends):<8} {made:>6.2f} {megabytes:>5.1f} {shown:>7.2f} "
        f"{median:>17.1f} {most:>6.1f} {longest:>6.1f} {work:>10.1f}"
    )


def drag(page: Page) -> tuple[list[float], float]:
    """Zoom a noisy chart to half of its points and drag it; return the frames' times and work."""
    chart = "document.querySelector('#timed .plot')"
    page.run(f"{chart}.scrollIntoView({{block: 'center'}}); {chart}.focus()")
    page.press("Home")
    page.press("+")
    left, width, y = page.run(
        f"(() => {{ const b = {chart}.getBoundingClientRect(); "
        "return [b.left, b.width, b.top + b.height / 2]; })()"
    )
    page.call("Performance.enable")
    page.mouse("mousePressed", left + 0.9 * width, y, held=True)
    page.run(COUNT_FRAMES)
    before = work_seconds(page)
    for share in path_of_the_hand():
        page.mouse("mouseMoved", left + share * width, y, held=True)
    frames: list[float] = page.run("frames_ms")
    work = work_seconds(page) - before
    page.mouse("mouseReleased", left + 0.9 * width, y)
    return frames[1:], 1e3 * work / len(frames)


def path_of_the_hand() -> Iterator[float]:
    """Yield places on the chart, as shares of its width: twice to the left and back."""
    yield from 0.5 + 0.4 * np.cos(np.linspace(0, 4 * np.pi, MOVES))


def work_seconds(page: Page) -> float:
    """Return the seconds that the page has taken of the browser so far."""
    metrics = page.call("Performance.getMetrics")["metrics"]
    return sum(float(metric["value"]) for metric in metrics if metric["name"] in WORK)


if __name__ == "__main__":
    main()
