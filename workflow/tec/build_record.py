"""The manifest of a build that was made by hand, with cmake alone.

    python3 -m tec.build_record BUILD_FOLDER TARGET --out MANIFEST

The folder is cmake's; its `bin` has the programs. What they were built from is taken to be the
pinned source with the series of this repository: the caller answers for that.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tec.build import Binary, Manifest, cmake_arguments, compiler
from tec.config import TARGETS
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.patches import load_series
from tec.pin import load_pin

_NEEDED = "llama-expert-bench"


def record(folder: Path, target: str) -> Manifest:
    """Return the manifest of the build in `folder`.

    Raises:
        TecError: the measuring program is not there.
    """
    programs = folder / "bin"
    if not (programs / _NEEDED).is_file():
        raise TecError(
            f"there is no {_NEEDED}", programs, f"cmake --build {folder} --target {_NEEDED}"
        )
    pin = load_pin()
    files = [path for path in sorted(programs.iterdir()) if path.is_file()]
    made = {
        path.name: Binary(path=path.relative_to(folder), sha256=sha256_file(path))
        for path in files
        if not path.is_symlink()
    }
    return Manifest(
        target=target,
        commit=pin.commit,
        digest=pin.digest,
        series_hash=load_series().hash(pin.digest),
        build_type="Release",
        compiler=compiler(folder, "CXX") or "unknown",
        cuda=compiler(folder, "CUDA"),
        cmake_args=_arguments(folder, target, pin.commit),
        bin_dir=programs.resolve(),
        binaries={name: file for name, file in made.items() if name.startswith("llama-")},
        libraries={name: file for name, file in made.items() if name.startswith("lib")},
        seconds=0,
    )


def _arguments(folder: Path, target: str, commit: str) -> list[str]:
    """Return the options of `tec build` with the values that cmake's cache has for them."""
    cache = folder / "CMakeCache.txt"
    text = cache.read_text(encoding="utf-8") if cache.is_file() else ""
    found = dict(re.findall(r"^(\w+):\w+=(.*)$", text, re.MULTILINE))
    names = [word.removeprefix("-D").partition("=")[0] for word in cmake_arguments(target, commit)]
    return [f"-D{name}={found[name]}" for name in names if name in found]


def main() -> None:
    """Write the manifest of a build that was made by hand."""
    parser = argparse.ArgumentParser(prog="python -m tec.build_record", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        made = record(options.folder, options.target)
    except TecError as error:
        sys.exit(f"error: {error}")
    write_atomically(options.out, made.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
