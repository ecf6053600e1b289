"""The first lines of commit messages, from this project's repository."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tec.paths import ROOT

_FULL_HASH = re.compile(r"[0-9a-f]{40}")


def commit_subjects(commits: Iterable[str | None], root: Path = ROOT) -> dict[str, str]:
    """Return subject by full hash of the commits that the repository at `root` has.

    A commit it does not have (a shallow clone, another repository's), and one that was edited
    (`-dirty`) and is known without that mark, are no error: a history outlives branches.
    """
    plain = {commit.removesuffix("-dirty") for commit in commits if commit}
    wanted = sorted(commit for commit in plain if _FULL_HASH.fullmatch(commit))
    if not wanted:
        return {}
    command = ["git", "log", "--no-walk", "--ignore-missing", "--stdin", "--format=%H%x00%s"]
    try:
        done = subprocess.run(
            command, cwd=root, input="\n".join(wanted).encode(), capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return {}
    lines = done.stdout.decode(errors="replace").split("\n")
    return dict(line.split("\0", 1) for line in lines if "\0" in line)
