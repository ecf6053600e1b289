"""What miniatures and replicas share: models that are made, named by what decides their bytes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tec.miniature_key import KEY_DIGITS
from tec.run_lock import hold


@contextmanager
def scratch_folder(folder: Path, row: str, doing: str) -> Iterator[Path]:
    """Yield an empty folder for a row's unfinished files; it is removed afterwards.

    Args:
        folder: where the row's models are kept. It is held for the row meanwhile.
        row: the row's name.
        doing: said to others who want to make the row's model.
    """
    lock = hold(folder / f".{row}.lock", doing)
    scratch = folder / f".{row}"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def remove_others(name: str, path: Path) -> None:
    """Remove the models of earlier recipes and engines, for the room they take.

    Args:
        name: what their file names begin with.
        path: the one that stays, with the files beside it.
    """
    ours = re.compile(rf"{re.escape(name)}-[0-9a-f]{{{KEY_DIGITS}}}\.")
    for other in path.parent.iterdir():
        if ours.match(other.name) and not other.name.startswith(path.stem):
            other.unlink()
