"""Running one tool process and accounting for it."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tec.errors import RunError, TecError
from tec.paths import ROOT
from tec.quantities import KIB
from tec.records import Process

# Variables that steer llama.cpp: what a shell happens to hold must not change a measurement.
_STEERING = ("LLAMA_", "GGML_", "EXPERT_CACHE_", "ROUTER_TRACE_", "OMP_", "CUDA_LAUNCH_BLOCKING")

_ERROR = re.compile(r"(?:[\d.]+ E |error\b)", re.IGNORECASE)
"""How llama.cpp's logger and the tools themselves begin a line about an error."""

_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""What a tool prints when the disk or the quota on it is full."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well: what it printed, and its account."""

    stdout: str
    stderr: str
    process: Process


class ToolError(TecError):
    """A tool ended with an error; carries its account and all that it wrote about it."""

    def __init__(self, what: str, where: object, hint: str, process: Process, said: str) -> None:
        super().__init__(what, where, hint)
        self.process = process
        self.said = said


def run_tool(
    command: Sequence[str], environment: Mapping[str, str], log: Path, hold: Sequence[int] = ()
) -> Finished:
    """Run `command` in the repository root; its standard error is appended to `log`.

    Args:
        command: program and arguments.
        environment: variables set on top of the caller's, whose steering variables are removed.
        log: text file; the command line is written to it before the output.
        hold: file descriptors the process keeps open as long as it lives.

    Raises:
        TecError: the program cannot be started.
        ToolError: it fails; carries its last line of error.
        RunError: it fails because the disk is full.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as stdout, log.open("ab+") as stderr:
        stderr.write(f"$ {shlex.join(command)}\n".encode())
        stderr.flush()
        start_of_errors = stderr.tell()
        process = _run(command, environment, stdout.fileno(), stderr.fileno(), hold)
        stdout.seek(0)
        stderr.seek(start_of_errors)
        printed = stdout.read().decode(errors="replace")
        errors = stderr.read().decode(errors="replace")
    if process.exit_code != 0:
        what = f"{Path(command[0]).name} failed ({_reason(process.exit_code)})"
        if any(said in errors + printed for said in _FULL):
            hint = "free some space and run again"
            raise RunError(f"the disk or your quota on it is full: {what}", log, hint)
        what = f"{what}: {_last_line(errors)}"
        raise ToolError(what, shlex.join(command), f"read {log}", process, errors + printed)
    return Finished(stdout=printed, stderr=errors, process=process)


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    stdout: int,
    stderr: int,
    hold: Sequence[int],
) -> Process:
    """Start the process, wait for it, and stop it should the wait be interrupted."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_STEERING)}
    begin = time.perf_counter()
    try:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=hold,
        )
    except OSError as error:
        raise TecError(
            f"cannot start {command[0]}: {error.strerror}", hint="build the target again"
        ) from error
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else KIB
    return Process(
        exit_code=child.returncode,
        wall=time.perf_counter() - begin,
        peak_rss=usage.ru_maxrss * unit,
    )


def _reason(exit_code: int) -> str:
    return f"exit {exit_code}" if exit_code >= 0 else f"killed by signal {-exit_code}"


def _last_line(errors: str) -> str:
    """Return the line that says most: the last one marked as an error, else the last one."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    marked = [line for line in lines if _ERROR.match(line)]
    return (marked or lines or ["it printed no message"])[-1]
