"""Long commands: output into a log, progress on the screen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TextIO

TERMINAL_INTERVAL = 0.2
LOG_INTERVAL = 10.0
_STEP = re.compile(r"^\[(\d+)/(\d+)\]", re.MULTILINE)


def steps(done: int, total: int) -> str:
    """Say how many steps are done."""
    return f"step {done} of {total}"


def gigabytes(done: int, total: int) -> str:
    """Say how many bytes are done, in units of 10^9."""
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"


class Progress:
    """One line that updates on a terminal; elsewhere a line every ten seconds.

    Args:
        label: what is being done.
        stream: where to write, standard error by default.
        measure: says in words how much of how much is done.
        start: what was done before; it does not count for the estimate.
    """

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        measure: Callable[[int, int], str] = steps,
        start: int = 0,
    ) -> None:
        self._label = label
        self._measure = measure
        self._start = start
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._started = self._shown = time.monotonic()
        self._write(f"{label} ...")

    def update(self, done: int = 0, total: int = 0) -> None:
        """Show the elapsed time and, with `done` of `total`, an estimate of what is left."""
        now = time.monotonic()
        if now - self._shown < (TERMINAL_INTERVAL if self._terminal else LOG_INTERVAL):
            return
        self._shown = now
        elapsed = now - self._started
        text = f"{self._label}: {_clock(elapsed)}"
        if done > self._start:
            left = elapsed / (done - self._start) * (total - done)
            text += f", {self._measure(done, total)}, about {_clock(left)} left"
        self._write(text)

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self._write(text)
        if self._terminal:
            self._stream.write("\n")

    def finish(self, outcome: str) -> None:
        """Show how it ended and how long it took."""
        self._write(f"{self._label}: {outcome} after {_clock(time.monotonic() - self._started)}")
        if self._terminal:
            self._stream.write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\033[K{text}" if self._terminal else f"{text}\n")
        self._stream.flush()


def run_logged(
    command: Sequence[str],
    label: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    hold: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command with its output in `log`, showing progress; ninja's `[n/m]` gives an estimate.

    Args:
        command: program and arguments.
        label: what it does, for the screen.
        log: text file, replaced.
        environment: variables on top of this process's.
        hold: file descriptors the command keeps open as long as it lives.

    Returns:
        The exit status and all of the output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(label)
    with log.open("wb") as output, log.open(encoding="utf-8", errors="replace") as written:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            pass_fds=hold,
        )
        try:
            _follow(process, written, progress)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        written.seek(0)
        text = written.read()
    progress.finish("failed" if process.returncode else "done")
    return subprocess.CompletedProcess(command, process.returncode, stdout=text)


def _follow(process: subprocess.Popen[bytes], written: IO[str], progress: Progress) -> None:
    """Update the progress from what the process writes until it ends."""
    done = total = 0
    while True:
        try:
            process.wait(TERMINAL_INTERVAL)
        except subprocess.TimeoutExpired:
            if steps := _STEP.findall(written.read()):
                done, total = map(int, steps[-1])
            progress.update(done, total)
        else:
            return


def last_words(text: str, lines: int = 3) -> str:
    """Return the last lines a command printed: where it says why it failed."""
    printed = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(printed[-lines:]) or "it printed no message"


def _clock(seconds: float) -> str:
    """Return minutes and seconds, e.g. `3:05`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
