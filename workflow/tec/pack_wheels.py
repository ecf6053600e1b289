"""Wheels for another machine: fetched with pip, checked by hash, kept for the next pack."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import parse_wheel_filename
from packaging.version import Version

from tec.errors import TecError
from tec.files import sha256_file
from tec.pack_archive import check_space
from tec.pack_lock import Locked, requirement_line
from tec.pack_manifest import REQUIREMENTS
from tec.pack_target import PackTarget
from tec.progress import last_words, run_logged

EXPECTED_BYTES = 500_000_000
"""What a target's wheels take while they are fetched, and a little more."""
SAME_TIME = "315532800"
"""1980, the first year that a wheel can hold; what is built here is the same bytes every time."""

_PIP = (sys.executable, "-m", "pip")
_SAME_MODES = ("sh", "-c", 'umask 022 && exec "$@"', "sh")
"""What is built holds the modes that new files get."""
_QUIET = ("--disable-pip-version-check", "--no-input", "--progress-bar=off", "--no-deps")
_UNAVAILABLE = re.compile(r"No matching distribution found for ([\w.-]+==\S+)")


def ensure_wheels(locked: Sequence[Locked], target: PackTarget, cache: Path) -> Path:
    """Return a folder with one wheel for each package, and the file `wheels.lock` that lists them.

    The folder is complete or absent; one from before is used if its files are still right.

    Args:
        locked: the packages.
        target: where they are going to be installed.
        cache: holds a folder for each lock and target.

    Raises:
        TecError: a package has no wheel for the target, pip cannot get it, or there is no room.
    """
    lines = [entry.line() for entry in locked]
    key = hashlib.sha256("\n".join([target.python, target.platform, *lines]).encode()).hexdigest()
    folder = cache / f"wheels-{target.python}-{target.platform}-{key[:12]}"
    if not _whole(folder):
        cache.mkdir(parents=True, exist_ok=True)
        check_space(cache, EXPECTED_BYTES, "fetching the wheels")
        with tempfile.TemporaryDirectory(dir=cache, prefix=".incomplete-") as temporary:
            staged = Path(temporary, "wheels")
            staged.mkdir()
            _download(locked, target, staged, cache / "fetch.log")
            built = _build_wheels(staged, cache / "build.log")
            _write_lock(staged, locked, built)
            for outdated in cache.glob(f"wheels-{target.python}-{target.platform}-*"):
                shutil.rmtree(outdated)
            staged.rename(folder)
    return folder


def _whole(folder: Path) -> bool:
    """Say whether the folder has the files that its `wheels.lock` names, and no other."""
    listing = folder / REQUIREMENTS
    if not listing.is_file():
        return False
    expected = sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", listing.read_text()))
    return sorted(sha256_file(file) for file in folder.glob("*.whl")) == expected


def _download(locked: Sequence[Locked], target: PackTarget, folder: Path, log: Path) -> None:
    """Let pip put the packages' files into `folder`, checked by hash.

    A package that is one file in the lock may be a source distribution; all others have to be
    wheels, because nothing is compiled here for the target.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{entry.line()}\n" for entry in locked))
    wheels = [entry.name for entry in locked if len(entry.hashes) > 1]
    command = [*_PIP, "download", *_QUIET, "--no-build-isolation", "--require-hashes"]
    command += [f"--only-binary={','.join(wheels)}"] if wheels else []
    command += ["--implementation=cp", f"--python-version={target.python}"]
    command += [f"--platform={tag}" for tag in target.platforms()]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    label = f"fetching {len(locked)} packages for Python {target.python}, {target.platform}"
    result = run_logged(command, label, log)
    if result.returncode != 0:
        raise _explain(result.stdout, target, log)
    requirements.unlink()


def _explain(output: str, target: PackTarget, log: Path) -> TecError:
    """Return why pip could not fetch everything, and the next step."""
    if found := _UNAVAILABLE.search(output):
        return TecError(
            f"there is no wheel of {found[1]} for Python {target.python} on {target.platform}, or "
            "pip's index does not answer",
            f"full log: {log}",
            "name another --python, or a newer --platform such as manylinux_2_34_x86_64; check "
            "the network and pip's index settings",
        )
    return TecError(
        f"pip cannot fetch the packages: {last_words(output)}",
        f"full log: {log}",
        "check the network and pip's index settings, or name a folder of wheels: "
        "PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR",
    )


def _build_wheels(folder: Path, log: Path) -> dict[str, str]:
    """Make wheels of the source distributions in `folder`; return wheel's -> source's file name.

    Raises:
        TecError: one cannot be built, or only for this machine.
    """
    built: dict[str, str] = {}
    for source in sorted(path for path in folder.iterdir() if path.suffix != ".whl"):
        before = set(folder.glob("*.whl"))
        command = [
            *_SAME_MODES,
            *_PIP,
            "wheel",
            *_QUIET,
            "--no-build-isolation",
            "--no-index",
            "--no-cache-dir",
        ]
        command += ["--wheel-dir", str(folder), str(source)]
        label = f"making a wheel of {source.name}"
        result = run_logged(command, label, log, {"SOURCE_DATE_EPOCH": SAME_TIME})
        if result.returncode != 0:
            raise TecError(
                f"no wheel can be made of {source.name}: {last_words(result.stdout)}",
                f"full log: {log}",
                "read the log",
            )
        (wheel,) = set(folder.glob("*.whl")) - before
        if not wheel.name.endswith("-none-any.whl"):
            raise TecError(
                f"{source.name} has to be compiled, so its wheel {wheel.name} is for this machine "
                "only",
                hint="pin a version that has wheels, in pyproject.toml: make lock",
            )
        built[wheel.name] = source.name
        source.unlink()
    return built


def _write_lock(folder: Path, locked: Sequence[Locked], built: Mapping[str, str]) -> None:
    """Write `wheels.lock`: each package with the hash of its file, in the order of the names.

    Raises:
        TecError: a package has no file, or one that the lock does not have.
    """
    wanted = {(entry.name, str(Version(entry.version))): entry for entry in locked}
    lines = []
    for file in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(file.name)
        entry = wanted.pop((name, str(version)), None)
        found = sha256_file(file)
        if entry is None or (found not in entry.hashes and file.name not in built):
            raise TecError("the lock file does not have this file", file.name, "read the lock file")
        note = f"  # made from {built[file.name]}" if file.name in built else ""
        lines.append(requirement_line(entry.name, entry.version, [found]) + note)
    if wanted:
        names = ", ".join(name for name, _ in wanted)
        raise TecError(f"pip has not fetched {names}", folder, "run again")
    (folder / REQUIREMENTS).write_text("\n".join(lines) + "\n")
