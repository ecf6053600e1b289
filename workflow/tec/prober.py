"""Processes that are run to find out what fits; each is run once and kept.

What is tried next depends on what was found, so these are no fixed list as a measurement's. Their
records lie in a file that only grows, one for each engine, model and machine; a record is found
again by the hash of its command.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tec.records import Record, append_record, read_partial
from tec.session import Session, Step

MISFIT = re.compile(
    r"out of memory|(?:unable|failed) to allocate|slots of [\d.]+ MiB do not fit", re.IGNORECASE
)
"""How llama.cpp says that something does not fit into the GPU's memory."""


@dataclass
class Prober:
    """Tries steps of one row, or remembers how they went."""

    session: Session
    path: Path
    """The file that keeps what was tried."""
    lock: int
    """The machine lock's descriptor."""
    used: list[Record] = field(default_factory=list)
    """What was asked of this prober, in order, each once: the evidence for what follows from it."""

    @cached_property
    def _known(self) -> dict[str, Record]:
        return {record.key.model_dump_json(): record for record in read_partial(self.path)}

    def run(self, step: Step) -> Record:
        """Return the step's record, from the file or from a new process."""
        name = self.session.key(step).model_dump_json()
        record = self._known.get(name)
        if record is None:
            record = self.session.run_step(step, len(self._known), self.lock)
            append_record(self.path, record)
            self._known[name] = record
            _tell(record)
        if record not in self.used:
            self.used.append(record)
        return record


def _tell(record: Record) -> None:
    words = record.command
    shown = [
        f"{name} {words[words.index(name) + 1]}"
        for name in ("--vram-limit", "--n-cpu-moe", "--gpu-layers", "--fit-target")
        if name in words
    ]
    verdict = "fits" if record.fits else "does not fit"
    print(
        f"{record.row} search: {record.arm} {' '.join(shown)}: {verdict}, "
        f"{record.process.wall:.1f} s",
        file=sys.stderr,
        flush=True,
    )
