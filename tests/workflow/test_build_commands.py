"""The shorter build leaves alone how whatever computes is compiled."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tec.build import SHORTER, cmake_arguments, tool
from tec.paths import PATCHED_TREE
from tec.pin import load_pin

SHORTENED = {"llama-common", "cpp-httplib", "test-backend-ops"}


def commands(folder: Path, arguments: list[str]) -> dict[tuple[str, str], str]:
    """Configure llama.cpp in an empty folder; return (target, source) -> the compiler's command."""
    folder.mkdir()
    given = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *arguments]
    subprocess.run(
        [tool("cmake"), "-S", PATCHED_TREE, "-B", folder, *given], check=True, capture_output=True
    )
    entries = json.loads((folder / "compile_commands.json").read_text())
    return {
        (_target(entry["output"]), entry["file"].replace(str(folder), "")): entry[
            "command"
        ].replace(str(folder), "")
        for entry in entries
    }


def _target(output: str) -> str:
    """Return the cmake target whose object file this is: `src/CMakeFiles/llama.dir/a.cpp.o`."""
    return output.partition("CMakeFiles/")[2].partition(".dir/")[0]


@pytest.mark.usefixtures("build_manifest")
def test_only_what_no_measurement_times_is_compiled_in_another_way(tmp_path: Path) -> None:
    ours = cmake_arguments("cpu", load_pin().commit)
    upstream = [word for word in ours if not word.endswith(str(SHORTER))]
    assert len(upstream) == len(ours) - 1
    shorter, whole = commands(tmp_path / "a", ours), commands(tmp_path / "b", upstream)
    changed = {key for key in shorter.keys() | whole.keys() if shorter.get(key) != whole.get(key)}
    assert {target for target, _ in changed} == SHORTENED
    files = [sum(target == "llama-common" for target, _ in made) for made in (shorter, whole)]
    assert files[0] < files[1] / 4
