from pathlib import Path

import pytest

from tec.digest import tree_digest
from tec.files import replacing, sha256_file, write_atomically


def test_file_appears_with_its_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file.txt", "text é")
    assert (tmp_path / "new" / "file.txt").read_text(encoding="utf-8") == "text é"


def test_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    write_atomically(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with replacing(tmp_path / "figure.svg") as temporary:
        assert temporary.suffix == ".svg"
        temporary.write_text("<svg/>")


def test_sha256_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty").startswith("e3b0c442")


class TestTreeDigest:
    def test_content_and_path_count_modes_and_links_do_not(self, tmp_path: Path) -> None:
        file = tmp_path / "a" / "file"
        write_atomically(file, "one")
        first = tree_digest(tmp_path)
        file.chmod(0o755)
        (tmp_path / "link").symlink_to(tmp_path)
        (tmp_path / "empty").mkdir()
        assert tree_digest(tmp_path) == first
        file.rename(tmp_path / "a" / "other")
        assert tree_digest(tmp_path) != first

    def test_only_the_parts_count(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / "a" / "file", "one")
        write_atomically(tmp_path / "single", "two")
        first = tree_digest(tmp_path, ["a", "single"])
        write_atomically(tmp_path / "b" / "file", "three")
        assert tree_digest(tmp_path, ["a", "single"]) == first
        assert tree_digest(tmp_path) != first
