"""Documents of an earlier run that covered more than this one: beside new tables they mislead."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from tec.figures import FIGURES, SUFFIXES
from tec.tables import CALIBRATION_TABLES, LOCALITY_TABLES, POLICY_TABLES


def remove(results: Path, made: Collection[str]) -> None:
    """Remove the documents that the pipeline can make and this run does not; say so in one line.

    They come back from the kept records when a run covers them again.

    Args:
        results: the study's folder.
        made: the files that this run makes.
    """
    removed = [path for path in _documents(results) if str(path) not in made and path.is_file()]
    for path in removed:
        path.unlink()
    if removed:
        names = ", ".join(str(path.relative_to(results)) for path in removed)
        print(
            f"removed from {results} what this run does not cover (a run that does makes it again "
            f"from the kept records): {names}",
            file=sys.stderr,
        )


def _documents(results: Path) -> Iterator[Path]:
    """Yield figures, paper, claims, and the tables that not every run of a study has."""
    for figure in FIGURES:
        yield from (results / "figures" / f"{figure}{suffix}" for suffix in SUFFIXES)
    yield from (results / name for name in ("paper.pdf", "claims.json"))
    for table in (*LOCALITY_TABLES, *CALIBRATION_TABLES, *POLICY_TABLES):
        yield from (results / "tables" / f"{table}.{suffix}" for suffix in ("csv", "md", "tex"))
