"""`tec` on a machine of its own: rows, lock file and cache below a given folder, short waits.

    python tests/hub_fetch.py FOLDER fetch ROW...

The client reads its variables when it is imported, so every run is a process.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tec import paths


def main(folder: Path, arguments: list[str]) -> int:
    """Run `tec` with the folders of the repository replaced by those below `folder`."""
    paths.MODELS = folder / "models"
    paths.HUB_LOCK = folder / "hub.lock.json"
    paths.CACHE = folder / "cache"
    paths.MODEL_CACHE = paths.CACHE / "models"
    paths.VERIFIED = paths.MODEL_CACHE / "verified.json"
    from tec import cli, hub_retry  # they take the paths when they are imported

    hub_retry.FIRST_WAIT = 0.01
    hub_retry.LONGEST_WAIT = 5.0
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
