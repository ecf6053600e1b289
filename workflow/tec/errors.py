"""The one error a person is meant to read."""

from __future__ import annotations

import errno


class TecError(Exception):
    """Something a person can fix.

    Args:
        what: what was wrong, in one sentence without a full stop.
        where: the file, line, key or command it was found at.
        hint: what to do next.
    """

    def __init__(self, what: str, where: object = None, hint: str | None = None) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = "" if self.where is None else f" ({self.where})"
        step = "" if self.hint is None else f"\n  next: {self.hint}"
        return f"{self.what}{place}{step}"


class RunError(TecError):
    """What stops every row, not one: another measurement has the machine, or the disk is full."""


def disk_is_full(error: BaseException | None) -> bool:
    """Say whether a file could not be written because the disk, or the quota on it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
