"""The manifest of a build that was made by hand, with cmake alone.

    tec build TARGET --adopt FOLDER

The folder is cmake's; its `bin` has the programs. The source that cmake's cache names has to be the
pinned one with the series of this repository, still as it was when it was compiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tec.build import Manifest, cmake_arguments, describe
from tec.errors import TecError
from tec.files import write_atomically
from tec.patches import check_patched
from tec.paths import PATCHED_TREE
from tec.pin import load_pin

_NEEDED = "llama-expert-bench"


def record(folder: Path, target: str) -> Manifest:
    """Return the manifest of the build in `folder`.

    Raises:
        TecError: the measuring program is not there, or it was built from another source.
    """
    folder = folder.resolve()
    programs = folder / "bin"
    if not (programs / _NEEDED).is_file():
        raise TecError(
            f"there is no {_NEEDED}", programs, f"cmake --build {folder} --target {_NEEDED}"
        )
    cache = _cache(folder)
    made = (path for path in programs.glob("llama-*") if path.is_file() and not path.is_symlink())
    return describe(
        folder,
        target,
        series_hash=_checked_source(folder, cache),
        arguments=_arguments(cache, target),
        programs=sorted(path.name for path in made),
        by_hand=True,
    )


def adopt(folder: Path, target: str, manifest: Path) -> Manifest:
    """Write the manifest of the build in `folder`, and return it; the errors are those of `record`.

    Args:
        folder: cmake's.
        target: one of `tec.config.TARGETS`.
        manifest: JSON file.
    """
    made = record(folder, target)
    write_atomically(manifest, made.model_dump_json(indent=2) + "\n")
    return made


def _checked_source(folder: Path, cache: Mapping[str, str]) -> str:
    """Return the hash of the series that is on the source of a build, which its cache names.

    Raises:
        TecError: the source is not the pinned one with the series; it is gone, or not known; or
            the build is not for release.
    """
    named = cache.get("CMAKE_HOME_DIRECTORY")
    options = "-DCMAKE_BUILD_TYPE=Release"
    hint = f"tec patches apply; cmake -S {PATCHED_TREE} -B {folder} {options} again, and build"
    if (kind := cache.get("CMAKE_BUILD_TYPE")) != "Release":
        raise TecError(f"the build is of type '{kind}', not Release", folder, hint)
    if named is None or not Path(named).is_dir():
        what = (
            "does not say which source it is of" if named is None else f"is of {named}, no folder"
        )
        raise TecError(f"the build {what}", folder / "CMakeCache.txt", hint)
    try:
        return check_patched(Path(named))
    except TecError as error:
        raise TecError(
            f"the build is not of the pinned llama.cpp with this series: {error.what}", named, hint
        ) from error


def _arguments(cache: Mapping[str, str], target: str) -> list[str]:
    """Return the options of `tec build` with the values that cmake's cache has for them."""
    ours = cmake_arguments(target, load_pin().commit)
    names = [word.removeprefix("-D").partition("=")[0] for word in ours]
    return [f"-D{name}={cache[name]}" for name in names if name in cache]


def _cache(folder: Path) -> dict[str, str]:
    """Return what cmake's cache says."""
    cache = folder / "CMakeCache.txt"
    text = cache.read_text(encoding="utf-8") if cache.is_file() else ""
    return dict(re.findall(r"^(\w+):\w+=(.*)$", text, re.MULTILINE))
