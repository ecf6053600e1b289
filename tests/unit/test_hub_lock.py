from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tec.config import HubSource
from tec.errors import TecError
from tec.hub_lock import LockedFile, LockEntry, pinned, read_lock, write_entry
from tec.paths import HUB_LOCK

SOURCE = HubSource(kind="hub", repo="acme/moe", files=["a.gguf"])


def entry(commit: str = "a" * 40) -> LockEntry:
    file = LockedFile(name="a.gguf", size=5, sha256="0" * 64)
    return LockEntry(repo="acme/moe", commit=commit, files=[file])


def write(path: Path, number: int) -> None:
    write_entry(path, f"row-{number:02d}", entry())


def test_an_entry_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "hub.lock.json"
    assert pinned(path, "moe", SOURCE) is None
    write_entry(path, "moe", entry())
    assert pinned(path, "moe", SOURCE) == entry()


def test_rows_are_sorted_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hub.lock.json"
    for row, commit in (("b", "a"), ("a", "a"), ("b", "c")):
        write_entry(path, row, entry(commit * 40))
    rows = read_lock(path).rows
    assert list(rows) == ["a", "b"]
    assert rows["b"].commit == "c" * 40


def test_entries_written_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "hub.lock.json"
    numbers = range(20)
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(write, [path] * len(numbers), numbers))
    assert list(read_lock(path).rows) == [f"row-{number:02d}" for number in numbers]


@pytest.mark.parametrize(
    ("repo", "files"), [("acme/other", ["a.gguf"]), ("acme/moe", ["a.gguf", "b.gguf"])]
)
def test_an_entry_of_other_files_is_refused(tmp_path: Path, repo: str, files: list[str]) -> None:
    path = tmp_path / "hub.lock.json"
    write_entry(path, "moe", entry())
    with pytest.raises(TecError, match=r"the lock has a\.gguf of acme/moe") as caught:
        pinned(path, "moe", HubSource(kind="hub", repo=repo, files=files))
    assert "tec fetch moe --repin" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"version": 2, "rows": {}}',
        '{"version": 1, "rows": {"moe": {"repo": "acme/moe"}}}',
    ],
)
def test_a_damaged_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hub.lock.json"
    path.write_text(text)
    with pytest.raises(TecError, match="the lock file does not fit") as caught:
        read_lock(path)
    assert caught.value.where == path


def test_the_projects_lock_can_be_read() -> None:
    assert read_lock(HUB_LOCK).version == 1
