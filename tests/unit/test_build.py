"""Building, with a project of two tiny programs in llama.cpp's place."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from process_tree import kill_tree
from tec import build as build_module
from tec import paths
from tec.build import build, cmake_arguments, explain_failure, load_manifest, portable
from tec.errors import TecError

PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(tiny C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(quick quick.cpp)
add_custom_command(OUTPUT slow.cpp
    COMMAND ${CMAKE_COMMAND} -E touch started && sleep $ENV{TINY_SLEEP}
    COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_SOURCE_DIR}/quick.cpp slow.cpp)
add_executable(slow slow.cpp)
add_dependencies(slow quick)
"""
BUILD_SLOW = """
import sys
from pathlib import Path
from tec import build, paths
build.PATCHED_TREE, paths.BUILD_CACHE = Path(sys.argv[1]), Path(sys.argv[2])
build.ensure_patched = lambda: "0" * 64
build.build("cpu", 1, ["slow"], paths.build_manifest("cpu"))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project, in place of the patched tree; builds go below tmp_path / "build"."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(PROJECT)
    (folder / "quick.cpp").write_text("int main() { return 0; }\n")
    monkeypatch.setenv("TINY_SLEEP", "0")
    monkeypatch.setattr(build_module, "PATCHED_TREE", folder)
    monkeypatch.setattr(build_module, "ensure_patched", lambda: "0" * 64)
    monkeypatch.setattr(paths, "BUILD_CACHE", tmp_path / "build")
    return folder


@pytest.mark.usefixtures("project")
def test_manifest_names_the_programs_the_compiler_and_the_source() -> None:
    manifest = paths.build_manifest("cpu")
    build("cpu", 2, ["quick"], manifest)
    made = load_manifest(manifest)
    assert subprocess.run([made.bin_dir / "quick"], check=False).returncode == 0
    assert made.compiler.split()[0] in ("GNU", "Clang", "AppleClang")
    assert (made.series_hash, made.cuda) == ("0" * 64, None)
    assert "-DCMAKE_BUILD_TYPE=Release" in made.cmake_args


def test_failed_compilation_leaves_no_manifest_and_says_why(project: Path) -> None:
    manifest = paths.build_manifest("cpu")
    build("cpu", 1, ["quick"], manifest)
    (project / "quick.cpp").write_text("int main() { return oops; }\n")
    with pytest.raises(TecError) as caught:
        build("cpu", 1, ["quick"], manifest)
    assert "oops" in caught.value.what
    assert "build.log" in str(caught.value.where)
    assert not manifest.exists()


def test_build_killed_midway_continues(project: Path, tmp_path: Path) -> None:
    folder = paths.build_dir("cpu")
    command = [sys.executable, "-c", BUILD_SLOW, str(project), str(folder.parent)]
    with subprocess.Popen(command, env={**os.environ, "TINY_SLEEP": "60"}) as process:
        deadline = time.monotonic() + 60
        while not (folder / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        kill_tree(process)
    assert (folder / "started").exists()
    assert not paths.build_manifest("cpu").exists()
    first = (folder / "bin" / "quick").stat().st_mtime_ns
    build("cpu", 1, ["slow"], paths.build_manifest("cpu"))
    assert (folder / "bin" / "slow").exists()
    assert (folder / "bin" / "quick").stat().st_mtime_ns == first


@pytest.mark.usefixtures("project")
def test_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(TecError, match="there is no C and C\\+\\+ compiler") as caught:
        build("cpu", 1, ["quick"], paths.build_manifest("cpu"))
    assert "apt-get install g++" in str(caught.value.hint)


def test_missing_build_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="tec build sm_90"):
        load_manifest(tmp_path / "sm_90" / "manifest.json")


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("fatal error: error writing to a.s: No space left on device", "the disk is full"),
        (
            "CMake Error: No CMAKE_CUDA_COMPILER could be found.",
            "the CUDA toolkit (nvcc) is missing",
        ),
        ('Target "x" links to:\n\n CUDA::cublas\n\n  but the target was not found.', "complete"),
        ("nvcc fatal : Unsupported gpu architecture 'compute_120'", "too old for the target"),
        ("CMake 3.28 or higher is required.  You are running version 3.10", "cmake is too old"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "out of memory"),
        ("[3/9] FAILED: a.o\na.cpp:1: error: no such thing\nninja: stopped", "no such thing"),
        ("", "it printed no message"),
    ],
)
def test_log_gives_the_cause(output: str, cause: str, tmp_path: Path) -> None:
    error = explain_failure("building", output, tmp_path / "build.log")
    assert cause in str(error)
    assert "build.log" in str(error)
    assert error.hint


def test_cuda_targets_differ_by_architecture_only() -> None:
    for target in ("sm_80", "sm_120"):
        arguments = cmake_arguments(target, "0c1e57098b")
        assert f"-DCMAKE_CUDA_ARCHITECTURES={target[3:]}" in arguments
        assert "-DGGML_CUDA=ON" in arguments
        assert "-DLLAMA_BUILD_COMMIT=0c1e570" in arguments


def test_cpu_target_computes_on_the_cpu_only() -> None:
    arguments = cmake_arguments("cpu", "0c1e57098b")
    for back_end in ("CUDA", "METAL", "BLAS", "ACCELERATE"):
        assert f"-DGGML_{back_end}=OFF" in arguments


def test_paths_of_this_machine_are_not_portable() -> None:
    assert portable(["-DA=ON", "-DB=/usr/local/bin/nvcc", "-DC=a/b"]) == ["-DA=ON", "-DC=a/b"]
