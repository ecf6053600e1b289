"""Processes that are run to find out what fits; each is run once and kept.

What is tried next depends on what was found, so these are no fixed list as a measurement's. Their
records lie in a file that only grows, one for each engine, model and machine; a record is found
again by the hash of its command.

What did not fit is only believed where the card has as much memory free as it had then: another
program may have held some. So what is free is asked in every session, first.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tec.card import free_mib
from tec.records import Record, append_record, read_partial
from tec.session import Session, Step

MISFIT = re.compile(
    r"\A(?![\s\S]*--vram-limit:)[\s\S]*"
    r"(?:cudaMalloc failed: out of memory|CUDA error: out of memory"
    r"|(?:unable|failed) to allocate CUDA\d+ buffer"
    r"|slots of [\d.]+ MiB do not fit|cannot allocate \d+ slots in CUDA\d)"
)
"""How llama.cpp says that something does not fit into the GPU's memory.

A shortage of host memory is none (`CPU`, `CUDA_Host`), nor is a limit that cannot be set up: that
is about the card, not about what is loaded.
"""

STEADY_MIB = 64
"""By so much may what is free differ for the same to fit: it does from process to process."""


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

    _known: dict[str, Record] = field(default_factory=dict, init=False)
    """Key -> what is known of it while as much is free as now."""
    _kept: int = field(default=0, init=False)
    """Records in the file."""

    def card(self, step: Step) -> int:
        """Return how many MiB the card has free; to be asked before anything is run.

        Where it is as much as when the file was last written to, the number from then is returned,
        for the same limits: its command lines are found again.

        Args:
            step: ends with an error that says so.
        """
        kept = read_partial(self.path)
        self._kept = len(kept)
        found = self.session.run_step(step, self._kept, self.lock)
        now, then, last = free_mib(_error(found)), 0, None
        for record in kept:
            if record.arm == step.arm:
                last, then = record, free_mib(_error(record))
            elif record.fits or abs(then - now) <= STEADY_MIB:
                self._known[record.key.model_dump_json()] = record
        if last is None or abs(then - now) > STEADY_MIB:
            last = self._keep(found)
        self.used.append(last)
        return free_mib(_error(last))

    def run(self, step: Step) -> Record:
        """Return the step's record, from the file or from a new process."""
        name = self.session.key(step).model_dump_json()
        record = self._known.get(name)
        if record is None:
            record = self._keep(self.session.run_step(step, self._kept, self.lock))
            self._known[name] = record
        if record not in self.used:
            self.used.append(record)
        return record

    def _keep(self, record: Record) -> Record:
        append_record(self.path, record)
        self._kept += 1
        _tell(record)
        return record


def _error(record: Record) -> str:
    return str(record.result.get("error"))


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
