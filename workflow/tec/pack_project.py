"""The project at a commit, as a pack has it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tec.errors import TecError
from tec.progress import last_words


@dataclass(frozen=True)
class Checkout:
    """A git checkout of this project.

    Attributes:
        root: its top folder.
    """

    root: Path

    def commit(self, revision: str = "HEAD") -> str:
        """Return the hash of a commit.

        Raises:
            TecError: this is no checkout, git is missing, or there is no such commit.
        """
        if not (self.root / ".git").exists():
            raise TecError(
                "this copy of the project is not a git checkout, so there is no commit to pack",
                self.root,
                "clone the project and pack there; a pack can be copied on as it is",
            )
        found = self._run("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if found.returncode != 0:
            raise TecError(f"there is no commit '{revision}'", self.root, "see git log")
        return found.stdout.strip()

    def seconds(self, commit: str) -> int:
        """Return when the commit was made, in seconds since 1970."""
        return int(self._git("show", "--no-patch", "--format=%ct", commit))

    def uncommitted(self, besides: Path) -> list[str]:
        """Return the files that are changed or not under version control, with git's marks.

        Args:
            besides: a file that does not count.
        """
        status = self._git("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
        lines = [line for line in status.split("\0") if line]
        return [line for line in lines if (self.root / line[3:]).resolve() != besides.resolve()]

    def check_committed(self, besides: Path) -> None:
        """Check that the last commit is all there is to pack.

        Raises:
            TecError: it is not; names files.
        """
        if lines := self.uncommitted(besides):
            shown = "\n".join(f"  {line}" for line in lines[:5])
            more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
            raise TecError(
                f"a pack holds a commit, and these changes are in none:\n{shown}{more}",
                hint="commit them (or have git ignore them), or leave them out: "
                "tec pack --commit HEAD ...",
            )

    def export(self, commit: str, folder: Path) -> None:
        """Write the commit's files to `folder`, bytes as committed."""
        archive = folder.with_name("project.tar")
        options = ["--format=tar", f"--output={archive.resolve()}"]
        self._git("-c", "core.autocrlf=false", "archive", *options, commit)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()

    def _git(self, *arguments: str) -> str:
        """Return what git prints; raise a TecError with its last words when it fails."""
        result = self._run(*arguments)
        if result.returncode != 0:
            words = last_words(result.stderr)
            raise TecError(f"git {' '.join(arguments)} failed: {words}", self.root)
        return result.stdout

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if shutil.which("git") is None:
            raise TecError("git is missing", hint="install git and run again")
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)
