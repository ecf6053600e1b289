"""The start of a study from an unpacked pack, on a machine without network; see `tec.pack`.

The pack's launcher `run` calls this with the right Python, before there is an environment: only
the standard library is imported. What was unpacked is checked once; then make does everything, with
pip, the sources and the hub turned to what is in the pack.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.pack_manifest import (
    LLAMA_CPP,
    MANIFEST,
    MODELS,
    PROJECT,
    REQUIREMENTS,
    WHEELS,
    Manifest,
    check_members,
    read_manifest,
)
from tec.progress import Progress

PACK = Path(__file__).resolve().parents[3]
"""Of which this file is project/workflow/tec/unpacked.py."""

CHECKED = ".checked"
"""In the pack, the SHA-256 of the manifest for which everything was found whole."""

USAGE = """usage: ./run [STUDY] [NAME=VALUE ...]    run a study; the values go to make
       ./run --check                     check again that every file of the pack is whole"""


def main(words: Sequence[str]) -> int:
    """Run what the command line asks for; return only if that is over or went wrong."""
    try:
        if "-h" in words or "--help" in words:
            print(USAGE)
            return 0
        manifest = read_manifest(PACK)
        check_machine(manifest)
        check_once(PACK, manifest, again="--check" in words)
        if "--check" in words:
            return 0
        command = make_command(manifest, words)
        os.execve(command[0], command, environment(PACK, os.environ))  # noqa: S606
    except TecError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {TecError(error.strerror or str(error), error.filename)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130
    return 2


def check_machine(manifest: Manifest) -> None:
    """Check that the packed wheels are for this machine and its Python.

    Raises:
        TecError: they are not; says for which they are, and how to pack for this one.
    """
    libc, version = platform.libc_ver()
    here = {
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "system": sys.platform,
        "processor": platform.machine(),
    }
    wanted = {
        "Python": manifest.python,
        "system": manifest.system,
        "processor": manifest.machine,
    }
    for what, value in wanted.items():
        if here[what] != value:
            raise TecError(
                f"this pack is for {what} {value}; here it is {here[what]}",
                sys.executable if what == "Python" else None,
                _pack_again(what == "Python", value),
            )
    if manifest.glibc and libc == "glibc" and _numbers(version) < _numbers(manifest.glibc):
        raise TecError(
            f"this pack needs glibc {manifest.glibc} or newer; this machine has {version}",
            hint=f"run it on a newer system, or pack for this one: tec pack --platform "
            f"manylinux_{version.replace('.', '_')}_{manifest.machine}",
        )


def _pack_again(python: bool, value: str) -> str:
    """Say what to do about a pack that is for another Python or another machine."""
    where = "where the network is"
    if not python:
        return f"pack for this machine, {where}: tec pack --platform TAG (tec pack --help)"
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"PYTHON=/path/to/python{value} ./run; or pack for this one, {where}: "
        f"tec pack --python {here}"
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def check_once(pack: Path, manifest: Manifest, again: bool = False) -> None:
    """Check every member unless that was done before; the project may be edited afterwards.

    Raises:
        TecError: some are damaged.
    """
    stamp, identity = pack / CHECKED, sha256_file(pack / MANIFEST)
    if not again and stamp.is_file() and stamp.read_text() == identity:
        return
    stamp.unlink(missing_ok=True)  # whatever is found from here on, it is not known to be whole
    progress = Progress(f"checking the pack ({len(manifest.members)} files)")
    try:
        check_members(pack, manifest.members, progress.update)
    except TecError:
        progress.finish("failed")
        raise
    write_atomically(stamp, identity)
    progress.finish("whole")


def make_command(manifest: Manifest, words: Sequence[str]) -> list[str]:
    """Return the program and arguments that run a study.

    Raises:
        TecError: make is missing, or a word is neither a study nor NAME=VALUE.
    """
    make = shutil.which("make")
    if make is None:
        raise TecError("make is missing", hint="install make and run again")
    studies = [word for word in words if "=" not in word]
    values = [word for word in words if "=" in word]
    if len(studies) > 1 or any(word.startswith("-") for word in studies):
        raise TecError(f"cannot read '{' '.join(words)}'", "./run", USAGE)
    study = studies[0] if studies else manifest.study
    fixed = {"STUDY": study, "PYTHON": sys.executable, "REQUIREMENTS": f"../{REQUIREMENTS}"}
    settings = [f"{name}={value}" for name, value in fixed.items()]
    return [make, "-C", str(PACK / PROJECT), "all", *settings, *values]


def environment(pack: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for make: nothing that it starts asks the network.

    pip's settings of this machine do not count, and packages on PYTHONPATH are not used.
    """
    kept = {
        name: value
        for name, value in given.items()
        if not name.startswith("PIP_") and name not in ("PYTHONPATH", "PYTHONHOME")
    }
    fixed = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": f"../{WHEELS}",  # relative to the project: pip splits at spaces
        "TEC_LLAMA_CPP_DIR": str(pack / LLAMA_CPP),
        "HF_HUB_OFFLINE": "1",
    }
    if (pack / MODELS).is_dir():
        kept.setdefault("TEC_MODELS", str(pack / MODELS))
    return kept | fixed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
