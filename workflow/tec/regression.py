"""What a comparison of measurements finds: result models, and the exit status they mean."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tec.quantities import Count, ShortHash
from tec.records import Evidence, Protocol

Metric = Literal[
    "tg_tps", "step_tps", "pp_tps", "hit_rate", "victims", "bytes_moved", "vram_bytes", "parity"
]
Finding = Literal["regressed", "improved", "no change", "not comparable", "measured nothing"]
Mode = Literal["paired", "history"]

EXIT_STATUS: Final[dict[Finding, int]] = {
    "no change": 0,
    "regressed": 10,
    "improved": 11,
    "measured nothing": 12,
    "not comparable": 13,
}
"""Apart from 1 and 2, which are errors of Python and of `tec`."""

TIMED: Final[tuple[Literal["tg_tps", "step_tps", "pp_tps"], ...]] = ("tg_tps", "step_tps", "pp_tps")
"""Metrics with noise; the others are the same in every launch, and compared exactly."""

LABELS: Final[dict[Metric, str]] = {
    "tg_tps": "decode tok/s",
    "step_tps": "median step, 1/s",
    "pp_tps": "prefill tok/s",
    "hit_rate": "hit rate",
    "victims": "victims",
    "bytes_moved": "bytes moved",
    "vram_bytes": "VRAM",
    "parity": "parity",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Side(_Model):
    """The builds on one side of a comparison."""

    builds: tuple[ShortHash, ...]
    commits: tuple[str, ...] = Field(description="of this project, where known")
    launches: Count
    sessions: Count


class _Cell(_Model):
    """One metric of one series."""

    row: str
    arm: str
    protocol: Protocol
    system: ShortHash
    evidence: Evidence
    metric: Metric


class Comparison(_Cell):
    """A cell, new beside old."""

    finding: Finding
    old: float | None = Field(description="median over launches; None where it is no number")
    new: float | None
    ratio: float | None = Field(description="new / old, as estimated; above 1 is faster for tok/s")
    lo: float | None = Field(description="interval of the ratio")
    hi: float | None
    noise: float | None = Field(
        description="noise floor: a smaller |ratio - 1| is none, from the A/A runs of the session "
        "(paired) or the spread between sessions (history)"
    )
    p: float | None = Field(description="chance of such a difference without a change")
    p_adjusted: float | None = Field(description="the same, corrected for the number of cells")
    confirmed: bool | None = Field(
        description="whether fresh launches showed it again; None where none were asked for"
    )
    old_launches: Count
    new_launches: Count
    detail: str = Field(description="why the finding is what it is, in a sentence")


class Point(_Model):
    """One session of one build in a long series: what the page draws."""

    index: Count = Field(description="position in the series; dates may go backwards")
    started_at: AwareDatetime
    commit: str | None
    build: ShortHash
    session: ShortHash
    value: float = Field(description="median over the launches")
    lo: float = Field(description="interval of the median; the value itself for one launch")
    hi: float
    launches: Annotated[int, Field(ge=1)]


class ChangePoint(_Model):
    """Between two points of a series the level changed."""

    index: Count = Field(description="of the first point after the change")
    commit: str | None = Field(description="of that point")
    before: float = Field(description="median of the points of the segment before")
    after: float
    ratio: float = Field(description="after / before")
    p: float


class Trend(_Cell):
    """A cell over its whole history, oldest first."""

    machine: dict[str, str]
    points: tuple[Point, ...]
    change_points: tuple[ChangePoint, ...]


class Report(_Model):
    """Everything that one `tec regress` found; written as JSON, read by summary and page."""

    schema_version: Literal[1] = 1
    created_at: AwareDatetime
    mode: Mode
    level: float = Field(description="chance of one false alarm or more in all of the report")
    new: Side
    old: Side | None
    comparisons: tuple[Comparison, ...]
    trends: tuple[Trend, ...] = Field(description="with a change point; history mode only")
    warnings: tuple[str, ...]

    @property
    def finding(self) -> Finding:
        """The finding of the whole: a cell that says nothing keeps the others from passing."""
        found = {comparison.finding for comparison in self.comparisons}
        order: tuple[Finding, ...] = ("regressed", "measured nothing", "not comparable", "improved")
        worst = next((finding for finding in order if finding in found), None)
        return worst or ("no change" if found else "measured nothing")

    @property
    def exit_status(self) -> int:
        """The exit status of the whole."""
        return EXIT_STATUS[self.finding]
