"""Files that are either complete or absent."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from tec.errors import TecError, disk_is_full


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends well.

    The file's bytes reach the disk before the name does, unless `sync` is false. On an error the
    temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, all of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def append_durably(file: FileIO, content: bytes, lost: str, hint: str) -> None:
    """Append `content` in one write and wait until it is on the disk; all of it or nothing.

    Args:
        file: open for appending, unbuffered.
        content: what is appended.
        lost: what a full disk means, for the user.
        hint: what to do then.

    Raises:
        TecError: the disk is full; the file is left as it was.
    """
    before = file.seek(0, os.SEEK_END)
    try:
        if file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError as error:
        if not disk_is_full(error):
            raise
        os.ftruncate(file.fileno(), before)
        raise TecError(f"the disk is full: {lost}", Path(os.fsdecode(file.name)), hint) from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
