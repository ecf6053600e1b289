"""The history: one line for every process launch that was measured, appended and never rewritten.

One file holds the launches of all studies and machines; a series in it is one row, arm and protocol
on one machine. What a launch said is condensed to what is compared later: a raw record has a list
per token and 25 to 1,500 kB, a line here about one.

The order of the lines is the order of the history. Dates are context: clocks go backwards.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tec.errors import TecError
from tec.files import append_durably
from tec.quantities import Bytes, Count, ShortHash
from tec.records import Check, Evidence, Outcome, Protocol, Record

SCHEMA_VERSION: Final = 2
"""Schema 1 is the raw record itself (`tec.records`), as in `results/*/runs`: 100,000 of those
cannot be loaded in seconds. A history may still hold such lines; they are condensed when read."""

Throughput = Annotated[float, Field(gt=0, allow_inf_nan=False, json_schema_extra={"unit": "tok/s"})]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Series(NamedTuple):
    """What has to be equal for two launches to stand in one series."""

    row: str
    arm: str
    protocol: Protocol
    system: str
    """The machine's fingerprint."""

    def __str__(self) -> str:
        return f"{self.row}, {self.arm}, {self.protocol}"


class Values(_Model):
    """What one process launch measured; None where it measured no such thing."""

    tg_tps: Throughput | None = Field(default=None, description="decoded tokens per second")
    step_tps: Throughput | None = Field(
        default=None,
        description="of the median decode step: what disturbs some steps of a launch leaves it, "
        "and so does what slows down rare steps",
    )
    pp_tps: Throughput | None = Field(default=None, description="prompt tokens per second")
    hits: Count | None = None
    misses: Count | None = None
    bytes_moved: Bytes | None = Field(default=None, description="of missed experts")
    vram_bytes: Bytes | None = Field(default=None, description="in use; None without a GPU")
    routing: ShortHash | None = Field(
        default=None, description="hash of the hits and misses of every step and layer: the victims"
    )
    tokens: ShortHash | None = Field(
        default=None, description="hash of the decoded tokens and of the trace, if one was replayed"
    )
    parity: dict[Check, Outcome] | None = Field(
        default=None, description="the worst verdict of each check, over batches"
    )


class HistoryRecord(_Model):
    """One process launch, or the parity verdicts of one arm."""

    version: Literal[2] = Field(default=SCHEMA_VERSION, alias="schema")
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(description="of the launch")
    row: str
    arm: str
    protocol: Protocol
    system: ShortHash = Field(description="the machine's fingerprint")
    test: str
    round: Count
    order: Count = Field(description="position among the processes of its session")
    session: ShortHash = Field(description="equal for launches that ran interleaved in one job")
    started_at: AwareDatetime
    study: str
    evidence: Evidence
    commit: str | None = Field(description="of this project, where known; `-dirty` if edited")
    build: ShortHash = Field(description="the engine: source, series, compiler, options")
    series_hash: str = Field(description="hash of the patch series and of TEC's own files")
    llama_commit: str
    target: str
    settings: ShortHash = Field(description="hash of the command and of the files it reads")
    model: ShortHash
    machine: dict[str, str] = Field(description="what the fingerprint covers, to name a change")
    values: Values

    @property
    def series(self) -> Series:
        """The series this launch belongs to."""
        return Series(self.row, self.arm, self.protocol, self.system)


@dataclass(frozen=True)
class Problem:
    """A line that was read past, or stands in the wrong place."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


@dataclass(frozen=True)
class History:
    """The launches of a file, in its order, and what was wrong with it."""

    path: Path
    records: tuple[HistoryRecord, ...]
    problems: tuple[Problem, ...]

    def by_series(self) -> dict[Series, list[HistoryRecord]]:
        """Return the launches of every series, both in the order of the file."""
        found: dict[Series, list[HistoryRecord]] = {}
        for record in self.records:
            found.setdefault(record.series, []).append(record)
        return found


@dataclass(frozen=True)
class Appended:
    """What an append did."""

    added: int
    known: int
    """Launches that the history had already."""


def load(path: Path) -> History:
    """Read a history; a file that is not there is an empty one.

    A torn line, which a killed append leaves, is read past and reported, as is a launch that stands
    there twice. Nothing else is.

    Raises:
        TecError: a line is no record of a history, or of a newer schema; names it.
    """
    if not path.exists():
        return History(path, (), ())
    with path.open("rb") as file, _locked(file.fileno(), fcntl.LOCK_SH):
        *lines, tail = file.read().split(b"\n")
    records: dict[str, HistoryRecord] = {}
    problems: list[Problem] = []
    latest: dict[Series, HistoryRecord] = {}
    for number, line in enumerate(lines, start=1):
        if (record := _read_line(line, path, number)) is None:
            problems.append(Problem(number, "torn: an append was killed; what it says is lost"))
        elif record.id in records:
            problems.append(Problem(number, f"launch {record.id} stands here twice; counted once"))
        else:
            problems.extend(_backwards(record, latest, number))
            records[record.id] = record
    if tail:
        problems.append(Problem(len(lines) + 1, "torn: an append was killed or is running"))
    return History(path, tuple(records.values()), tuple(problems))


def append(path: Path, records: Sequence[HistoryRecord]) -> Appended:
    """Append launches that the history does not have yet, and wait until they are on the disk.

    Two processes may append at once. A torn last line is ended first, so that nothing is glued to
    it.

    Raises:
        TecError: the file is no history, or the disk is full; the file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file, _locked(file.fileno(), fcntl.LOCK_EX):
        file.seek(0)
        content = file.read()
        _check_own(content, path)
        known = set(_IDS.findall(content))
        new = {r.id: r for r in records if r.id.encode() not in known}
        lines = b"".join(r.model_dump_json(by_alias=True).encode() + b"\n" for r in new.values())
        if lines:
            torn = content and not content.endswith(b"\n")
            whole = b"\n" + lines if torn else lines
            append_durably(file, whole, "nothing was appended", "free some space and append again")
    return Appended(len(new), len(records) - len(new))


_IDS = re.compile(
    rb'^{"schema":%d,"id":"([0-9a-f]{16})".*(?:null}}|}}})$' % SCHEMA_VERSION, re.MULTILINE
)
"""Finds the ids of whole lines: what a torn one says is lost, and may be appended again."""


@contextmanager
def _locked(descriptor: int, how: int) -> Iterator[None]:
    """Hold the file's lock; it ends with the process, even a killed one."""
    fcntl.flock(descriptor, how)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _check_own(content: bytes, path: Path) -> None:
    """Raise a TecError unless a file is empty or its first whole line belongs to a history."""
    first, end, _ = content.partition(b"\n")
    if end:
        _read_line(first, path, 1)


def _read_line(line: bytes, path: Path, number: int) -> HistoryRecord | None:
    """Return the record of a line; None of a torn one."""
    try:
        return HistoryRecord.model_validate_json(line)
    except ValidationError as error:
        problem = error
    try:
        values = json.loads(line)
    except ValueError:
        if line.startswith(_BEGINNING):
            return None
        raise _foreign("this is no JSON", path, number) from None
    try:
        return migrate(values, f"{path}, line {number}")
    except ValidationError as error:
        problem = error
    first = problem.errors()[0]
    place = ".".join(map(str, first["loc"]))
    raise _foreign(f"{place + ': ' if place else ''}{first['msg']}", path, number)


_BEGINNING = b"{"
"""Of every line: what is torn still begins so."""


def migrate(values: Any, where: str) -> HistoryRecord:
    """Return a parsed line of any schema up to the present one as a record.

    Raises:
        TecError: its schema is newer.
        ValidationError: it is not of the schema it names, or names none.
    """
    version = values.get("schema") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise TecError(
            f"this line has schema {version}, and this version of tec reads up to {SCHEMA_VERSION}",
            where,
            "use the version of this project that wrote it, or a newer one",
        )
    if version == 1:
        return _from_raw(values)
    return HistoryRecord.model_validate(values)


def _from_raw(values: dict[str, Any]) -> HistoryRecord:
    """Condense a raw record, schema 1.

    It does not say with which others it was interleaved: those of one build and day count as one
    session, so that they do not pass for independent ones.
    """
    from tec import launches  # which needs this module

    return launches.condense_alone(Record.model_validate(values))


def _backwards(
    record: HistoryRecord, latest: dict[Series, HistoryRecord], number: int
) -> Iterator[Problem]:
    """Yield a problem where a session began before the one that stands before it."""
    before = latest.get(record.series)
    other = before is None or before.session != record.session
    if before and other and record.started_at < before.started_at:
        yield Problem(
            number,
            f"the clock went back: {record.series} at {record.started_at:%Y-%m-%d %H:%M} after "
            f"{before.started_at:%Y-%m-%d %H:%M}; the order of the lines counts",
        )
    if other:
        latest[record.series] = record


def _foreign(what: str, path: Path, number: int) -> TecError:
    return TecError(
        f"this is no line of a history: {what}",
        f"{path}, line {number}",
        "name another file with --history; if this one was edited, take that line out",
    )
