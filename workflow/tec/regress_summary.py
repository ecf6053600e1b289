"""A comparison as Markdown that a bot can post: the verdict first, then what changed.

Names come from outside and are posted with the bot's rights: they stand in code spans, where GitHub
reads neither mentions, nor references, nor HTML.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tec.history_view import METRICS, change_text, percent_change, short_commit
from tec.paths import ROOT
from tec.regression import LABELS, Comparison, Finding, Report, Side, Trend
from tec.table import EMPTY

TEMPLATES = ROOT / "workflow" / "report"
LIMIT = 65_000
"""Characters; GitHub refuses a comment of more than 65,536, and a bot may add a line of its own."""

_SHORTER = (10_000, 1000, 300, 100, 30, 10, 0)
"""Lines of each part, tried until all of them fit."""
_MOST_NAMES = 5
"""Builds, commits and paths that are named."""
_LONGEST = 400
"""Characters of a sentence or a name."""

_VERDICTS: Final[dict[Finding, str]] = {
    "regressed": "Regressed.",
    "measured nothing": "Measured nothing, which is no pass.",
    "not comparable": "Not comparable.",
    "improved": "Improved.",
    "no change": "No change.",
}
_SECTIONS: Final[dict[Finding, str]] = {
    "measured nothing": "Measured nothing",
    "not comparable": "Not comparable",
}
_PLAIN = re.compile(r"[\\`*_\[\]<>#!|~&@]")


class _Part(NamedTuple):
    """The lines of one part, and how many more there are."""

    lines: Sequence[Any]
    left_out: int
    title: str = ""


@dataclass(frozen=True)
class _Cell:
    """A comparison as it is printed."""

    comparison: Comparison

    def __getattr__(self, name: str) -> Any:
        return getattr(self.comparison, name)

    @property
    def metric(self) -> str:
        return LABELS[self.comparison.metric]

    @property
    def old(self) -> str:
        return self._value(self.comparison.old)

    @property
    def new(self) -> str:
        return self._value(self.comparison.new)

    @property
    def change(self) -> str:
        """The change in percent with its interval; in words where it is no number."""
        cell = self.comparison
        if cell.ratio is None or cell.ratio == 1:
            return plain(cell.detail)
        text = percent_change(cell.ratio)
        if cell.lo is None or cell.hi is None:
            return text
        return f"{text} [{percent_change(cell.lo)}, {percent_change(cell.hi)}]"

    @property
    def noise(self) -> str:
        noise = self.comparison.noise
        return EMPTY if noise is None else f"{100 * noise:.2f} %"

    @property
    def finding(self) -> str:
        """The finding, and whether a rerun agreed."""
        confirmed = {True: ", confirmed", False: ", not confirmed", None: ""}
        return self.comparison.finding + confirmed[self.comparison.confirmed]

    def _value(self, value: float | None) -> str:
        return EMPTY if value is None else METRICS[self.comparison.metric].text(value)


def markdown_summary(report: Report, records: Sequence[str]) -> str:
    """Return the report as Markdown of at most `LIMIT` characters.

    What is left out for length is counted where it is missing.

    Args:
        report: what was found.
        records: paths of the raw records and of the history, for the reader to look up.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (no HTML is made; `code` and `plain` keep it out)
    )
    environment.filters["code"] = code_span
    environment.filters["plain"] = plain
    template = environment.get_template("regress.md.j2")
    texts = (template.render(_content(report, records, most)) for most in _SHORTER)
    return next(text for text in texts if len(text) <= LIMIT)


def code_span(text: str) -> str:
    """Return text as code that also stays inside its cell of a table."""
    text = _one_line(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def plain(text: str) -> str:
    """Return text that is shown as it is, mentions and references without their effect."""
    escaped = _PLAIN.sub(lambda found: f"\\{found[0]}", _one_line(text))
    return re.sub(r"\\([@#])", "\\1\N{ZERO WIDTH SPACE}", escaped)


def _one_line(text: str) -> str:
    return textwrap.shorten(text, _LONGEST, placeholder=" ...") or "(empty)"


def _content(report: Report, records: Sequence[str], most: int) -> dict[str, Any]:
    """Return what the template shows, with at most so many lines in every part."""
    cells: dict[Finding, list[_Cell]] = {}
    for comparison in report.comparisons:
        cells.setdefault(comparison.finding, []).append(_Cell(comparison))
    changed = [*cells.get("regressed", []), *cells.get("improved", [])]
    return {
        "verdict": _VERDICTS[report.finding],
        "counts": _counts(report),
        "new": _side(report.new),
        "old": _side(report.old) if report.old else None,
        "method": _method(report),
        "changed": _part(changed, most),
        "sections": [_part(cells.get(kind, []), most, title) for kind, title in _SECTIONS.items()],
        "warnings": _part(report.warnings, most),
        "level": _latest_change(report.trends),
        "functional": any(
            cell.evidence == "functional" and METRICS[cell.metric].timed
            for cell in report.comparisons
        ),
        "records": [*records[:_MOST_NAMES], *(["..."] if len(records) > _MOST_NAMES else [])],
    }


def _part(lines: Sequence[Any], most: int, title: str = "") -> _Part:
    return _Part(lines[:most], max(0, len(lines) - most), title)


def _counts(report: Report) -> str:
    """Say how many cells have which finding, the worst first."""
    counted = Counter(comparison.finding for comparison in report.comparisons)
    named = [f"{counted[finding]} {finding}" for finding in _VERDICTS if counted[finding]]
    cells = len(report.comparisons)
    if not named:
        return "No cell was compared."
    return f"{cells} cell{'s' if cells > 1 else ''}: {', '.join(named)}."


def _method(report: Report) -> str:
    ways = {
        "paired": "Launches of both builds were interleaved and compared round by round",
        "history": "The new launches were compared with those of the history",
    }
    noise = [cell.noise for cell in report.comparisons if cell.noise is not None]
    floors = f" Noise floor: {_range(noise)}." if noise else ""
    chance = f"chance of a false alarm in all of this: {100 * report.level:.3g} %"
    return f"{ways[report.mode]}; {chance}.{floors}"


def _latest_change(trends: Sequence[Trend]) -> str | None:
    """Name the change of a level in the history that has the fewest runs after it."""
    changes = [
        (len(trend.points) - change.index, trend, change)
        for trend in trends
        for change in trend.change_points
    ]
    if not changes:
        return None
    runs, trend, change = min(changes, key=lambda found: found[0])
    names = ", ".join(map(code_span, (trend.row, trend.arm)))
    what = f"{names}, {LABELS[trend.metric]}, {change_text(change, trend.metric)}"
    at = code_span(short_commit(change.commit))
    return f"The history's latest change of a level is at commit {at}, {runs} runs ago: {what}."


def _range(shares: Sequence[float]) -> str:
    lo, hi = (f"{100 * end:.2f} %" for end in (min(shares), max(shares)))
    return lo if lo == hi else f"{lo} to {hi}"


def _side(side: Side) -> str:
    """Name what was measured: commits where they are known, builds otherwise, and how often."""
    names = [short_commit(commit) for commit in side.commits]
    what = "commit" if names else "build"
    names = names or list(side.builds)
    shown = ", ".join(code_span(name) for name in names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    times = f"{_number(side.launches, 'launch', 'es')} in {_number(side.sessions, 'session', 's')}"
    return f"{what}{'s' if len(names) > 1 else ''} {shown}, {times}" if names else times


def _number(count: int, what: str, plural: str) -> str:
    return f"{count} {what}{plural if count != 1 else ''}"
