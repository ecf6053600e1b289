"""The history: one line for every process launch that was measured, appended and never rewritten.

One file holds the launches of all studies and machines; a series in it is one row, arm and protocol
on one machine. What a launch said is condensed to what is compared later: a raw record has a list
per token and 25 to 1,500 kB, a line here about one.

The order of the lines is the order of the history. Dates are context: clocks go backwards.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tec.errors import TecError, disk_is_full
from tec.quantities import Bytes, Count, ShortHash
from tec.records import Check, Evidence, Outcome, Protocol

SCHEMA_VERSION: Final = 2
"""Schema 1 is the raw record itself (`tec.records`), as in `results/*/runs`: 100,000 of those cannot
be loaded in seconds. A history may still hold such lines; they are condensed as they are read."""

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
    raise NotImplementedError


def append(path: Path, records: Sequence[HistoryRecord]) -> Appended:
    """Append launches that the history does not have yet, and wait until they are on the disk.

    Two processes may append at once. A torn last line is ended first, so that nothing is glued to
    it.

    Raises:
        TecError: the file is no history, or the disk is full; the file is left as it was.
    """
    raise NotImplementedError
