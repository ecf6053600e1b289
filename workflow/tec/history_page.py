"""The history as one HTML file that needs nothing else.

Template, style and scripts are in `workflow/report/history`. The page's content security policy
names the hashes of its own style and script and allows nothing else: no text of the history can
run, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tec.files import write_atomically
from tec.history_view import METRICS, change_text, in_order, page_data
from tec.paths import ROOT
from tec.regression import Trend

TEMPLATES = ROOT / "workflow" / "report" / "history"
SCRIPTS = ("chart.js", "cards.js", "page.js")


class _Kind(NamedTuple):
    key: str
    title: str
    about: str


_KINDS: Final = (
    _Kind(
        "counted",
        "Deterministic",
        "The same in every process on a fixed input, so compared exactly: any difference counts.",
    ),
    _Kind(
        "timed",
        "Timed",
        "Noisy: a change is marked where it stands out of the noise of the whole series. "
        "Axes do not begin at zero.",
    ),
)


@dataclass(frozen=True)
class _Line:
    """A series in the summary, which needs no script."""

    trend: Trend

    @property
    def metric(self) -> str:
        return METRICS[self.trend.metric].title

    @property
    def latest(self) -> str:
        return METRICS[self.trend.metric].text(self.trend.points[-1].value)

    @property
    def interval(self) -> str:
        point, shown = self.trend.points[-1], METRICS[self.trend.metric]
        return "" if point.lo == point.hi else f"{shown.number(point.lo)} to {shown.text(point.hi)}"

    @property
    def change(self) -> str:
        changes = self.trend.change_points
        return change_text(changes[-1], self.trend.metric) if changes else "none"


def write_page(
    path: Path, trends: Sequence[Trend], subjects: Mapping[str, str], source: str
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        trends: those without a point are left out.
        subjects: the first line of commits' messages, by full hash, where known.
        source: where the history is, for the reader.
    """
    trends = in_order(trends)
    data = page_data(trends, subjects, source)
    days = sorted(run["date"][:10] for run in data["runs"])
    style = _text("page.css")
    script = f'(() => {{\n"use strict";\n{"".join(map(_text, SCRIPTS))}}})();\n'
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    page = environment.get_template("page.html.j2").render(
        kinds=_KINDS,
        lines=[_Line(trend) for trend in trends],
        points=sum(len(trend.points) for trend in trends),
        runs=len(data["runs"]),
        days=(days[0], days[-1]) if days else None,
        source=source,
        data=data,
        style=Markup(style),  # noqa: S704 (a file of this repository)
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    write_atomically(path, page)


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return a text's hash as a content security policy has it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
