"""Another revision of this project, built beside the present one.

It has a git worktree of its own under `.cache/against`, with its own patched tree and build folder,
and is built by its own `tec build`. The pinned source is shared where the pin is the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tec.build import Manifest, load_manifest
from tec.errors import TecError
from tec.paths import CACHE, ROOT, SOURCE_CACHE, build_manifest
from tec.progress import last_words, run_logged
from tec.run_lock import hold

WORKTREES = CACHE / "against"


def commit_of(revision: str) -> str:
    """Return the commit that a revision names; a TecError if there is none."""
    done = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode != 0:
        raise TecError(
            f"there is no revision '{revision}'",
            ROOT,
            "name a commit, branch or tag that git log shows (CI: fetch the whole history)",
        )
    return done.stdout.strip()


def build_revision(commit: str, target: str, jobs: int) -> Manifest:
    """Return the build of a commit for a target, made if need be; an interrupted one continues.

    Raises:
        TecError: git or the build failed; says where its log is.
    """
    tree = WORKTREES / commit[:12]
    lock = hold(tree.with_suffix(".lock"), f"building {commit[:12]}")
    try:
        if not (tree / ".git").exists():
            _check_out(tree, commit)
        _share_source(tree)
        _build(tree, commit, target, jobs, lock)
    finally:
        os.close(lock)
    return load_manifest(tree / build_manifest(target).relative_to(ROOT))


def _check_out(tree: Path, commit: str) -> None:
    """Make a worktree; what git remembers of one that was deleted is forgotten first."""
    _git("worktree", "prune")
    done = _git("worktree", "add", "--detach", "--force", str(tree), commit)
    if done.returncode != 0:
        raise TecError(
            f"git made no worktree of {commit[:12]}: {last_words(done.stderr)}",
            tree,
            "move that folder away and run again",
        )


def _share_source(tree: Path) -> None:
    """Let a worktree find the pinned source that is here; it is known by its digest."""
    theirs = tree / SOURCE_CACHE.relative_to(ROOT)
    SOURCE_CACHE.mkdir(parents=True, exist_ok=True)
    if not theirs.exists():
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.symlink_to(SOURCE_CACHE)


def _build(tree: Path, commit: str, target: str, jobs: int, lock: int) -> None:
    command = [sys.executable, "-m", "tec", "build", target, "--jobs", str(jobs)]
    environment = {"PYTHONPATH": str(tree / "workflow")}
    log = tree / CACHE.relative_to(ROOT) / "against.log"
    label = f"building {commit[:12]} for {target}"
    result = run_logged(command, label, log, environment, hold=[lock])
    if result.returncode != 0:
        raise TecError(
            f"{label} failed: {last_words(result.stdout)}",
            f"full log: {log}",
            "name a revision that builds here; what is built already is kept",
        )


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise TecError("git is missing", hint="install git and run again") from None
