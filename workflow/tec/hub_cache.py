"""Hugging Face's cache folder, in the layout that its own client and other tools use.

`<cache>/models--<owner>--<name>/` has the files under `blobs/`, named by their hash, and
`snapshots/<commit>/<path in the repository>` as links to them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._fixes import WeakFileLock

from tec.errors import TecError
from tec.hub_lock import LockedFile, LockEntry

_POLL_SECONDS = 0.5


def root() -> Path:
    """Return the cache folder; HF_HOME and HF_HUB_CACHE move it."""
    return Path(constants.HF_HUB_CACHE)


class CachedFile:
    """One file of a pinned revision: where it is, or is going to be.

    Args:
        entry: the row's entry in the lock; without a commit nothing is here, nor going to be.
        file: the file among the entry's.
    """

    def __init__(self, entry: LockEntry, file: LockedFile) -> None:
        self._folder = repo_folder_name(repo_id=entry.repo, repo_type="model")
        self._file = file
        self._pinned = entry.commit is not None
        blobs = root() / self._folder / "blobs"
        self.blob = blobs / file.sha256
        self.partial = blobs / f"{file.sha256}.incomplete"
        """What has arrived so far; the client counts and cleans up files of this name."""
        self.path = root() / self._folder / "snapshots" / str(entry.commit) / file.name

    def exists(self) -> bool:
        """Say whether the file is here, in this revision or, with the same hash, in another."""
        return self._pinned and (self.path.exists() or self.blob.exists())

    def arrived(self) -> int:
        """Return how many bytes an earlier download left."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def place(self) -> None:
        """Make the complete and checked download visible under its name."""
        self.partial.replace(self.blob)
        self.link()

    def discard(self) -> None:
        """Remove the file, whichever way it is stored; what lies outside the cache is not ours."""
        target = self.path.resolve()
        if target.parent == self.blob.parent.resolve():
            target.unlink(missing_ok=True)
        for path in (self.path, self.blob, self.partial):
            path.unlink(missing_ok=True)

    @contextmanager
    def reserved(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep other processes from writing this file; the client takes the same lock.

        Args:
            waiting: called again and again while another process has the file; may raise to stop.
        """
        path = root() / ".locks" / self._folder / f"{self._file.sha256}.lock"
        for folder in (path.parent, self.blob.parent, self.path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(WeakFileLock(path, timeout=_POLL_SECONDS))
                    break
                except Timeout:
                    waiting()
            yield

    def link(self) -> None:
        """Name the blob in the snapshot; without symbolic links the file moves there."""
        if self.path.exists():
            return
        self.path.unlink(missing_ok=True)  # a link that leads nowhere
        try:
            self.path.symlink_to(os.path.relpath(self.blob, self.path.parent))
        except OSError:
            self.blob.replace(self.path)


def check_space(missing: int) -> None:
    """Check that `missing` bytes fit where the cache is.

    Raises:
        TecError: they do not.
    """
    folder = next(path for path in (root(), *root().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        variable = "HF_HUB_CACHE" if "HF_HUB_CACHE" in os.environ else "HF_HOME"
        raise TecError(
            f"{_gigabytes(missing)} have still to be fetched, but only {_gigabytes(free)} are free",
            root(),
            f"free some space, or set {variable} to a folder on a larger disk",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
