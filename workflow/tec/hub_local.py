"""Local files that stand in for a download."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from tec.errors import TecError
from tec.hub_lock import LockedFile, LockEntry
from tec.verified import sha256_of

VARIABLE = "TEC_MODELS"
"""Names a folder whose files, wherever in it they lie, are used in place of downloads."""

StandIn = list[Path]
"""A row's files, in order, all in one folder: llama.cpp looks for a split's parts side by side."""


def stand_ins(files: Sequence[str], folder: Path) -> list[StandIn]:
    """Return every set of files below `folder` that has the names of `files`.

    Raises:
        TecError: there is no such folder.
    """
    if not folder.is_dir():
        raise TecError("there is no such folder of models", folder, f"correct --from or {VARIABLE}")
    names = [PurePosixPath(file).name for file in files]
    found = [first.parent for first in sorted(folder.rglob(names[0])) if first.is_file()]
    sets = [[place / name for name in names] for place in found]
    return [files for files in sets if all(path.is_file() for path in files)]


def required(files: Sequence[str], folder: Path) -> list[StandIn]:
    """Return the same; at least one.

    Raises:
        TecError: there is none.
    """
    found = stand_ins(files, folder)
    if not found:
        names = ", ".join(PurePosixPath(file).name for file in files)
        together = " together in one folder" if len(files) > 1 else ""
        raise TecError(
            f"{names} not found{together}", folder, "name the folder that has them with --from"
        )
    return found


def from_environment() -> Path | None:
    """Return the folder that TEC_MODELS names, if it is set."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def fitting(found: Sequence[StandIn], entry: LockEntry) -> list[StandIn]:
    """Return the sets that have the pinned sizes."""
    sizes = [file.size for file in entry.files]
    return [files for files in found if [path.stat().st_size for path in files] == sizes]


def choose(found: Sequence[StandIn], entry: LockEntry, tick: Callable[[], None]) -> StandIn:
    """Return the set that is the pinned one, or else the one that comes nearest.

    Only where several sets have the pinned sizes are they read here; `check` reads the one chosen.
    """
    candidates = fitting(found, entry)
    if len(candidates) > 1:
        right = (files for files in candidates if _same(files, entry, tick))
        return next(right, candidates[0])
    return (candidates or found)[0]


def _same(paths: StandIn, entry: LockEntry, tick: Callable[[], None]) -> bool:
    """Say whether the files have the pinned hashes."""
    pairs = zip(paths, entry.files, strict=True)
    return all(sha256_of(path, tick) == file.sha256 for path, file in pairs)


def check(row: str, entry: LockEntry, paths: StandIn, tick: Callable[[], None]) -> None:
    """Check that local files are the pinned ones.

    Raises:
        TecError: one is not; it is left as it is.
    """
    for file, path in zip(entry.files, paths, strict=True):
        size = path.stat().st_size
        hint = (
            f"remove the file from there to have it fetched, or, if it is the right one: "
            f"tec fetch {row} --from {path.parent} --pin-local"
        )
        if size != file.size:
            raise TecError(f"the file has {size} bytes, pinned are {file.size}", path, hint)
        found = sha256_of(path, tick)
        if found != file.sha256:
            raise TecError(f"the file has SHA-256 {found}, pinned is {file.sha256}", path, hint)


def describe(
    repo: str, files: Sequence[str], paths: StandIn, tick: Callable[[], None]
) -> LockEntry:
    """Return an entry made from local files, which no hub vouches for."""
    locked = [
        LockedFile(name=name, size=path.stat().st_size, sha256=sha256_of(path, tick))
        for name, path in zip(files, paths, strict=True)
    ]
    return LockEntry(repo=repo, commit=None, files=locked)
