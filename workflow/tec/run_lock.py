"""Locks against two runs in one place. They end with the processes that hold them, even killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tec.errors import TecError


def hold(path: Path, what: str) -> int:
    """Lock `path` for as long as the returned file descriptor is open here or in a child.

    Args:
        path: the lock file; made if need be, never removed.
        what: what the holder does, for whoever finds it locked.

    Raises:
        TecError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TecError(
            f"another process is {what}", path, "wait until it ends, or stop it, and run again"
        ) from None
    return descriptor
