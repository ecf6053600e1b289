"""The other machine: the launcher, and a run with the network denied."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fake_pack import write_index, write_project, write_source
from tec import unpacked
from tec.errors import TecError
from tec.pack import Order, pack
from tec.pack_manifest import Manifest, read_manifest
from tec.pack_target import PackTarget, this_platform, this_python

MANIFEST = Manifest(
    commit="0" * 40,
    study="demo",
    python=this_python(),
    platform="manylinux_2_28_x86_64",
    system="linux",
    machine="x86_64",
    glibc="2.28",
    llama_cpp={},
    members={},
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of a small project for this Python."""
    folder = tmp_path_factory.mktemp("packing")
    source = write_source(folder / "llama.cpp")
    root = write_project(folder / "checkout", write_index(folder / "index"), source)
    target = PackTarget(this_python(), this_platform())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder / "index"))
        patch.setenv("TEC_LLAMA_CPP_DIR", str(source))
        patch.setattr("tec.source.SOURCE_CACHE", folder / "source")
        patch.setattr("tec.paths.SOURCE_CACHE", folder / "source")
        return pack(Order(folder / "pack.tar.gz", target), root, folder / "cache")


@pytest.fixture
def there(archive: Path, tmp_path: Path) -> Path:
    """The unpacked pack, in a folder with a space, away from where it was made."""
    folder = tmp_path / "other machine"
    folder.mkdir()
    subprocess.run(["tar", "xf", str(archive)], cwd=folder, check=True)
    return folder / "tec-pack"


def launch(there: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start the launcher as a new user would, with this Python."""
    home = there.parent / "home"
    home.mkdir(exist_ok=True)
    plain = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHON": sys.executable}
    return subprocess.run(
        ["./run", *words],
        cwd=there,
        env=plain | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def without_network() -> list[str]:
    """Return what starts a program that has no network; nothing where the system forbids it."""
    words = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which(words[0]) is None:
        return []
    allowed = subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if allowed else []


class TestRun:
    def test_study_runs_without_network(self, archive: Path, tmp_path: Path) -> None:
        """Also where the network cannot be taken away, everything that names one leads nowhere."""
        subprocess.run(["tar", "xf", str(archive)], cwd=tmp_path, check=True)
        there = tmp_path / "tec-pack"
        nowhere = "http://127.0.0.1:9"
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(tmp_path / "site's own packages"),
            "PIP_INDEX_URL": nowhere,
            "PIP_REQUIRE_VIRTUALENV": "1",
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), nowhere),
        }
        command = [*without_network(), "./run", "demo", "CORES=1", "CONFIG=rows=a"]
        result = subprocess.run(
            command, cwd=there, env=variables, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        calls = (there / "project" / "called.jsonl").read_text().splitlines()
        first = json.loads(calls[0])
        assert first["argv"] == ["--cores", "1", "all", "--config", "study=demo", "rows=a"]
        assert Path(first["tiny"]).is_relative_to(there / "project" / ".venv")
        assert first["environment"]["TEC_LLAMA_CPP_DIR"] == str(there / "llama.cpp")
        assert first["environment"]["HF_HUB_OFFLINE"] == "1"
        assert "PYTHONPATH" not in first["environment"]
        assert "PIP_INDEX_URL" not in first["environment"]

        again = subprocess.run(
            command, cwd=there, env=variables, capture_output=True, text=True, check=False
        )
        assert again.returncode == 0
        assert "checking" not in again.stderr
        assert "installing" not in again.stdout

    def test_damaged_file_is_named(self, there: Path) -> None:
        (there / "llama.cpp" / "src" / "a.cpp").write_text("int a = 2;\n")
        (there / "wheels.lock").unlink()
        result = launch(there)
        assert result.returncode == 2
        assert "llama.cpp/src/a.cpp: SHA-256" in result.stderr
        assert "wheels.lock: No such file" in result.stderr
        assert "next: copy the archive again" in result.stderr
        assert not (there / "project" / ".venv").exists()

    def test_checked_once_unless_asked(self, there: Path) -> None:
        assert "whole" in launch(there, "--check").stderr
        (there / "project" / "Makefile").write_text("all:\n\t@echo edited\n")
        assert "edited" in launch(there).stdout
        assert launch(there, "--check").returncode == 2
        assert "is damaged" in launch(there).stderr  # not what it was found to be before

    @pytest.mark.parametrize("name", ["unpacked", "errors"])
    def test_damaged_program(self, there: Path, name: str) -> None:
        (there / "project" / "workflow" / "tec" / f"{name}.py").write_text("\0")
        result = launch(there)
        assert (result.returncode, "its program cannot be read" in result.stderr) == (2, True)

    def test_missing_manifest(self, there: Path) -> None:
        (there / "manifest.json").unlink()
        result = launch(there)
        assert (result.returncode, "manifest is missing" in result.stderr) == (2, True)

    def test_usage(self, there: Path) -> None:
        assert launch(there, "--help").stdout.startswith("usage: ./run [STUDY]")


class TestOtherPython:
    def test_is_named_with_both_ways_out(self, there: Path) -> None:
        manifest = there / "manifest.json"
        text = manifest.read_text().replace(f'"python": "{this_python()}"', '"python": "3.99"')
        manifest.write_text(text)
        result = launch(there)
        assert result.returncode == 2
        assert "this pack is for Python 3.99; here " in result.stderr
        assert f"is {this_python()}" in result.stderr
        assert "PYTHON=/path/to/python3.99 ./run" in result.stderr
        assert "tec pack --python" in result.stderr

    def test_none_at_all(self, there: Path) -> None:
        result = launch(there, PYTHON="/nowhere/python3")
        assert (result.returncode, "there is no Python" in result.stderr) == (2, True)

    def test_is_found_beside_an_older_default(self, there: Path, tmp_path: Path) -> None:
        """The usual case on clusters: `python3` is the system's, the right one has another name."""
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "python3").write_text("#!/bin/sh\necho 3.6\n")
        (programs / "python3").chmod(0o755)
        (programs / f"python{this_python()}").symlink_to(sys.executable)
        path = f"{programs}:{os.environ['PATH']}"
        assert launch(there, "--check", PYTHON="", PATH=path).returncode == 0


class TestMachine:
    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.28"))

    def test_fits(self) -> None:
        unpacked.check_machine(MANIFEST)

    def test_other_processor(self) -> None:
        with pytest.raises(TecError, match="for processor aarch64; here it is x86_64") as caught:
            unpacked.check_machine(replace(MANIFEST, machine="aarch64"))
        assert "tec pack --platform TAG" in str(caught.value)

    def test_other_python(self) -> None:
        with pytest.raises(TecError, match=r"for Python 3\.99") as caught:
            unpacked.check_machine(replace(MANIFEST, python="3.99"))
        assert f"tec pack --python {this_python()}" in str(caught.value)

    def test_older_c_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.9"))
        with pytest.raises(TecError, match=r"needs glibc 2\.28") as caught:
            unpacked.check_machine(MANIFEST)
        assert "--platform manylinux_2_9_x86_64" in str(caught.value)


class TestCommand:
    def test_study_of_the_pack_or_the_one_named(self) -> None:
        make = unpacked.make_command(MANIFEST, ["CORES=2"])
        assert make[-5:] == [
            "all",
            "STUDY=demo",
            f"PYTHON={sys.executable}",
            "REQUIREMENTS=../wheels.lock",
            "CORES=2",
        ]
        assert "STUDY=paper" in unpacked.make_command(MANIFEST, ["paper"])

    @pytest.mark.parametrize("words", [["demo", "paper"], ["--dry-run"]])
    def test_words_that_say_nothing(self, words: list[str]) -> None:
        with pytest.raises(TecError, match="usage"):
            unpacked.make_command(MANIFEST, words)

    def test_make_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(TecError, match="make is missing"):
            unpacked.make_command(MANIFEST, [])

    def test_models_beside_the_pack_are_used_unless_others_are_named(self, tmp_path: Path) -> None:
        assert "TEC_MODELS" not in unpacked.environment(tmp_path, {})
        (tmp_path / "models").mkdir()
        assert unpacked.environment(tmp_path, {})["TEC_MODELS"] == str(tmp_path / "models")
        assert unpacked.environment(tmp_path, {"TEC_MODELS": "/m"})["TEC_MODELS"] == "/m"


def test_read_manifest_of_a_real_pack(there: Path) -> None:
    manifest = read_manifest(there)
    assert manifest.study == "demo"
    assert "project/workflow/tec/unpacked.py" in manifest.members


def test_program_imports_the_standard_library_only() -> None:
    code = "import sys, tec.unpacked; print([m for m in sys.modules if m in ('pydantic', 'yaml')])"
    isolated = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(Path(unpacked.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert isolated.stdout == "[]\n", isolated.stderr


def test_network_can_be_taken_away_here() -> None:
    """Says in the report which proof the run above gave."""
    if not (words := without_network()):
        pytest.skip("unshare is not allowed here: the run above had broken addresses only")
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    denied = subprocess.run([*words, sys.executable, "-c", code], capture_output=True, check=False)
    assert b"unreachable" in denied.stderr.lower()
