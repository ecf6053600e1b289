"""One measurement at a time on a machine and its graphics cards."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tec.errors import RunError

_POLL_SECONDS = 1.0


def lock_path() -> Path:
    """Return the lock file that all measurements on this machine share."""
    return Path(tempfile.gettempdir()) / "tec-measure.lock"


@contextmanager
def machine_lock(purpose: str, wait: float) -> Iterator[int]:
    """Hold the machine for a measurement; yields the lock's file descriptor.

    The lock ends with the last process that holds the descriptor, so handing it to a tool keeps
    the machine taken even if the measuring process is killed and the tool runs on.

    Args:
        purpose: what is measured, shown to whoever finds the machine taken.
        wait: seconds to wait for another measurement to end.

    Raises:
        RunError: another measurement still runs after `wait` seconds; says which.
    """
    path = lock_path()
    descriptor = _open(path)
    try:
        _acquire(descriptor, path, wait)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}: {purpose}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open the lock file, made by whoever measures first and writable for all."""
    try:
        return os.open(path, os.O_RDWR)  # not O_CREAT: refused on other users' files in /tmp
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.fchmod(descriptor, 0o666)
        return descriptor


def _acquire(descriptor: int, path: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "unknown"
            if time.monotonic() >= deadline:
                raise RunError(
                    f"another measurement is running on this machine: {holder}",
                    path,
                    "wait until it ends and run again; two at once would disturb each other",
                ) from None
            if not told:
                print(f"waiting for another measurement to end: {holder}", file=sys.stderr)
                told = True
            time.sleep(_POLL_SECONDS)
        else:
            return
