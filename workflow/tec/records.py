"""Raw records: one JSON line per process that was run, kept as it came.

A record is an envelope around the tool's own output. Everything derived (tables, figures, verdicts)
can be made again from these files alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tec.errors import TecError
from tec.files import append_durably
from tec.gguf_file import ModelInfo
from tec.quantities import Bytes, Count, Seconds, ShortHash
from tec.system import System

SCHEMA_VERSION: Final = 1

PROBE: Final = "probe"
"""The test of records that say what the others of their file were decided by."""

_Line = TypeVar("_Line", bound=BaseModel)

Protocol = Literal["prompts", "random", "parity", "locality", "replay"]
Evidence = Literal["gpu", "functional"]
Outcome = Literal["pass", "fail", "not_run"]
Check = Literal["self", "bitwise", "greedy", "ppl", "kl"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class BuildInfo(_Model):
    """The engine: which llama.cpp, which patches, how it was compiled."""

    target: str
    commit: str
    digest: str = Field(description="digest of the unpatched source tree")
    series_hash: str = Field(description="hash of the patch series and of TEC's own files")
    build_type: str
    compiler: str
    cuda: str | None
    cmake_args: tuple[str, ...]


class RunKey(_Model):
    """Two records are repetitions of each other exactly when their keys are equal."""

    settings: ShortHash = Field(description="hash of the command and of the files it reads")
    build: ShortHash
    model: ShortHash
    system: ShortHash = Field(description="the machine's fingerprint")


class Process(_Model):
    """The operating system's account of one process."""

    exit_code: int
    wall: Seconds
    peak_rss: Bytes = Field(description="largest resident set")


class Record(_Model):
    """One process: what was run, where, and what it said."""

    version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    study: str
    row: str
    arm: str
    protocol: Protocol
    test: str = Field(description="part of the protocol: prompts, greedy, ppl, pp512, tg128 ...")
    round: Count
    order: Count = Field(
        description="position among the processes of the measurement, from 0; that of a probe is "
        "its position in the search, whose file may hold more than is kept here"
    )
    expert_cache: str = Field(description="what the arm asked for: off, auto or slots per layer")
    started_at: AwareDatetime
    command: tuple[str, ...] = Field(description="run in the repository root")
    environment: dict[str, str] = Field(description="variables set for the tool")
    key: RunKey
    system: System
    build: BuildInfo
    model: ModelInfo
    process: Process
    result: dict[str, Any] = Field(description="the tool's own output")

    @property
    def evidence(self) -> Evidence:
        """What this record's times can show: on the CPU back end only that the mechanism works."""
        return "gpu" if self.system.gpus and self.build.target != "cpu" else "functional"

    @property
    def fits(self) -> bool:
        """Whether the arm had room in the GPU's memory; if not, the result says no more."""
        return bool(self.result.get("fits", True))


class Verdict(_Model):
    """The outcome of one parity check of one arm."""

    row: str
    arm: str
    check: Check
    verdict: Outcome
    detail: str
    evidence: Evidence
    batch: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="sequences decoded together"
    )


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of the files this package writes, by name."""
    return {"record": Record.model_json_schema(), "verdict": Verdict.model_json_schema()}


def read_records(path: Path) -> list[Record]:
    """Read a finished file of records.

    Raises:
        TecError: the file cannot be read, or a line is torn or no record; names the line.
    """
    return read_lines(path, Record)


def read_verdicts(path: Path) -> list[Verdict]:
    """Read a file of verdicts; the errors are those of `read_records`."""
    return read_lines(path, Verdict)


def read_partial(path: Path) -> list[Record]:
    """Read the records of an interrupted run, cutting off a last line that was being written."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return read_records(path)


def append_record(path: Path, record: Record) -> None:
    """Append one record and wait until it is on the disk.

    Raises:
        TecError: the disk is full; the file is left as it was.
    """
    line = record.model_dump_json(by_alias=True).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        append_durably(
            file,
            line,
            "this repetition was not kept",
            "free some space and run again; finished repetitions are kept",
        )


def read_lines(path: Path, model: type[_Line]) -> list[_Line]:
    """Read a file of JSON lines of one kind; the errors are those of `read_records`."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TecError(f"cannot read the records: {error.strerror}", path) from error
    if lines[-1]:
        raise TecError(
            "the last line is torn: it does not end",
            f"{path}, line {len(lines)}",
            "the file was cut off; remove it and run again",
        )
    return [_parse(line, model, f"{path}, line {n}") for n, line in enumerate(lines[:-1], start=1)]


def _parse(line: bytes, model: type[_Line], where: str) -> _Line:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TecError(
            f"not a {model.__name__.lower()}: {place + ': ' if place else ''}{first['msg']}",
            where,
            "the file was edited or written by another version; remove it and run again",
        ) from error
