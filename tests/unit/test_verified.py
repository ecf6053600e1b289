import os
from pathlib import Path

import pytest

from hub_machine import sha256
from tec import verified
from tec.verified import remember, sha256_of


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty record in place of the project's."""
    path = tmp_path / "cache" / "verified.json"
    monkeypatch.setattr(verified, "VERIFIED", path)
    return path


@pytest.fixture
def ticks() -> list[int]:
    return []


def test_a_file_is_read_once(tmp_path: Path, ticks: list[int]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    for _ in range(3):
        assert sha256_of(file, lambda: ticks.append(1)) == sha256(b"content")
    assert len(ticks) == 1


def test_a_changed_file_is_read_again(tmp_path: Path, ticks: list[int]) -> None:
    file = tmp_path / "file"
    for data in (b"content", b"contents", b"CONTENTS"):
        new = tmp_path / "new"
        new.write_bytes(data)
        new.replace(file)
        assert sha256_of(file, lambda: ticks.append(1)) == sha256(data)
    assert len(ticks) == 3


def test_a_modification_time_that_is_set_back_hides_nothing(
    tmp_path: Path, ticks: list[int]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    before = file.stat()
    sha256_of(file, lambda: ticks.append(1))
    file.write_bytes(b"CONTENT")  # as long, in the same inode
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_of(file, lambda: ticks.append(1)) == sha256(b"CONTENT")


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, record: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")

    def write() -> None:
        file.write_bytes(b"another one")

    sha256_of(file, write)
    assert not record.exists()
    assert sha256_of(file, lambda: None) == sha256(b"another one")


def test_a_link_stands_for_its_file(tmp_path: Path, ticks: list[int]) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"content")
    link.symlink_to(file)
    remember(link, "known")
    assert sha256_of(file, lambda: ticks.append(1)) == "known"


def test_files_that_are_gone_are_forgotten(tmp_path: Path, record: Path) -> None:
    for name in ("one", "two"):
        file = tmp_path / name
        file.write_bytes(name.encode())
        sha256_of(file, lambda: None)
        file.unlink()
    assert str(tmp_path / "two") in record.read_text()
    assert str(tmp_path / "one") not in record.read_text()


@pytest.mark.parametrize("damage", ["", "[]", "{", "null"])
def test_a_damaged_record_costs_a_reading(tmp_path: Path, record: Path, damage: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    record.parent.mkdir()
    record.write_text(damage)
    assert sha256_of(file, lambda: None) == sha256(b"content")


def test_reading_can_be_stopped(tmp_path: Path, record: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sha256_of(file, stop)
    assert not record.exists()


def test_progress_is_shown_for_big_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "big.gguf"
    file.write_bytes(b"content")
    monkeypatch.setattr(verified, "_SHOWN_FROM", 1)
    sha256_of(file, lambda: None)
    assert "checking big.gguf ..." in capsys.readouterr().err
