"""What of a history is shown: values in units for people, changes in words, a session once.

The page and the summary say the same of the same number because both take it from here.
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from tec.quantities import GIB, MIB
from tec.regression import ChangePoint, Metric, Point, Trend
from tec.table import digits

NO_SUBJECT = "subject not known here"
NO_COMMIT = "unknown"
EDITED = "-dirty"
"""At the end of a commit from which files differed."""

MINUS = "\N{MINUS SIGN}"


class Shown(NamedTuple):
    """How a metric is shown."""

    title: str
    unit: str
    better: Literal["more", "less", ""]
    digits: int
    """Significant; enough to tell any two values apart where they are compared exactly."""
    scale: float = 1
    """What a value is multiplied with to be in that unit."""
    timed: bool = False

    @property
    def axis(self) -> str:
        """The title of the axis: what, its unit, and which way is better."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title}{unit}" + (f", {self.better} is better" if self.better else "")

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def number(self, value: float) -> str:
        """Return a value in the unit; zeros at the end say nothing where values are exact."""
        scaled = value * self.scale
        text = digits(self.digits)(scaled)
        return text if self.timed else f"{float(text):.{self.digits}g}"


METRICS: Final[dict[Metric, Shown]] = {
    "hit_rate": Shown("hit rate", "%", "more", 8, 100),
    "victims": Shown("victims", "", "", 8),
    "bytes_moved": Shown("bytes moved", "MiB", "less", 10, 1 / MIB),
    "vram_bytes": Shown("VRAM", "GiB", "less", 8, 1 / GIB),
    "parity": Shown("parity", "", "more", 8),
    "tg_tps": Shown("decode", "tok/s", "more", 4, timed=True),
    "step_tps": Shown("median step", "1/s", "more", 4, timed=True),
    "pp_tps": Shown("prefill", "tok/s", "more", 4, timed=True),
}
"""In the order in which a page shows them."""


def in_order(trends: Sequence[Trend]) -> list[Trend]:
    """Return the trends that have a point: by kind, row, arm, protocol, metric and system."""
    metrics = list(METRICS)
    return sorted(
        (trend for trend in trends if trend.points),
        key=lambda t: (
            *(METRICS[t.metric].timed, t.row, _natural(t.arm), t.protocol),
            *(metrics.index(t.metric), t.system),
        ),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which `c32` comes before `c128`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def percent_change(ratio: float) -> str:
    """Return a ratio as a signed change in percent, with digits enough to show there is one."""
    change = 100 * (ratio - 1)
    size = next((d for d in (1, 2, 3, 4) if round(abs(change), d) > 0), 1)
    return f"{MINUS if change < 0 else '+'}{abs(change):.{size}f} %"


def change_verdict(
    change: ChangePoint, metric: Metric
) -> Literal["improved", "regressed", "changed"]:
    """Say what a change means for the metric."""
    better = METRICS[metric].better
    if not better or change.after == change.before:
        return "changed"
    return "improved" if (change.after > change.before) == (better == "more") else "regressed"


def change_text(change: ChangePoint, metric: Metric) -> str:
    """Return a change point in words."""
    shown = METRICS[metric]
    levels = f"{shown.number(change.before)} to {shown.text(change.after)}"
    return f"{change_verdict(change, metric)}: {levels} ({percent_change(change.ratio)})"


def short_commit(commit: str | None) -> str:
    """Return the first digits of a commit, and whether files differed from it."""
    if commit is None:
        return NO_COMMIT
    return commit.removesuffix(EDITED)[:10] + (EDITED if commit.endswith(EDITED) else "")


def system_name(trend: Trend) -> str:
    """Return what a reader knows a machine by: card, or processor, and driver; its fingerprint."""
    machine = trend.machine
    gpu = machine.get("gpus", "none")
    name = machine.get("cpu", "") if gpu == "none" else gpu.split(",")[0]
    driver = machine.get("driver", "none")
    words = [name, "" if driver == "none" else f"driver {driver}", trend.system]
    return ", ".join(word for word in words if word)


@dataclass
class _Runs:
    """Sessions of builds, each once, by the number under which series refer to it."""

    subjects: Mapping[str, str]
    source: str
    numbers: dict[tuple[str, str, str | None], int] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)

    def number(self, point: Point) -> int:
        key = (point.session, point.build, point.commit)
        if key not in self.numbers:
            self.numbers[key] = len(self.listed)
            self.listed.append(self._described(point))
        return self.numbers[key]

    def _described(self, point: Point) -> dict[str, Any]:
        commit = point.commit or NO_COMMIT
        return {
            "commit": commit,
            "short": short_commit(commit),
            "subject": self.subjects.get(commit.removesuffix(EDITED), NO_SUBJECT),
            "date": f"{point.started_at:%Y-%m-%d %H:%M}",
            "more": {
                "Session": point.session,
                "Build": point.build,
                "Its launches": f"grep {point.session} {shlex.quote(self.source)}",
            },
        }


def page_data(trends: Sequence[Trend], subjects: Mapping[str, str], source: str) -> dict[str, Any]:
    """Return what the page's script draws, as JSON types.

    `runs` has every session once; `series` hold columns: for every point its run's number, value,
    interval (None where it is the value itself) and processes. Values are in the unit of the axis.

    Args:
        trends: in the order in which they are shown.
        subjects: see `tec.commit_subjects`.
        source: the history's file, for the command that finds a session's lines in it.
    """
    runs = _Runs(subjects, source)
    series = [_series(trend, runs) for trend in trends]
    systems = {
        trend.system: {
            "name": system_name(trend),
            "text": ", ".join(f"{key} {value}" for key, value in trend.machine.items()),
        }
        for trend in trends
    }
    return {"runs": runs.listed, "systems": systems, "series": series}


def _series(trend: Trend, runs: _Runs) -> dict[str, Any]:
    shown = METRICS[trend.metric]

    def scaled(value: float) -> float:
        return float(f"{value * shown.scale:.{shown.digits + 1}g}")

    points = trend.points
    certain = [point.lo == point.hi for point in points]
    return {
        **{key: getattr(trend, key) for key in ("row", "arm", "protocol", "system", "metric")},
        "kind": "timed" if shown.timed else "counted",
        "functional": shown.timed and trend.evidence == "functional",
        "title": shown.title,
        "unit": shown.unit,
        "axis": shown.axis,
        "digits": shown.digits,
        "run": [runs.number(point) for point in points],
        "value": [scaled(point.value) for point in points],
        "lo": [None if c else scaled(p.lo) for p, c in zip(points, certain, strict=True)],
        "hi": [None if c else scaled(p.hi) for p, c in zip(points, certain, strict=True)],
        "n": [point.launches for point in points],
        "levels": [[begin, end, scaled(value)] for begin, end, value in _levels(trend)],
        "changes": [_change(change, trend.metric) for change in trend.change_points],
    }


def _levels(trend: Trend) -> list[tuple[int, int, float]]:
    """Return first point, point after the last, and level of every stretch without a change.

    Where values are exact they are the level themselves.
    """
    changes = trend.change_points
    if not METRICS[trend.metric].timed or len(trend.points) == 1:
        return []
    if not changes:
        return [(0, len(trend.points), statistics.median(p.value for p in trend.points))]
    bounds = [0, *(change.index for change in changes), len(trend.points)]
    values = [changes[0].before, *(change.after for change in changes)]
    return list(zip(bounds[:-1], bounds[1:], values, strict=True))


def _change(change: ChangePoint, metric: Metric) -> dict[str, Any]:
    return {
        "at": change.index,
        "rose": change.after > change.before,
        "verdict": change_verdict(change, metric),
        "percent": percent_change(change.ratio),
        "text": change_text(change, metric),
    }
