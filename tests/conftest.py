"""What tests share: the built programs, and a private copy of the cache's folders."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from shipped_decode import Attempt, attempt_with
from tec import machine_lock, outcome, paths, source, steps
from tec.build import Manifest, load_manifest
from tec.errors import TecError

# What a shell starts in the background ignores interrupts, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Threads of a program that spin while they wait hold the cores that the others wait for: beside
# other work on the machine, a test of seconds takes minutes. What is measured does not inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# An example that took longer than usual says something about the machine, not about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def build_manifest() -> Manifest:
    """The CPU build's manifest."""
    return _manifest(paths.build_manifest("cpu"))


@pytest.fixture(scope="session")
def binaries(build_manifest: Manifest) -> dict[str, Path]:
    """Program name -> path, of the CPU build: llama.cpp's tools and C++ tests."""
    tests = _manifest(paths.build_tests_manifest("cpu"))
    names = [*build_manifest.binaries, *tests.binaries]
    return {name: build_manifest.bin_dir / name for name in names}


@pytest.fixture(scope="session")
def attempt(binaries: dict[str, Path]) -> Attempt:
    """Run a built tool on the shipped model."""
    return attempt_with(binaries)


def _manifest(path: Path) -> Manifest:
    try:
        return load_manifest(path)
    except TecError as error:
        pytest.fail(f"{error}; or: make test")


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's lock and the scratch files of other runs out of a test."""
    monkeypatch.setattr(machine_lock, "lock_path", lambda: tmp_path / "machine.lock")
    monkeypatch.setattr(steps, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(outcome, "STOPPED", tmp_path / "stopped.json")


@pytest.fixture
def source_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of .cache/source."""
    folder = tmp_path / "source-cache"
    monkeypatch.setattr(paths, "SOURCE_CACHE", folder)
    monkeypatch.setattr(source, "SOURCE_CACHE", folder)
    return folder
