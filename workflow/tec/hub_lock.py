"""The lock file of models on the hub: which revision, and what its files have to be."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from tec.config import HubSource, Name
from tec.errors import TecError
from tec.files import write_atomically
from tec.misfit import misfits
from tec.paths import CACHE
from tec.quantities import Bytes, Sha256
from tec.yaml_file import Section

Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


class LockedFile(Section):
    """A file as the hub's own metadata describes it (or, pinned locally, as it was found)."""

    name: str
    """Path in the repository."""
    size: Bytes
    sha256: Sha256


class LockEntry(Section):
    """What one row's files have to be."""

    repo: str
    commit: Commit | None
    """Revision on the hub; none where a person pinned a local file that no hub vouched for."""
    files: Annotated[list[LockedFile], Field(min_length=1)]

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def title(self) -> str:
        """Return the repository with its pinned revision, for messages."""
        return f"{self.repo} {f'at {self.commit[:12]}' if self.commit else 'as in local files'}"


class HubLock(Section):
    """The content of configs/hub.lock.json."""

    version: Literal[1] = 1
    rows: dict[Name, LockEntry] = Field(default_factory=dict)


def read_lock(path: Path) -> HubLock:
    """Return the lock; an absent file is an empty one.

    Raises:
        TecError: the file is damaged or of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return HubLock()
    try:
        return HubLock.model_validate_json(text)
    except ValidationError as error:
        raise TecError(
            f"the lock file does not fit: {misfits(error)[0]}",
            path,
            "restore it (git checkout), or delete it and pin the rows again",
        ) from None


def pinned(path: Path, row: str, source: HubSource) -> LockEntry | None:
    """Return the row's entry, if it has one.

    Raises:
        TecError: the entry was made for another repository or other files than the row names now.
    """
    entry = read_lock(path).rows.get(row)
    if entry is None:
        return None
    names = [file.name for file in entry.files]
    if (entry.repo, names) != (source.repo, source.files):
        raise TecError(
            f"row {row} names {', '.join(source.files)} of {source.repo}, but the lock has "
            f"{', '.join(names)} of {entry.repo}",
            path,
            f"correct the row, or pin it again: tec fetch {row} --repin",
        )
    return entry


def write_entry(path: Path, row: str, entry: LockEntry) -> None:
    """Add or replace the row's entry; entries that others write at the same time are kept."""
    with _writing():
        lock = read_lock(path)
        rows = dict(sorted({**lock.rows, row: entry}.items()))
        content = lock.model_copy(update={"rows": rows})
        write_atomically(path, content.model_dump_json(indent=2) + "\n")


@contextmanager
def _writing() -> Iterator[None]:
    """Wait until no other process writes the lock file, and keep others waiting."""
    CACHE.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(CACHE / "pinning.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
