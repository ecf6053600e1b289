"""Hashes of big files, computed once: 60 GB take minutes to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from tec.files import write_atomically
from tec.paths import VERIFIED
from tec.progress import Progress, gigabytes

_CHUNK = 2**24
_SHOWN_FROM = 2**28
"""Bytes; smaller files are hashed before anyone looks."""

_lock = Lock()


def sha256_of(path: Path, tick: Callable[[], None]) -> str:
    """Return the SHA-256 of a file in hex; the same file is not read twice.

    Args:
        path: the file; a link stands for what it leads to.
        tick: called every few megabytes; may raise to stop.
    """
    known = _read().get(str(path.resolve()))
    before = _identity(path)
    if known and known["file"] == before:
        return str(known["sha256"])
    found = _hash(path, tick)
    if _identity(path) == before:  # else the bytes that were read are not those that are there
        remember(path, found)
    return found


def remember(path: Path, sha256: str) -> None:
    """Note the hash of a file whose bytes were read under another name."""
    entry = {"file": _identity(path), "sha256": sha256}
    with _lock:
        kept = {name: known for name, known in _read().items() if Path(name).exists()}
        kept[str(path.resolve())] = entry
        write_atomically(VERIFIED, json.dumps(kept, indent=2) + "\n")


def _identity(path: Path) -> list[int]:
    """Return what differs when a file was replaced or written: size, times of change, inode.

    The modification time can be set by hand, the time of the inode's change cannot.
    """
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _read() -> dict[str, Any]:
    """Return what is known; a damaged record only costs reading the files again."""
    try:
        known = json.loads(VERIFIED.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _hash(path: Path, tick: Callable[[], None]) -> str:
    size = path.stat().st_size
    progress = Progress(f"checking {path.name}", measure=gigabytes) if size >= _SHOWN_FROM else None
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            tick()
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress.update(done, size)
    if progress:
        progress.finish("read")
    return digest.hexdigest()
