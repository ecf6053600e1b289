import json
from pathlib import Path

import pytest

from tec.errors import TecError
from tec.pack_manifest import MANIFEST, Manifest, check_members, read_manifest, sha256_member


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("a.txt", "b/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("b")
    return tmp_path


def members(folder: Path) -> dict[str, str]:
    return {name: sha256_member(folder / name) for name in ("a.txt", "b/c.txt", "link")}


def manifest(folder: Path) -> Manifest:
    return Manifest(
        commit="0" * 40,
        study="demo",
        python="3.12",
        platform="manylinux_2_28_x86_64",
        system="linux",
        machine="x86_64",
        glibc="2.28",
        llama_cpp={"commit": "1" * 40, "digest": "2" * 64},
        members=members(folder),
    )


def check(folder: Path, expected: dict[str, str]) -> None:
    check_members(folder, expected, lambda done, total: None)


class TestMembers:
    def test_whole_with_other_files_beside(self, files: Path) -> None:
        (files / "made-later.txt").touch()
        check(files, members(files))

    def test_damaged_file_is_named_with_both_hashes(self, files: Path) -> None:
        expected = members(files)
        (files / "a.txt").write_text("a.tx")
        with pytest.raises(TecError) as caught:
            check(files, expected)
        found = sha256_member(files / "a.txt")
        assert f"a.txt: SHA-256 {found}, expected {expected['a.txt']}" in str(caught.value)
        assert "b/c.txt" not in str(caught.value)
        assert "copy the archive again" in str(caught.value)

    def test_missing_file_and_link_that_leads_elsewhere(self, files: Path) -> None:
        expected = members(files)
        (files / "b/c.txt").unlink()
        (files / "link").unlink()
        (files / "link").symlink_to("a.txt")
        with pytest.raises(TecError, match="2 files") as caught:
            check(files, expected)
        assert "b/c.txt: No such file" in str(caught.value)
        assert "link: SHA-256" in str(caught.value)

    def test_link_that_became_a_folder(self, files: Path) -> None:
        expected = members(files)
        (files / "link").unlink()
        (files / "link").mkdir()
        with pytest.raises(TecError, match="link: Is a directory"):
            check(files, expected)

    def test_many_damages_are_counted(self, files: Path) -> None:
        with pytest.raises(TecError, match="9 files") as caught:
            check(files, {f"{n}.txt": "" for n in range(9)})
        assert "and 4 more" in str(caught.value)


class TestFile:
    def test_is_read_as_it_was_written(self, files: Path) -> None:
        (files / MANIFEST).write_text(manifest(files).to_json())
        assert read_manifest(files) == manifest(files)

    def test_the_launcher_finds_the_python_on_a_line(self, files: Path) -> None:
        assert '\n  "python": "3.12",\n' in manifest(files).to_json()

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(TecError, match="no manifest"):
            read_manifest(tmp_path)

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "a": 2}']
    )
    def test_damaged(self, tmp_path: Path, text: str) -> None:
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(TecError, match="manifest is damaged"):
            read_manifest(tmp_path)

    def test_other_schema(self, files: Path) -> None:
        content = json.loads(manifest(files).to_json()) | {"schema": 2}
        (files / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(TecError, match="schema 2, this program reads 1"):
            read_manifest(files)
