"""Plant another choice of victims in the CPU back end and see whether it is found.

    python benchmarks/planted_victims.py FOLDER

A worktree of the commit checked out, in FOLDER, in which the second oldest slot is evicted instead
of the oldest; there, `tec regress --against` the commit itself, with the metrics that are compared
exactly: one round, no time is looked at. Builds twice, a few minutes each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tec.paths import CACHE, ROOT, SOURCE_CACHE

FILE = "patches/src/ggml/src/ggml-cpu/expert-cache.cpp"
OLDEST = "return std::min_element(stamp + n_pinned, stamp + n_slots) - stamp;"
SECOND = """std::vector<int64_t> stamps(stamp + n_pinned, stamp + n_slots);
        std::nth_element(stamps.begin(), stamps.begin() + 1, stamps.end());
        return std::find(stamp + n_pinned, stamp + n_slots, stamps[1]) - stamp;"""


def main() -> None:
    """Plant, build, compare; the exit status is that of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    commit = git(ROOT, "rev-parse", "HEAD")
    if not folder.exists():
        git(ROOT, "worktree", "add", "--detach", str(folder), commit)
        plant(folder)
    run(folder, "model", "pydoc-moe", "--variant", "full")
    what = ["--rows", "pydoc-moe", "--arms", "cached-c16", "--rounds", "1", "--metrics", "exact"]
    sys.exit(
        run(folder, "regress", "--against", commit, *what, "--json", str(folder / "report.json"))
    )


def plant(folder: Path) -> None:
    """Change the rule in a worktree, and let it find the pinned source."""
    file = folder / FILE
    text = file.read_text(encoding="utf-8")
    if OLDEST not in text:
        sys.exit(f"{file}: the rule is not where it was; change OLDEST in {__file__}")
    file.write_text(text.replace(OLDEST, SECOND), encoding="utf-8")
    cache = folder / CACHE.relative_to(ROOT)
    cache.mkdir(exist_ok=True)
    if SOURCE_CACHE.exists():
        (cache / SOURCE_CACHE.name).symlink_to(SOURCE_CACHE)


def run(folder: Path, *words: str) -> int:
    """Run the worktree's own `tec`."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "workflow")}
    command = [sys.executable, "-m", "tec", *words]
    return subprocess.run(command, env=environment, cwd=folder, check=False).returncode


def git(folder: Path, *words: str) -> str:
    """Run git and return what it prints."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
