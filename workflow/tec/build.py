"""Building llama.cpp: cmake and ninja from the Python environment, one build tree per target."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel

from tec.config import TARGETS
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.nearest import suggestion
from tec.patches import ensure_patched
from tec.paths import (
    BUILD_CACHE,
    PATCHED_TREE,
    PIN,
    build_dir,
    build_manifest,
    build_server_manifest,
    build_tests_manifest,
)
from tec.pin import load_pin
from tec.progress import last_words, run_logged
from tec.run_lock import hold

TOOLS = (
    "llama-bench",
    "llama-completion",
    "llama-expert-bench",
    "llama-perplexity",
    "llama-quantize",
    "llama-router-trace",
    "llama-tensor-list",
    "llama-tokenize",
)
TESTS = (
    "test-alloc",
    "test-arg-parser",
    "test-backend-ops",
    "test-expert-cache",
    "test-expert-cache-contexts",
    "test-expert-cache-fit",
    "test-expert-host",
    "test-expert-rates",
    "test-gguf",
    "test-llama-archs",
)
"""Our own driver of the cache's operations, and upstream's tests of what the patch touches."""

SERVER = ("llama-server",)
"""No measurement uses it; half as much again to compile."""

OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_MTMD": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "ON",
    "LLAMA_OPENSSL": "OFF",
}
SERVER_OPTIONS = ("-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_USE_PREBUILT_UI=OFF")
"""Without llama.cpp's chat page, which the build would download."""

SHORTER = PIN.with_name("build.cmake")
"""Included by llama.cpp's `project()`: compiles what no measurement times with less effort, and
gives llama-server a page in the place of the chat page."""

OFF_ON_CPU = ("GGML_CUDA", "GGML_METAL", "GGML_BLAS", "GGML_ACCELERATE")
"""Back ends that would compute in place of the CPU's; macOS has two of them on by default."""

CUDA_HOME = Path("/usr/local/cuda")

_ERROR = re.compile(r"\berror\b", re.IGNORECASE)

# what a log says -> what was wrong, what to do next
_CAUSES = (
    (
        r"No space left on device",
        "the disk is full",
        "free some space (a CUDA build takes about 3 GB) and run again: it continues",
    ),
    (
        r"No CMAKE_C(XX)?_COMPILER could be found",
        "there is no C and C++ compiler",
        "install one (Debian: apt-get install g++), or set CC and CXX, and run again",
    ),
    (
        r"CUDA Toolkit not found|No CMAKE_CUDA_COMPILER could be found|Could not find.*CUDAToolkit",
        "the CUDA toolkit (nvcc) is missing",
        "install it, put its bin folder on PATH or set CUDACXX=/path/to/nvcc; "
        "without a GPU build the target cpu",
    ),
    (
        r"CUDA::\w+\s+but the target was not found",
        "the CUDA toolkit is not complete",
        "install all of it (cuBLAS included), or set CUDACXX to another one's nvcc",
    ),
    (
        r"Unsupported gpu architecture",
        "this CUDA toolkit is too old for the target",
        "install a newer CUDA toolkit",
    ),
    (
        r"CMake .* or higher is required",
        "cmake is too old",
        "use the environment that `make .venv/installed` makes: it has a newer one",
    ),
    (
        r"does not match the source .* used to generate cache",
        "the build tree belongs to another copy of the source",
        f"delete {BUILD_CACHE} and run again",
    ),
    (
        r"Killed signal terminated program|virtual memory exhausted|: Killed$",
        "the compiler ran out of memory",
        "run again with fewer jobs, e.g. tec build TARGET --jobs 1: it continues",
    ),
)


class Binary(BaseModel):
    """A file the build made."""

    path: Path
    """Relative to the build tree."""
    sha256: str


class Manifest(BaseModel):
    """A complete build: what it is made from and what it made."""

    target: str
    commit: str
    digest: str
    series_hash: str
    build_type: Literal["Release"]
    compiler: str
    cuda: str | None
    cmake_args: list[str]
    bin_dir: Path
    """Absolute."""
    binaries: dict[str, Binary]
    libraries: dict[str, Binary]
    seconds: float
    """Wall time of the run that finished the build."""
    by_hand: bool = False
    """Whether cmake was run by hand and `tec build --adopt` wrote this; 0 seconds then."""


def build(
    target: str, jobs: int, wanted: Sequence[str], manifest: Path, extra: Sequence[str] = ()
) -> Manifest:
    """Build the `wanted` programs of a target and write `manifest`, last.

    An interrupted build continues where it stopped.

    Args:
        target: one of `tec.config.TARGETS`.
        jobs: compilers that run at once.
        wanted: names of programs.
        manifest: JSON file, removed at the start.
        extra: arguments of cmake after the target's.

    Raises:
        TecError: the source, the configuration or the compilation failed; says the next step.
    """
    started = time.monotonic()
    folder = build_dir(target)
    lock = hold(folder / "lock", f"building {target}")
    try:
        manifest.unlink(missing_ok=True)
        series_hash = ensure_patched()
        pin = load_pin()
        arguments = [*cmake_arguments(target, pin.commit), *extra]
        _configure(folder, target, arguments, lock)
        _compile(folder, target, wanted, jobs, lock)
    finally:
        os.close(lock)
    seconds = round(time.monotonic() - started, 1)
    made = describe(folder, target, series_hash, arguments, wanted, seconds)
    write_atomically(manifest, made.model_dump_json(indent=2) + "\n")
    return made


def _configure(folder: Path, target: str, arguments: Sequence[str], lock: int) -> None:
    """Let cmake set the build tree up; quick when it is already."""
    command = [tool("cmake"), "-S", str(PATCHED_TREE), "-B", str(folder), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *arguments]
    _run(command, f"configuring llama.cpp for {target}", folder / "cmake.log", lock)


def _compile(folder: Path, target: str, wanted: Sequence[str], jobs: int, lock: int) -> None:
    """Let ninja build the `wanted` programs."""
    command = [tool("ninja"), "-C", str(folder), "-j", str(jobs), *wanted]
    label = f"building llama.cpp for {target} ({jobs} jobs)"
    _run(command, label, folder / "build.log", lock)


def load_manifest(path: Path) -> Manifest:
    """Return a finished build's manifest; a TecError says how to build it if it is missing."""
    if not path.exists():
        raise TecError("this build does not exist", path, f"tec build {path.parent.name}")
    return Manifest.model_validate_json(path.read_text())


def cmake_arguments(target: str, commit: str) -> list[str]:
    """Return the `-D` arguments that configure a target."""
    options = {**OPTIONS, "LLAMA_BUILD_COMMIT": commit[:7], "LLAMA_BUILD_NUMBER": "0"}
    options["CMAKE_PROJECT_llama.cpp_INCLUDE"] = str(SHORTER)
    if target == "cpu":
        options |= dict.fromkeys(OFF_ON_CPU, "OFF")
    else:
        options["GGML_CUDA"] = "ON"
        options["CMAKE_CUDA_ARCHITECTURES"] = target.removeprefix("sm_")
        if compiler := _nvcc():
            options["CMAKE_CUDA_COMPILER"] = compiler
    return [f"-D{name}={value}" for name, value in options.items()]


def portable(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that name no path of this machine's tools."""
    return [word for word in arguments if not Path(word.partition("=")[2]).is_absolute()]


def tool(name: str) -> str:
    """Return the path of a program: the Python environment's, else the one on PATH."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=scripts) or shutil.which(name)
    if found is None:
        raise TecError(
            f"{name} is missing", hint="make the environment again: make .venv/installed"
        )
    return found


def _nvcc() -> str | None:
    """Return CUDA's compiler where cmake would not look by itself."""
    usual = CUDA_HOME / "bin" / "nvcc"
    if "CUDACXX" in os.environ or shutil.which("nvcc") or not usual.exists():
        return None
    return str(usual)


def _run(command: Sequence[str], label: str, log: Path, lock: int) -> None:
    """Run a build step; a failure becomes one clear error.

    The step holds the build tree's lock too, should this process be killed and the step run on.
    llama.cpp's build asks git for a commit; it must not find this project's own repository.
    """
    environment = {"GIT_CEILING_DIRECTORIES": str(PATCHED_TREE.parent), "NINJA_STATUS": "[%f/%t] "}
    result = run_logged(command, label, log, environment, hold=[lock])
    if result.returncode != 0:
        raise explain_failure(label, result.stdout, log)


def explain_failure(label: str, output: str, log: Path) -> TecError:
    """Return the error that says why a build step failed, and the next step."""
    for pattern, what, hint in _CAUSES:
        if re.search(pattern, output, re.MULTILINE):
            return TecError(f"{label} failed: {what}", f"full log: {log}", hint)
    lines = [line for line in output.splitlines() if line.strip()]
    first = next((n for n, line in enumerate(lines) if _ERROR.search(line)), None)
    reason = last_words(output) if first is None else "\n".join(lines[first : first + 4])
    return TecError(f"{label} failed:\n{reason}", f"full log: {log}", "read the log")


def compiler(folder: Path, language: str) -> str | None:
    """Return a compiler's name and version as cmake found it, e.g. `GNU 12.2.0`."""
    for file in folder.glob(f"CMakeFiles/*/CMake{language}Compiler.cmake"):
        values = dict(re.findall(r'^set\((\w+) "([^"]*)"\)', file.read_text(), re.MULTILINE))
        name = values.get(f"CMAKE_{language}_COMPILER_ID")
        return f"{name} {values.get(f'CMAKE_{language}_COMPILER_VERSION')}"
    return None


def describe(
    folder: Path,
    target: str,
    series_hash: str,
    arguments: Sequence[str],
    programs: Iterable[str],
    seconds: float = 0,
    by_hand: bool = False,
) -> Manifest:
    """Return the manifest of a build of the pinned source.

    Args:
        folder: cmake's; `bin` has the programs, and the libraries, which are all in the manifest.
        target: one of `tec.config.TARGETS`.
        series_hash: of the series that is on the source.
        arguments: cmake's.
        programs: names of those that the manifest vouches for.
        seconds: what the build took.
        by_hand: it was not made by `tec build`.
    """
    pin, programs_folder = load_pin(), folder / "bin"
    return Manifest(
        target=target,
        commit=pin.commit,
        digest=pin.digest,
        series_hash=series_hash,
        build_type="Release",
        compiler=compiler(folder, "CXX") or "unknown",
        cuda=compiler(folder, "CUDA"),
        cmake_args=list(arguments),
        bin_dir=programs_folder,
        binaries={name: _binary(folder, programs_folder / name) for name in programs},
        libraries={
            path.name: _binary(folder, path)
            for path in sorted(programs_folder.glob("lib*"))
            if path.is_file() and not path.is_symlink()
        },
        seconds=seconds,
        by_hand=by_hand,
    )


def _binary(folder: Path, path: Path) -> Binary:
    return Binary(path=path.relative_to(folder), sha256=sha256_file(path))


def default_jobs() -> int:
    """Return the number of CPUs this process may use."""
    affinity = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else None
    return len(affinity or []) or os.cpu_count() or 1


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec build`."""
    parser = sub.add_parser("build", help="build the patched llama.cpp for a target")
    parser.add_argument("target", help=", ".join(TARGETS))
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--tests", action="store_true", help="build the C++ tests instead")
    instead.add_argument("--server", action="store_true", help="build llama-server instead")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="compilers at once")
    parser.add_argument(
        "--adopt",
        type=Path,
        metavar="FOLDER",
        help="build nothing: take cmake's folder of a build made by hand, if its source is the "
        "pinned one with the series",
    )
    parser.set_defaults(run=_build)


def _build(options: argparse.Namespace) -> None:
    if options.target not in TARGETS:
        raise TecError(
            f"unknown target '{options.target}'", hint=suggestion(options.target, TARGETS)
        )
    if options.adopt:
        from tec import build_record  # which needs this module

        made = build_record.adopt(options.adopt, options.target, build_manifest(options.target))
        print(f"{len(made.binaries)} programs in {made.bin_dir}")
        return
    wanted, manifest, extra = _choice(options)
    made = build(options.target, options.jobs, wanted, manifest(options.target), extra)
    print(f"{len(made.binaries)} programs in {made.bin_dir}")


def _choice(
    options: argparse.Namespace,
) -> tuple[Sequence[str], Callable[[str], Path], Sequence[str]]:
    """Return the programs to build, where their manifest is, and cmake's extra arguments."""
    if options.tests:
        return TESTS, build_tests_manifest, ()
    if options.server:
        return SERVER, build_server_manifest, SERVER_OPTIONS
    return TOOLS, build_manifest, ()
