"""Getting the pinned llama.cpp tree, and being sure that it is the pinned one."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tec.digest import tree_digest
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.paths import SOURCE_CACHE, source_record, source_tree
from tec.pin import GitSource, Pin, SdistSource, load_pin
from tec.progress import last_words, run_logged

ATTEMPTS = 2
"""How often a download that turns out corrupt is fetched."""


def ensure_source(pin: Pin, named: Path | None = None) -> Path:
    """Return the pinned tree, fetched first if it is not here yet.

    Args:
        pin: what to get.
        named: a checkout or folder to take it from; nothing else is tried then.

    Raises:
        TecError: no source gave the tree (each with its reason), or the tree here was edited.
    """
    tree, record = source_tree(pin.digest), source_record(pin.digest)
    if tree.is_dir():
        check_tree(tree, pin)
    else:
        SOURCE_CACHE.mkdir(parents=True, exist_ok=True)
        for leftover in SOURCE_CACHE.glob(".incomplete-*"):  # of a run that was killed
            shutil.rmtree(leftover)
        print(f"llama.cpp {pin.commit[:7]} from {_fetch(pin, named, tree)}", file=sys.stderr)
        shutil.rmtree(SOURCE_CACHE / "download", ignore_errors=True)
    if not record.exists():
        content = {"commit": pin.commit, "digest": pin.digest}
        write_atomically(record, json.dumps(content, indent=2) + "\n")
    return tree


def check_tree(tree: Path, pin: Pin) -> None:
    """Raise a TecError unless `tree` has the pinned digest."""
    found = tree_digest(tree, pin.parts)
    if found != pin.digest:
        raise TecError(
            f"this is not the pinned llama.cpp tree: expected digest {pin.digest}, found {found}",
            tree,
            f"if it was edited, delete it and run again: rm -r {tree}",
        )


def _fetch(pin: Pin, named: Path | None, tree: Path) -> str:
    """Put the pinned tree at `tree` from the first source that has it; return which one it was."""
    failures = []
    for origin, stage in _ways(pin, named).items():
        try:
            with _placing(tree) as staged:
                stage(staged)
                check_tree(staged, pin)
        except TecError as error:
            failures.append(f"{origin}: {error}")
        else:
            return origin
    raise TecError(
        "no source gave the pinned llama.cpp tree\n" + "\n".join(failures),
        hint=f"name a checkout that has commit {pin.commit}: tec source --from DIR",
    )


def _ways(pin: Pin, named: Path | None) -> dict[str, Callable[[Path], None]]:
    """Return origin -> what fills a folder from it, in the order to try."""
    ways: dict[str, Callable[[Path], None]] = {}
    for source in pin.sources:
        if isinstance(source, SdistSource):
            ways[source.requirement] = partial(_extract_sdist, source, pin)
        elif isinstance(source, GitSource):
            ways[source.repository] = partial(_fetch_commit, source.repository, pin)
        elif value := os.environ.get(source.variable):
            named = named or Path(value)
    return {str(named): partial(_copy_local, named, pin)} if named else ways


@contextmanager
def _placing(tree: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `tree` when the block ends well, and is removed if not."""
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".incomplete-") as temporary:
        staged = Path(temporary, "tree")
        staged.mkdir()
        yield staged
        if not tree.exists():
            staged.rename(tree)


def fetch_sdist(source: SdistSource) -> Path:
    """Return the source distribution's file, downloaded with pip unless a good one is here.

    A corrupt file is deleted, and a corrupt download is fetched once more.
    """
    folder = SOURCE_CACHE / "download"
    folder.mkdir(parents=True, exist_ok=True)
    problem = ""
    for _ in range(ATTEMPTS):
        if file := _downloaded(source, folder):
            return file
        problem = _pip_download(source, folder)
        if file := _downloaded(source, folder):
            return file
        if "HASHES" not in problem:  # pip's word for a corrupt download; all else fails again
            break
    raise TecError(
        f"cannot get the source distribution: {problem}",
        source.requirement,
        "check the network and pip's index settings, or put the file into a folder and set "
        "PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR",
    )


def _downloaded(source: SdistSource, folder: Path) -> Path | None:
    """Return the file in `folder` that has the right hash; delete any other."""
    for file in folder.iterdir():
        if (found := sha256_file(file)) == source.sha256:
            return file
        print(f"{file.name}: sha256 {found} instead of {source.sha256}; deleted", file=sys.stderr)
        file.unlink()
    return None


def _pip_download(source: SdistSource, folder: Path) -> str:
    """Let pip put the hash-checked source distribution into `folder`; return what went wrong.

    pip reads the distribution's metadata with its build back end, which the environment has.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".incomplete-") as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
        command += ["--quiet", "--require-hashes", "-r", str(requirements), "--dest", temporary]
        label = f"downloading {source.requirement} with pip ({source.megabytes} MB)"
        result = run_logged(command, label, SOURCE_CACHE / "fetch.log")
        requirements.unlink()
        for file in Path(temporary).iterdir():
            if file.is_file():
                file.replace(folder / file.name)
    return "" if result.returncode == 0 else last_words(result.stdout)


def _extract_sdist(source: SdistSource, pin: Pin, staged: Path) -> None:
    """Extract the parts of the distribution's llama.cpp into `staged`."""
    file = fetch_sdist(source)
    with tarfile.open(file) as archive:
        _extract(archive, source.subtree, pin.parts, staged, skip_top=True)


def _extract(
    archive: tarfile.TarFile, subtree: str, parts: Sequence[str], staged: Path, skip_top: bool
) -> None:
    """Extract `parts` below `subtree` (below the archive's top folder if `skip_top`), safely."""
    if not hasattr(tarfile, "data_filter"):
        raise TecError(
            f"Python {platform.python_version()} cannot extract archives safely",
            sys.executable,
            "use Python 3.11.4 or newer: make .venv/installed PYTHON=/path/to/python3",
        )
    prefixes = tuple(f"{subtree}/{part}".lstrip("/") for part in parts)
    for member in archive:
        path = member.name.partition("/")[2] if skip_top else member.name
        if path in prefixes or path.startswith(tuple(f"{prefix}/" for prefix in prefixes)):
            member.name = path.removeprefix(f"{subtree}/")
            archive.extract(member, staged, filter="data")


def _fetch_commit(repository: str, pin: Pin, staged: Path) -> None:
    """Fetch the commit from `repository` and export its parts into `staged`."""
    with tempfile.TemporaryDirectory(dir=SOURCE_CACHE, prefix=".incomplete-") as bare:
        _git(["init", "--quiet", "--bare", bare], "preparing a git fetch")
        limits = ["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"]
        fetch = ["-C", bare, *limits, "fetch", "--quiet", "--depth=1", repository, pin.commit]
        _git(fetch, f"fetching {pin.commit[:7]} from {repository}")
        _export_commit(Path(bare), pin, staged)


def _export_commit(repository: Path, pin: Pin, staged: Path) -> None:
    """Export the commit's parts from a local repository into `staged`, bytes as committed."""
    tar = staged.with_name("export.tar")
    options = ["-c", "core.autocrlf=false", "archive", "--format=tar", "-o", str(tar)]
    _git(["-C", str(repository), *options, pin.commit, "--", *pin.parts], "exporting the commit")
    with tarfile.open(tar) as archive:
        _extract(archive, "", pin.parts, staged, skip_top=False)


def _copy_local(folder: Path, pin: Pin, staged: Path) -> None:
    """Copy the parts from the user's checkout: the commit if it is a repository, else its files."""
    if not folder.is_dir():
        raise TecError("no such folder", folder, "name a llama.cpp checkout or source folder")
    if _has_commit(folder, pin.commit):
        _export_commit(folder, pin, staged)
        return
    for part in pin.parts:
        origin = folder / part
        if origin.is_dir():
            shutil.copytree(origin, staged / part)
        elif origin.is_file():
            shutil.copy(origin, staged / part)
        else:
            raise TecError(f"no '{part}' in it", folder, "name a complete llama.cpp folder")


def _has_commit(folder: Path, commit: str) -> bool:
    """Say whether `folder` is the top of a git checkout that has the commit."""
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return False
    command = ["git", "-C", str(folder), "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _git(arguments: Sequence[str], label: str) -> None:
    """Run git; raise a TecError with its last words when it fails."""
    if shutil.which("git") is None:
        raise TecError("git is missing", hint="install git and run again")
    environment = {"GIT_TERMINAL_PROMPT": "0"}
    result = run_logged(["git", *arguments], label, SOURCE_CACHE / "fetch.log", environment)
    if result.returncode != 0:
        raise TecError(f"{label} failed: {last_words(result.stdout)}")


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec source`."""
    parser = sub.add_parser("source", help="get the pinned llama.cpp source")
    parser.add_argument(
        "--from",
        dest="named",
        type=Path,
        metavar="DIR",
        help="a llama.cpp checkout to take it from",
    )
    parser.set_defaults(run=lambda options: print(ensure_source(load_pin(), options.named)))
