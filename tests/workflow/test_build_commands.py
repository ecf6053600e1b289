"""What is changed of llama.cpp's build: not how whatever computes is compiled."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tec.build import SERVER_OPTIONS, SHORTER, Manifest, cmake_arguments, tool
from tec.paths import PATCHED_TREE
from tec.pin import load_pin

SHORTENED = {"llama-common", "cpp-httplib", "test-backend-ops"}
UI_SCRIPT = Path("scripts", "ui-assets.cmake")
PAGE = SHORTER.with_name("server-page.html")


def configure(source: Path, folder: Path, arguments: Sequence[str]) -> Path:
    """Let cmake set up an empty folder; return it."""
    given = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *arguments]
    command = [tool("cmake"), "-S", str(source), "-B", str(folder), *given]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def make(folder: Path, target: str) -> None:
    """Let ninja build a target; an AssertionError has its output if that fails."""
    command = [tool("ninja"), "-C", str(folder), target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def commands(folder: Path) -> dict[tuple[str, str], str]:
    """Return (target, source) -> the compiler's command, of a configured folder."""
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


@pytest.fixture(scope="module")
def ours() -> list[str]:
    """The arguments of a build with the server."""
    return [*cmake_arguments("cpu", load_pin().commit), *SERVER_OPTIONS]


@pytest.fixture(scope="module")
def shorter(
    build_manifest: Manifest, ours: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder that is set up as `tec build cpu --server` does."""
    return configure(PATCHED_TREE, tmp_path_factory.mktemp("shorter"), ours)


def test_only_what_no_measurement_times_is_compiled_in_another_way(
    shorter: Path, ours: list[str], tmp_path: Path
) -> None:
    upstream = [word for word in ours if not word.endswith(str(SHORTER))]
    assert len(upstream) == len(ours) - 1
    made, whole = commands(shorter), commands(configure(PATCHED_TREE, tmp_path, upstream))
    changed = {key for key in made.keys() | whole.keys() if made.get(key) != whole.get(key)}
    assert {target for target, _ in changed} == SHORTENED
    files = [sum(target == "llama-common" for target, _ in entry) for entry in (made, whole)]
    assert files[0] < files[1] / 4


def test_the_server_has_a_page_though_the_script_that_makes_it_is_missing(shorter: Path) -> None:
    assert not (PATCHED_TREE / UI_SCRIPT).exists()
    make(shorter, "llama-ui")
    (library,) = shorter.glob("tools/ui/*llama-ui.*")
    assert PAGE.read_bytes() in library.read_bytes()


@pytest.mark.usefixtures("build_manifest")
def test_a_source_that_has_the_script_uses_it(ours: list[str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / UI_SCRIPT).parent.mkdir(parents=True)
    for path in PATCHED_TREE.iterdir():
        (source / path.name).symlink_to(path)
    (source / UI_SCRIPT).write_text('file(WRITE "${UI_BINARY_DIR}/made" "by the script")')
    folder = configure(source, tmp_path / "build", ours)
    make(folder, "llama-ui-assets")
    assert (folder / "tools" / "ui" / "made").read_text() == "by the script"
    assert not (folder / "tools" / "ui" / "ui.cpp").exists()
