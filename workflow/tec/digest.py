"""One digest for a tree of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tec.files import sha256_file


def regular_files(root: Path, parts: Iterable[str] = (".",)) -> Iterator[str]:
    """Yield the POSIX paths, relative to `root`, of the regular files in `parts`.

    A part is a file or a folder. Symbolic links are not followed and not yielded.
    """
    for part in parts:
        start = root / part
        if start.is_file():
            yield part
        for folder, _, names in os.walk(start):
            for path in (Path(folder, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(root).as_posix()


def tree_digest(root: Path, parts: Iterable[str] = (".",)) -> str:
    """Return the SHA-256, in hex, of what `sha256sum` prints for the sorted files in `parts`.

    Paths and contents count; modes, times, links and empty folders do not, because archives, git
    checkouts and copies keep those differently.
    """
    listing = hashlib.sha256()
    for path in sorted(regular_files(root, parts), key=os.fsencode):
        listing.update(f"{sha256_file(root / path)}  {path}\n".encode())
    return listing.hexdigest()
