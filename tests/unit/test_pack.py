import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fake_pack import (
    OTHER_FILE,
    commit_all,
    git,
    lock_entry,
    write_index,
    write_project,
    write_source,
)
from tec import cli, run_lock
from tec import pack as packing
from tec.config import load_study
from tec.errors import TecError
from tec.pack import Order, pack
from tec.pack_models import instructions
from tec.pack_target import PackTarget, this_platform, this_python

HERE = PackTarget(this_python(), this_platform())


class Machine:
    """Where a pack is made: the project, an index and a cache, all of them small."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index"
        self.source = folder / "llama.cpp"
        self.root = folder / "checkout"
        self.cache = folder / "cache"

    def write(self) -> None:
        """Write index, source and project."""
        write_project(self.root, write_index(self.index), write_source(self.source))

    def settings(self, patch: pytest.MonkeyPatch) -> None:
        """Point pip at the index, and this project's sources to the machine's own."""
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(self.index))
        patch.setenv("TEC_LLAMA_CPP_DIR", str(self.source))
        for module in ("source", "paths"):
            patch.setattr(f"tec.{module}.SOURCE_CACHE", self.folder / "source")

    def pack(self, name: str = "pack.tar", **order: object) -> Path:
        """Return the archive that `order` gives."""
        wanted = replace(Order(self.folder / name, HERE), **order)  # type: ignore[arg-type]
        return pack(wanted, self.root, self.cache)

    def unpack(self, name: str = "pack.tar") -> Path:
        """Return the folder that the archive unpacks to."""
        subprocess.run(["tar", "xf", name], cwd=self.folder, check=True)
        return self.folder / "tec-pack"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine that has packed before: it has the wheels and the source."""
    made = Machine(tmp_path_factory.mktemp("packed"))
    made.write()
    with pytest.MonkeyPatch.context() as patch:
        made.settings(patch)
        made.pack()
    return made


@pytest.fixture
def machine(packed: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A copy of it."""
    shutil.copytree(packed.folder, tmp_path / "machine", symlinks=True)
    copy = Machine(tmp_path / "machine")
    copy.settings(monkeypatch)
    (copy.folder / "pack.tar").unlink()
    return copy


class TestContent:
    def test_everything_is_there_and_listed(self, machine: Machine) -> None:
        machine.pack()
        folder = machine.unpack()
        files = {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_symlink() or not path.is_dir()
        }
        manifest = json.loads((folder / "manifest.json").read_text())
        assert files == {*manifest["members"], "manifest.json"}
        assert {"run", "README.txt", "wheels.lock", "project/profiles"} <= files
        assert {"llama.cpp/CMakeLists.txt", "llama.cpp/src/a.cpp"} <= files
        assert "llama.cpp/left-out.md" not in files
        assert os.access(folder / "run", os.X_OK)
        assert manifest["commit"] == git(machine.root, "rev-parse", "HEAD").strip()
        assert (manifest["schema"], manifest["python"]) == (1, HERE.python)
        assert len(manifest["llama_cpp"]["digest"]) == 64

    def test_wheels_are_the_locked_ones_for_the_target_and_pinned_by_hash(
        self, machine: Machine
    ) -> None:
        """One is made from a source distribution; its marker leaves another one out."""
        machine.pack()
        folder = machine.unpack()
        wheels = [path.name.split("-")[0] for path in (folder / "wheels").iterdir()]
        assert sorted(wheels) == ["snakemake", "sourceonly", "tiny"]
        lines = (folder / "wheels.lock").read_text().splitlines()
        assert len(lines) == 3
        assert all(line.count("--hash=sha256:") == 1 for line in lines)
        (made,) = (line for line in lines if line.startswith("sourceonly"))
        assert made.endswith("# made from sourceonly-1.0.tar.gz")

    def test_readme_has_the_two_commands_and_no_gap(self, machine: Machine) -> None:
        machine.pack()
        text = (machine.unpack() / "README.txt").read_text()
        assert "    tar xf ARCHIVE\n    cd tec-pack && ./run\n" in text
        assert "$" not in text
        assert str(machine.folder) not in text
        assert text.endswith("the rest.\n\n")

    def test_same_commit_gives_the_same_bytes(self, machine: Machine) -> None:
        first = machine.pack("first.tar.gz").read_bytes()
        shutil.rmtree(machine.cache)  # fetched and built anew
        shutil.rmtree(machine.folder / "source")
        for path in machine.root.rglob("*"):
            if ".git" not in path.parts and not path.is_symlink():
                os.utime(path, (1, 1))
        assert machine.pack("second.tar.gz").read_bytes() == first


def _entries(machine: Machine) -> list[str]:
    return re.split(r"\n(?=\w)", (machine.root / "requirements.lock").read_text())


class TestUncommitted:
    @pytest.mark.parametrize("name", ["Makefile", "new.txt"])
    def test_changed_or_new_file_is_refused_by_name(self, machine: Machine, name: str) -> None:
        (machine.root / name).write_text("uncommitted\n")
        with pytest.raises(TecError, match=f"{name}\n") as caught:
            machine.pack()
        assert "--commit HEAD" in str(caught.value)
        assert not (machine.folder / "pack.tar").exists()

    def test_named_commit_is_packed_without_them(self, machine: Machine) -> None:
        (machine.root / "Makefile").write_text("uncommitted\n")
        machine.pack(commit="HEAD")
        assert (machine.unpack() / "project" / "Makefile").read_text() != "uncommitted\n"

    def test_earlier_commit_brings_its_own_lock_file(self, machine: Machine) -> None:
        (machine.root / "requirements.lock").write_text(lock_entry("tiny", OTHER_FILE))
        commit_all(machine.root)
        machine.pack(commit="HEAD~1")
        packed = machine.unpack() / "project" / "requirements.lock"
        assert packed.read_text().startswith("snakemake==1.0")

    def test_ignored_files_and_the_archive_itself_do_not_count(self, machine: Machine) -> None:
        (machine.root / "ignored.txt").touch()
        out = machine.root / "pack.tar"
        machine.pack(out=out)
        machine.pack(out=out)

    def test_commit_that_cannot_be_packed_yet(self, machine: Machine) -> None:
        shutil.rmtree(machine.root / "workflow" / "pack")
        commit_all(machine.root)
        with pytest.raises(TecError, match="older than tec pack"):
            machine.pack()

    def test_unknown_commit(self, machine: Machine) -> None:
        with pytest.raises(TecError, match="there is no commit 'nowhere'"):
            machine.pack(commit="nowhere")

    def test_copy_without_git(self, machine: Machine) -> None:
        shutil.rmtree(machine.root / ".git")
        with pytest.raises(TecError, match="not a git checkout"):
            machine.pack()


class TestWheels:
    def test_second_pack_asks_no_index(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_FIND_LINKS", str(machine.folder / "nowhere"))
        machine.pack()

    def test_damaged_wheel_of_an_earlier_pack_is_fetched_again(self, machine: Machine) -> None:
        (tiny,) = machine.cache.rglob("tiny-*.whl")
        tiny.write_bytes(b"damaged")
        machine.pack()
        assert (machine.unpack() / "wheels" / tiny.name).read_bytes() != b"damaged"

    def test_no_wheel_for_the_target_names_package_and_target(self, machine: Machine) -> None:
        shutil.rmtree(machine.cache)
        (machine.index / "tiny-1.0-py3-none-any.whl").rename(
            machine.index / "tiny-1.0-cp311-cp311-win_amd64.whl"
        )
        with pytest.raises(TecError, match=rf"no wheel of tiny==1\.0 for Python {HERE.python}"):
            machine.pack()
        assert not list(machine.cache.glob("wheels-*"))

    def test_wheel_with_other_bytes_than_locked(self, machine: Machine) -> None:
        shutil.rmtree(machine.cache)
        with (machine.index / "tiny-1.0-py3-none-any.whl").open("ab") as wheel:
            wheel.write(b"\0")
        with pytest.raises(TecError, match="pip cannot fetch"):
            machine.pack()

    def test_wheels_of_an_older_lock_file_are_removed(self, machine: Machine) -> None:
        old = next(machine.cache.glob("wheels-*"))
        (machine.root / "requirements.lock").write_text(
            next(line for line in _entries(machine) if line.startswith("tiny"))
        )
        commit_all(machine.root)
        machine.pack()
        assert [path == old for path in machine.cache.glob("wheels-*")] == [False]

    def test_other_python_and_machine(self, machine: Machine) -> None:
        machine.pack(target=PackTarget("3.14", "manylinux_2_34_aarch64"))
        manifest = json.loads((machine.unpack() / "manifest.json").read_text())
        assert (manifest["python"], manifest["machine"]) == ("3.14", "aarch64")


class TestTwoAtATime:
    def test_second_is_refused(self, machine: Machine) -> None:
        held = run_lock.hold(machine.cache / "lock", "packing")
        with pytest.raises(TecError, match="another process is packing"):
            machine.pack()
        os.close(held)

    def test_leftovers_of_a_killed_run_are_removed(self, machine: Machine) -> None:
        (machine.cache / ".incomplete-killed").mkdir()
        machine.pack()
        assert not list(machine.cache.glob(".incomplete-*"))


class TestStudy:
    def test_unknown_one(self, machine: Machine) -> None:
        with pytest.raises(TecError, match="did you mean 'demo'"):
            machine.pack(study="dem")

    def test_files_of_the_hub_are_not_packed_but_said(
        self, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        machine.pack(study="paper")
        said = capsys.readouterr().err
        assert "gpt-oss-120b-mxfp4: " in said
        assert "(not pinned yet)" in said
        assert "tec fetch" in said
        text = (machine.unpack() / "README.txt").read_text()
        assert "TEC_MODELS" in text
        assert "C++ compiler and the CUDA toolkit:" in text

    def test_study_whose_models_are_in_the_project_needs_nothing(self) -> None:
        assert instructions(load_study("demo"), []) == ""

    def test_model_that_the_commit_does_not_have(self, machine: Machine) -> None:
        (model,) = (machine.root / "models").rglob("*.gguf")
        model.unlink()
        commit_all(machine.root)
        with pytest.raises(TecError, match="which the commit does not have"):
            machine.pack()


def test_command(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Order] = []

    def record(order: Order) -> Path:
        given.append(order)
        order.out.write_bytes(b"archive")
        return order.out

    monkeypatch.setattr(packing, "pack", record)
    out = machine.folder / "pack.tar"
    assert cli.main(["pack", "--out", str(out), "--python", "3.13"]) == 0
    assert given == [Order(out, PackTarget("3.13", this_platform()), "demo", None)]
