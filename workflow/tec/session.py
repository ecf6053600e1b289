"""A list of processes to run, kept process by process so that it can be interrupted.

Finished processes are in `<file>.partial` until the last one ended; then that file gets its name.
A second run does only what is missing, and a file that has its name is never measured again. A
partial file of another study, build, model or machine is set aside, never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tec.build import Manifest, portable
from tec.card import FREE, explain_shortage
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.gguf_file import ModelInfo
from tec.machine_lock import machine_lock
from tec.paths import ROOT
from tec.process import Finished, ToolError, run_tool
from tec.records import (
    PROBE,
    BuildInfo,
    Process,
    Protocol,
    Record,
    RunKey,
    append_record,
    read_partial,
    read_records,
)
from tec.system import System, read_system

_READ_AHEAD = 16 * 1024**2
_READ_ONLY = 0o444


Parser = Callable[[Finished], dict[str, Any]]
"""Reads what a process printed: the result of its record."""


@dataclass(frozen=True)
class Step:
    """One process to run and how to read what it prints."""

    arm: str
    test: str
    round: int
    expert_cache: str
    command: tuple[str, ...]
    parse: Parser
    reads: tuple[Path, ...] = ()
    """Files besides the model whose content decides the result."""
    makes: Path | None = None
    """A scratch file that later steps need."""
    environment: Mapping[str, str] = field(default_factory=dict)
    tolerates: re.Pattern[str] | None = None
    """What the tool may end with an error about: the record then says that the arm does not fit."""
    explain: Callable[[ToolError], TecError | None] | None = None
    """Makes a better error of one with which the tool ends, where it knows more about it."""

    def settings(self) -> str:
        """Return the hash of what is run: arguments, variables, and the content of files read."""
        files = [sha256_file(path) for path in self.reads]
        return digest_of([self.command[1:], sorted(self.environment.items()), files])


@dataclass(frozen=True)
class Session:
    """What all steps of one file have in common."""

    study: str
    protocol: Protocol
    build: BuildInfo
    model: ModelInfo
    kept: Path
    """The file to make, if it is not there; never overwritten."""
    log: Path
    system: System = field(default_factory=read_system)

    @property
    def partial(self) -> Path:
        """The file that holds the steps finished so far."""
        return self.kept.with_name(self.kept.name + ".partial")

    def key(self, step: Step) -> RunKey:
        """Return what has to be equal for two records to be repetitions of each other."""
        return RunKey(
            settings=step.settings(),
            build=digest_of(self.build),
            model=self.model.sha256[:12],
            system=self.system.fingerprint,
        )

    def run(self, steps: Sequence[Step], wait: float, evidence: Sequence[Record] = ()) -> None:
        """Run the steps that are not done yet, then give the file its name; none if it has it.

        Args:
            steps: in the order they are to be run.
            wait: seconds to wait for another measurement on this machine.
            evidence: records of what the steps were decided by; they stand first in the file.

        Raises:
            TecError: the file is there and not whole, the machine is taken, a tool fails, or the
                disk is full.
        """
        if self._is_kept(steps):
            return
        with machine_lock(f"{self.study} {self.model.row} {self.protocol}", wait) as lock:
            if not self._is_kept(steps):  # another process may have made it meanwhile
                self._run_missing(steps, lock)
                self._finish(evidence)
                self.kept.chmod(_READ_ONLY)

    def is_there(self) -> bool:
        """Say whether the file is there, without steps to compare it with; tell the user if so."""
        if there := self.kept.exists():
            _say(f"nothing to measure: {self.kept} is there")
        return there

    def _is_kept(self, steps: Sequence[Step]) -> bool:
        """Say whether the file is there; raise a TecError if it is, and is not whole."""
        if not self.kept.exists():
            return False
        records = [record for record in read_records(self.kept) if record.test != PROBE]
        found = Counter((r.arm, r.test, r.round, r.key) for r in records)
        if found != Counter((step.arm, step.test, step.round, self.key(step)) for step in steps):
            raise TecError(
                f"the kept file has {found.total()} records, which are not one for each of these "
                f"{len(steps)} processes",
                self.kept,
                "move the file away and run again",
            )
        _say(f"nothing to measure: {self.kept} has these {len(steps)} processes")
        return True

    def _run_missing(self, steps: Sequence[Step], lock: int) -> None:
        """Run what the partial file does not hold yet, and append it."""
        keys = [self.key(step) for step in steps]
        done = self._resume(steps, keys)
        todo = [index for index in range(len(steps)) if index not in done]
        for part in self.model.parts if todo else ():
            _read_once(ROOT / part.path)
        progress = Progress(len(steps), len(todo))
        for index in todo:
            record = self.run_step(steps[index], index, lock)
            append_record(self.partial, record)
            progress.show(self.model.row, self.protocol, record)

    def _finish(self, evidence: Sequence[Record]) -> None:
        """Give the finished file its name, after the evidence."""
        if not evidence:
            self.partial.rename(self.kept)
            return
        lines = [record.model_dump_json(by_alias=True) + "\n" for record in evidence]
        write_atomically(self.kept, "".join(lines) + self.partial.read_text(encoding="utf-8"))
        self.partial.unlink()

    def run_step(self, step: Step, order: int, lock: int) -> Record:
        """Run one process and return its record, which is not kept yet.

        Args:
            step: the process.
            order: its position among the processes of the file.
            lock: the machine lock's descriptor, which the process holds too.
        """
        key = self.key(step)
        started_at = datetime.now(UTC)
        if step.makes is not None:
            step.makes.parent.mkdir(parents=True, exist_ok=True)
        process, result = self._result(step, lock)
        return Record(
            study=self.study,
            row=self.model.row,
            arm=step.arm,
            protocol=self.protocol,
            test=step.test,
            round=step.round,
            order=order,
            expert_cache=step.expert_cache,
            started_at=started_at,
            command=step.command,
            environment=dict(step.environment),
            key=key,
            system=read_system(),  # now, because an idle card lowers its PCIe generation
            build=self.build,
            model=self.model,
            process=process,
            result=result,
        )

    def _result(self, step: Step, lock: int) -> tuple[Process, dict[str, Any]]:
        """Run a step's tool; return the account and what it said, or that the arm does not fit."""
        try:
            finished = run_tool(step.command, step.environment, self.log, hold=(lock,))
        except ToolError as error:
            if step.tolerates and step.tolerates.search(error.said):
                return error.process, {"fits": False, "error": error.what}
            if FREE.search(error.said):
                search = self.kept.with_name(f"{self.model.row}.search.*.jsonl")
                raise explain_shortage(error, search) from error
            if step.explain and (better := step.explain(error)):
                raise better from error
            raise
        try:
            return finished.process, step.parse(finished)
        except TecError as error:
            where = f"{self.model.row}, arm {step.arm}, {step.test}"
            raise TecError(error.what, where, error.hint or f"read {self.log}") from error

    def _resume(self, steps: Sequence[Step], keys: Sequence[RunKey]) -> set[int]:
        """Return the indices of the steps that the partial file already holds."""
        records = read_partial(self.partial)
        wanted = {
            (step.arm, step.test, step.round, key): index
            for index, (step, key) in enumerate(zip(steps, keys, strict=True))
        }
        found = [wanted.get((r.arm, r.test, r.round, r.key)) for r in records]
        if None in found:
            _set_aside(self.partial)
            return set()
        done = {index for index in found if index is not None}
        lost = {i for i in done if (made := steps[i].makes) is not None and not made.exists()}
        if lost:
            kept = [r for r, i in zip(records, found, strict=True) if i not in lost]
            lines = [record.model_dump_json(by_alias=True) + "\n" for record in kept]
            write_atomically(self.partial, "".join(lines))
        if done - lost:
            _say(f"continuing: {len(done - lost)} of {len(steps)} processes are already done")
        return done - lost


class Progress:
    """One line per finished process, with the time that is left."""

    def __init__(self, total: int, todo: int) -> None:
        self.total = total
        self.todo = todo
        self.finished = 0
        self.begin = time.monotonic()

    def show(self, row: str, protocol: str, record: Record) -> None:
        """Say that one more has ended."""
        self.finished += 1
        elapsed = time.monotonic() - self.begin
        left = elapsed / self.finished * (self.todo - self.finished)
        number = self.total - self.todo + self.finished
        _say(
            f"[{number}/{self.total}] {row} {protocol}: round {record.round + 1}, {record.arm} "
            f"{record.test}, {record.process.wall:.1f} s; {_duration(left)} left"
        )


def build_info(manifest: Manifest) -> BuildInfo:
    """Return what a record says about a build; paths of this machine's tools are left out."""
    values = manifest.model_dump(include=set(BuildInfo.model_fields))
    return BuildInfo(**{**values, "cmake_args": tuple(portable(manifest.cmake_args))})


def _set_aside(partial: Path) -> None:
    number = 1
    while (aside := partial.with_name(f"{partial.name}.{number}")).exists():
        number += 1
    partial.rename(aside)
    _say(f"an unfinished run with other settings was set aside as {aside}; starting afresh")


def _read_once(path: Path) -> None:
    """Read a file through once, untimed, so that the first process finds it in memory too."""
    buffer = bytearray(_READ_AHEAD)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def digest_of(value: object, digits: int = 12) -> str:
    """Return hex digits for a model or any JSON value."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:digits]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
