import os
import shutil
import subprocess
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from tec import pack_archive
from tec.errors import TecError
from tec.pack_archive import ENDINGS, check_ending, write_archive

SECONDS = 1_700_000_000
AVAILABLE = [end for end in ENDINGS if not end.endswith(".zst") or shutil.which("zstd")]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def members(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "plain.txt").write_text("plain\n" * 1000)
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o700)
    (folder / "link").symlink_to("plain.txt")
    long = f"{'long/' * 40}name.txt"
    names = {"z/plain.txt": "plain.txt", "b/link": "link", "run": "program", long: "plain.txt"}
    return {name: folder / file for name, file in names.items()}


@pytest.mark.parametrize("ending", AVAILABLE)
def test_same_files_give_the_same_bytes(
    ending: str, members: dict[str, Path], tmp_path: Path
) -> None:
    first, second = tmp_path / f"first{ending}", tmp_path / f"second{ending}"
    write_archive(first, "top", members, SECONDS)
    for path in members.values():
        if not path.is_symlink():
            os.utime(path, (1, 1))
    (members["z/plain.txt"]).chmod(0o600)
    write_archive(second, "top", dict(reversed(members.items())), SECONDS)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("ending", AVAILABLE)
def test_tar_unpacks_what_was_packed(ending: str, members: dict[str, Path], tmp_path: Path) -> None:
    archive = tmp_path / f"pack{ending}"
    write_archive(archive, "top", members, SECONDS)
    subprocess.run(["tar", "xf", archive.name], cwd=tmp_path, check=True)
    for name, origin in members.items():
        path = tmp_path / "top" / name
        assert path.is_symlink() == origin.is_symlink()
        if not path.is_symlink():
            assert path.read_bytes() == origin.read_bytes()
            assert os.access(path, os.X_OK) == os.access(origin, os.X_OK)


def test_members_are_sorted_with_the_packs_own_first_and_nobodys(
    members: dict[str, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "pack.tar"
    write_archive(archive, "top", members, SECONDS)
    with tarfile.open(archive) as tar:
        infos = tar.getmembers()
    assert [info.name[:8] for info in infos] == ["top/run", "top/b/li", "top/long", "top/z/pl"]
    assert {(info.mtime, info.uid, info.gid, info.uname) for info in infos} == {(SECONDS, 0, 0, "")}


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(TecError, match=r"end it in \.tar, \.tar\.gz"):
        check_ending(tmp_path / "pack.zip")


def test_zstd_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TecError, match="zstd is missing"):
        check_ending(tmp_path / "pack.tar.zst")


@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd is not installed")
def test_zstd_that_fails_leaves_nothing(
    members: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_archive, "ZSTD", ("sh", "-c", "cat >/dev/null; exit 3"))
    before = set(tmp_path.iterdir())
    with pytest.raises(TecError, match="zstd failed"):
        write_archive(tmp_path / "pack.tar.zst", "top", members, SECONDS)
    assert set(tmp_path.iterdir()) == before


def test_member_that_vanishes_leaves_nothing(members: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "pack.tar.gz"
    members["gone"] = members["run"].with_name("gone")
    with pytest.raises(FileNotFoundError):
        write_archive(out, "top", members, SECONDS)
    assert not out.exists()


def test_full_disk_is_said_before_anything_is_written(
    members: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(TecError, match=r"only 0\.00 GB are free"):
        write_archive(tmp_path / "not-yet" / "pack.tar", "top", members, SECONDS)
    assert not (tmp_path / "not-yet").exists()
