"""The patched llama.cpp tree: pinned source, plus patches/src, plus the patches of patches/series.

There is one working tree. It is brought to the wanted state file by file, by content, so that a
file that did not change keeps its time and is not compiled again.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tec.digest import regular_files
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.paths import PATCHED_SERIES, PATCHED_TREE, PATCHES
from tec.pin import load_pin
from tec.source import check_tree, ensure_source

_FAILED = re.compile(r"^error: patch failed: (?P<file>.+):(?P<line>\d+)$", re.MULTILINE)
_HUNK = re.compile(r"^@@ -(?P<line>\d+)[, ].*$")


@dataclass(frozen=True)
class Series:
    """The project's changes to llama.cpp.

    Attributes:
        folder: where `series`, the patches and `src/` are.
        patches: file names, in the order they apply.
        sources: new files, as paths in the llama.cpp tree.
    """

    folder: Path
    patches: Sequence[str]
    sources: Sequence[str]

    @property
    def files(self) -> list[Path]:
        """Every file the patched tree is made from, besides the pinned source."""
        own = [self.folder / "src" / path for path in self.sources]
        return [self.folder / "series", *(self.folder / name for name in self.patches), *own]

    def hash(self, pin_digest: str) -> str:
        """Return the SHA-256, in hex, of everything that decides the patched tree's content."""
        content = hashlib.sha256(f"{pin_digest}\n".encode())
        for file in self.files:
            line = f"{sha256_file(file)}  {file.relative_to(self.folder).as_posix()}\n"
            content.update(line.encode())
        return content.hexdigest()


def load_series(folder: Path = PATCHES) -> Series:
    """Read `folder`/series: one patch name a line, `#` starts a comment.

    Raises:
        TecError: a listed patch is missing, or a patch is there that the series does not list.
    """
    index = folder / "series"
    lines = index.read_text().splitlines() if index.exists() else []
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    present = {path.name for path in folder.glob("*.patch")}
    for name in names:
        if name not in present:
            raise TecError(f"patch '{name}' is missing", index, "add the file or remove the line")
    for name in sorted(present.difference(names)):
        raise TecError(f"patch '{name}' is not in the series", index, "list it or delete it")
    return Series(folder, tuple(names), tuple(sorted(regular_files(folder / "src"))))


def ensure_patched(tree: Path = PATCHED_TREE, record: Path = PATCHED_SERIES) -> str:
    """Bring the working tree to the current series; return the series' hash.

    `record` names the series the tree holds. It is removed before the first change and written
    after the last, so an interrupted run is simply repeated.
    """
    pin, series = load_pin(), load_series()
    wanted = series.hash(pin.digest)
    pristine = ensure_source(pin)
    with tempfile.TemporaryDirectory() as temporary:
        changed = stage(series, pristine, Path(temporary))
        sync(pristine, changed, tree, record)
    if not record.exists() or record.read_text() != wanted:
        write_atomically(record, wanted)
    return wanted


def stage(series: Series, pristine: Path, staging: Path) -> dict[str, Path]:
    """Make every file that differs from the pinned tree in `staging`; return path -> made file.

    Raises:
        TecError: a new file is already upstream, or a patch does not apply (file and hunk named).
    """
    for path in series.sources:
        if (pristine / path).exists():
            raise TecError(
                f"'{path}' is in the pinned llama.cpp already",
                series.folder / "src",
                "rename the new file, or change the existing one with a patch",
            )
        _copy(series.folder / "src" / path, staging / path)
    for name in series.patches:
        patch = series.folder / name
        for path in patched_paths(patch):
            if (pristine / path).exists() and not (staging / path).exists():
                _copy(pristine / path, staging / path)
        apply_patch(patch, staging)
    return {path: staging / path for path in regular_files(staging)}


def sync(pristine: Path, changed: Mapping[str, Path], tree: Path, record: Path) -> None:
    """Make `tree` the pinned tree with `changed` on top, touching only files that differ.

    `record` is removed before the first change, if there is one.
    """
    wanted = {path: pristine / path for path in regular_files(pristine)} | dict(changed)
    surplus = set(regular_files(tree)).difference(wanted)
    outdated = [path for path, origin in wanted.items() if not _same(origin, tree / path)]
    if surplus or outdated:
        record.unlink(missing_ok=True)
    for path in surplus:
        (tree / path).unlink()
    for path in outdated:
        _copy(wanted[path], tree / path)


def apply_patch(patch: Path, root: Path, reverse: bool = False) -> None:
    """Apply `patch` to the files below `root`, all of it or nothing.

    Raises:
        TecError: it does not apply; names the file and the hunk.
    """
    result = _git_apply(patch, root, ["--reverse"] if reverse else [])
    if result.returncode != 0:
        raise TecError(
            _explain(patch, result.stderr),
            patch,
            "the patch was made for another llama.cpp tree or series: make it again",
        )


def patched_paths(patch: Path) -> list[str]:
    """Return the files a patch changes, as paths in the tree."""
    result = _git_apply(patch, patch.parent, ["--numstat", "-z"])
    if result.returncode != 0:
        raise TecError(f"not a patch: {result.stderr.strip()}", patch, "make the patch again")
    return [entry.split("\t")[2] for entry in result.stdout.split("\0") if entry]


def _git_apply(patch: Path, root: Path, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `git apply` in `root` as if no repository were around it."""
    if shutil.which("git") is None:
        raise TecError("git is missing; it applies the patches", hint="install git and run again")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(root.resolve().parent)
    return subprocess.run(
        ["git", "apply", "--whitespace=nowarn", *options, str(patch.resolve())],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _explain(patch: Path, message: str) -> str:
    """Return which file and hunk git could not apply, or git's own words."""
    if not (failed := _FAILED.search(message)):
        return f"the patch does not apply: {message.strip()}"
    file, line = failed["file"], failed["line"]
    return f"the patch does not apply to {file}, hunk {_hunk_header(patch, file, line)}"


def _hunk_header(patch: Path, file: str, line: str) -> str:
    """Return the header of the hunk that starts at `line` of `file`."""
    current = ""
    for text in patch.read_text(encoding="utf-8", errors="replace").splitlines():
        if text.startswith(("--- ", "+++ ")):
            current = text.partition("/")[2]
        elif (hunk := _HUNK.match(text)) and current == file and hunk["line"] == line:
            return text
    return f"at line {line}"


def _same(first: Path, second: Path) -> bool:
    """Say whether both files exist with the same content."""
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


def _copy(origin: Path, target: Path) -> None:
    """Copy content and mode, with a new time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(origin, target)


def check(series: Series, pristine: Path) -> None:
    """Apply the series and take it back; raise a TecError unless that gives the pinned files."""
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary)
        stage(series, pristine, staging)
        for name in reversed(series.patches):
            apply_patch(series.folder / name, staging, reverse=True)
        for path in set(regular_files(staging)).difference(series.sources):
            if not _same(pristine / path, staging / path):
                raise TecError(f"taking the series back does not restore {path}", series.folder)
    print(f"{len(series.patches)} patches and {len(series.sources)} new files apply and come off")


def check_patched(tree: Path) -> str:
    """Return the hash of the series if `tree` is the pinned tree with the series on it.

    No other copy of the source is needed: the series is taken off a copy of the tree, which has to
    have the pinned digest then.

    Raises:
        TecError: it is another tree, or another series is on it.
    """
    pin, series = load_pin(), load_series()
    for path in series.sources:
        if not _same(series.folder / "src" / path, tree / path):
            raise TecError(f"'{path}' is not the file of patches/src", tree)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for path in set(regular_files(tree, pin.parts)).difference(series.sources):
            _copy(tree / path, copy / path)
        for name in reversed(series.patches):
            apply_patch(series.folder / name, copy, reverse=True)
        check_tree(copy, pin)
    return series.hash(pin.digest)


def revert(tree: Path = PATCHED_TREE, record: Path = PATCHED_SERIES) -> None:
    """Make the working tree the pinned one again, checked by its digest."""
    pin = load_pin()
    sync(ensure_source(pin), {}, tree, record)
    check_tree(tree, pin)


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec patches`."""
    parser = sub.add_parser("patches", help="apply, revert or check the llama.cpp patches")
    parser.add_argument("action", choices=["apply", "revert", "check"])
    parser.set_defaults(run=lambda options: _run(options.action))


def _run(action: str) -> None:
    if action == "check":
        check(load_series(), ensure_source(load_pin()))
    elif action == "revert":
        revert()
    else:
        print(f"{PATCHED_TREE} has series {ensure_patched()[:12]}")
