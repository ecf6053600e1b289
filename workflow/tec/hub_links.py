"""The files of a row on the hub, under names that are the same on every machine.

Records and commands name a model by its path. The hub's cache and a user's own folders lie
somewhere else on each machine, so the repository's own cache has links to the files, and these are
what is named.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tec.errors import TecError
from tec.gguf_file import Part
from tec.paths import MODEL_FILES, relative

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without symbolic links answers."""


def linked(row: str, parts: Sequence[Part]) -> list[Part]:
    """Return the parts by their links, with paths relative to the root.

    The links lie in one folder under the files' own names: llama.cpp finds the parts of a split
    model beside the first. Where the file system has no links the parts come back as they are.

    Raises:
        TecError: a link cannot be made.
    """
    folder = MODEL_FILES / row
    try:
        return [_linked(folder, part) for part in parts]
    except OSError as error:
        if error.errno in _NO_LINKS:
            print(
                f"warning: {relative(folder)} cannot have links: records of {row} will name its "
                "files by their paths on this machine",
                file=sys.stderr,
            )
            return list(parts)
        raise TecError(
            f"cannot link the files of row {row}: {error.strerror}",
            folder,
            "make the folder writable, or remove what is in its place",
        ) from error


def _linked(folder: Path, part: Part) -> Part:
    # resolved, because a folder of local files may be this one, and a link must not lead to itself
    target = Path(part.path).resolve()
    link = folder / Path(part.path).name  # the target has another name in the hub's cache
    if link.resolve() == target:
        return part.model_copy(update={"path": relative(link)})
    if link.exists() and not link.is_symlink():
        raise TecError("a file lies where a link belongs", link, "move it to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # left by a process that was killed
    try:
        temporary.symlink_to(target)
        temporary.replace(link)
    finally:
        temporary.unlink(missing_ok=True)
    return part.model_copy(update={"path": relative(link)})
