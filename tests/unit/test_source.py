import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tec.digest import tree_digest
from tec.errors import TecError
from tec.files import sha256_file
from tec.paths import source_record
from tec.pin import Pin, load_pin
from tec.source import ensure_source, fetch_sdist

PARTS = ["CMakeLists.txt", "src"]
FILES = {
    "CMakeLists.txt": "project(tiny)\n",
    "src/a.cpp": "int a = 1;\n",
    "src/sub/b.cpp": "int b = 2;\n",
    "docs/left-out.md": "not a part\n",
}
PYPROJECT = """
[build-system]
requires = ["flit_core"]
build-backend = "flit_core.buildapi"
[project]
name = "tinysource"
version = "1.0"
description = "a source distribution that carries a tree"
"""


def write_tree(folder: Path) -> Path:
    for path, text in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def write_sdist(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "tinysource-1.0.tar.gz"
    members = {
        "pyproject.toml": PYPROJECT,
        "PKG-INFO": "Metadata-Version: 2.1\nName: tinysource\nVersion: 1.0\n",
        "tinysource.py": "",
        **{f"vendor/tiny/{path}": text for path, text in FILES.items()},
    }
    with tarfile.open(file, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(f"tinysource-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return file


def sdist_source(sha256: str) -> dict[str, object]:
    return {
        "kind": "sdist",
        "requirement": "tinysource==1.0",
        "sha256": sha256,
        "subtree": "vendor/tiny",
        "megabytes": 1,
    }


def make_pin(digest: str, *sources: Mapping[str, object], commit: str = "0" * 40) -> Pin:
    given = sources or ({"kind": "local", "variable": "TEC_TEST_DIR"},)
    return Pin.model_validate(
        {"commit": commit, "digest": digest, "parts": PARTS, "sources": list(given)}
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "upstream")


@pytest.fixture
def digest(tree: Path) -> str:
    return tree_digest(tree, PARTS)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip uses in place of every index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.usefixtures("source_cache")
class TestSdist:
    def test_parts_of_the_subtree_become_the_tree(self, index: Path, digest: str) -> None:
        file = write_sdist(index)
        tree = ensure_source(make_pin(digest, sdist_source(sha256_file(file))))
        assert tree_digest(tree) == digest
        assert not (tree / "docs").exists()

    def test_python_that_cannot_extract_safely_is_refused(
        self, index: Path, digest: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pin = make_pin(digest, sdist_source(sha256_file(write_sdist(index))))
        monkeypatch.delattr(tarfile, "data_filter")
        with pytest.raises(TecError, match=r"use Python 3\.11\.4 or newer"):
            ensure_source(pin)

    def test_corrupt_download_names_both_hashes(self, index: Path, digest: str) -> None:
        expected = sha256_file(write_sdist(index))
        (index / "tinysource-1.0.tar.gz").write_bytes(b"corrupt")
        with pytest.raises(TecError) as caught:
            ensure_source(make_pin(digest, sdist_source(expected)))
        found = sha256_file(index / "tinysource-1.0.tar.gz")
        assert expected in str(caught.value)
        assert found in str(caught.value)
        assert "tec source --from" in str(caught.value)

    def test_corrupt_file_of_an_earlier_run_is_deleted_and_fetched_again(
        self, index: Path, digest: str, source_cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        good = sha256_file(write_sdist(index))
        half = source_cache / "download" / "tinysource-1.0.tar.gz"
        half.parent.mkdir(parents=True)
        half.write_bytes(b"half")
        pin = make_pin(digest, sdist_source(good))
        assert pin.sources[0].kind == "sdist"
        assert sha256_file(fetch_sdist(pin.sources[0])) == good
        assert "deleted" in capsys.readouterr().err

    def test_wrong_tree_is_an_error_and_leaves_nothing(
        self, index: Path, source_cache: Path
    ) -> None:
        file = write_sdist(index)
        with pytest.raises(TecError, match="expected digest ffff"):
            ensure_source(make_pin("f" * 64, sdist_source(sha256_file(file))))
        assert not [path for path in source_cache.iterdir() if path.name.startswith("llama.cpp")]

    def test_every_failed_source_is_reported(self, index: Path, digest: str) -> None:
        repository = {"kind": "git", "repository": str(index / "no-repository")}
        with pytest.raises(TecError) as caught:
            ensure_source(make_pin(digest, sdist_source("0" * 64), repository))
        assert "tinysource==1.0: cannot get" in str(caught.value)
        assert "no-repository: fetching" in str(caught.value)


@pytest.mark.usefixtures("source_cache")
class TestLocal:
    def test_folder_without_git_is_copied(self, tree: Path, digest: str) -> None:
        assert tree_digest(ensure_source(make_pin(digest), named=tree)) == digest

    def test_environment_variable_names_it(
        self, tree: Path, digest: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEC_TEST_DIR", str(tree))
        assert tree_digest(ensure_source(make_pin(digest))) == digest

    def test_checkout_gives_the_commit_not_its_working_files(self, tree: Path, digest: str) -> None:
        commit = commit_all(tree)
        (tree / "src/a.cpp").write_text("edited\n")
        pin = make_pin(digest, commit=commit)
        assert tree_digest(ensure_source(pin, named=tree)) == digest

    def test_git_source_fetches_the_commit(self, tree: Path, digest: str) -> None:
        commit = commit_all(tree)
        pin = make_pin(digest, {"kind": "git", "repository": str(tree)}, commit=commit)
        assert tree_digest(ensure_source(pin)) == digest

    def test_incomplete_folder_names_the_missing_part(self, tree: Path, digest: str) -> None:
        (tree / "CMakeLists.txt").unlink()
        with pytest.raises(TecError, match=r"no 'CMakeLists\.txt'"):
            ensure_source(make_pin(digest), named=tree)

    def test_missing_folder(self, tmp_path: Path, digest: str) -> None:
        with pytest.raises(TecError, match="no such folder"):
            ensure_source(make_pin(digest), named=tmp_path / "nowhere")


def test_leftovers_of_a_killed_run_are_removed(tree: Path, digest: str, source_cache: Path) -> None:
    leftover = source_cache / ".incomplete-killed" / "tree"
    leftover.mkdir(parents=True)
    ensure_source(make_pin(digest), named=tree)
    assert not leftover.parent.exists()


def test_run_killed_before_the_record_is_completed(
    tree: Path, digest: str, source_cache: Path
) -> None:
    pin = make_pin(digest)
    ensure_source(pin, named=tree)
    record = source_record(digest)
    record.unlink()
    ensure_source(pin)
    assert digest in record.read_text()


def test_edited_tree_is_noticed(tree: Path, digest: str, source_cache: Path) -> None:
    pin = make_pin(digest)
    (ensure_source(pin, named=tree) / "src/a.cpp").write_text("edited\n")
    with pytest.raises(TecError, match="rm -r") as caught:
        ensure_source(pin)
    assert "not the pinned" in caught.value.what


def test_shipped_pin_is_valid_and_lists_a_hashed_sdist_before_git() -> None:
    kinds = [source.kind for source in load_pin().sources]
    assert kinds.index("sdist") < kinds.index("git")


def commit_all(folder: Path) -> str:
    """Commit everything in `folder` to a new repository that serves any commit; return the hash."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (
        ["init", "--quiet"],
        ["config", "uploadpack.allowAnySHA1InWant", "true"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message=all"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    )
    return head.stdout.strip()
