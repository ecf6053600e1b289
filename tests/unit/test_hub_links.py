"""Files elsewhere, under names in the repository's own cache."""

import errno
from pathlib import Path

import pytest

from hub_machine import sha256
from tec import hub_links, paths
from tec.errors import TecError
from tec.gguf_file import Part
from tec.hub_links import linked

NAMES = ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]
LINKS = [f"cache/files/row/{name}" for name in NAMES]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of which the cache is empty."""
    root = tmp_path / "root"
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(hub_links, "MODEL_FILES", root / "cache" / "files")
    return root


def parts(folder: Path) -> list[Part]:
    """Write the files of a model; each has its own name as content."""
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(name)
    return [
        Part(path=str(folder / name), bytes=len(name), sha256=sha256(name.encode()))
        for name in NAMES
    ]


def test_every_part_has_its_own_name_in_one_folder(tmp_path: Path, root: Path) -> None:
    found = linked("row", parts(tmp_path / "home"))
    assert [part.path for part in found] == LINKS
    assert [(root / part.path).read_text() for part in found] == NAMES
    assert sorted(path.name for path in (root / "cache/files/row").iterdir()) == NAMES


def test_a_link_of_the_hubs_cache_keeps_its_name(tmp_path: Path, root: Path) -> None:
    blob, snapshot = tmp_path / "blobs" / "0123", tmp_path / "snapshots" / NAMES[0]
    for path in (blob, snapshot):
        path.parent.mkdir()
    blob.write_text("content")
    snapshot.symlink_to(blob)
    part = Part(path=str(snapshot), bytes=7, sha256=sha256(b"content"))
    assert [part.path for part in linked("row", [part])] == LINKS[:1]
    assert (root / LINKS[0]).read_text() == "content"


def test_files_that_moved_are_linked_anew(tmp_path: Path, root: Path) -> None:
    before = linked("row", parts(tmp_path / "home"))
    (tmp_path / "home").rename(tmp_path / "gone")  # so that the links lead nowhere
    assert linked("row", parts(tmp_path / "other")) == before
    assert (root / LINKS[0]).resolve() == tmp_path / "other" / NAMES[0]


def test_files_found_by_their_links_are_left_as_they_are(tmp_path: Path, root: Path) -> None:
    linked("row", parts(tmp_path / "home"))
    again = [
        Part(path=str(root / link), bytes=len(name), sha256=sha256(name.encode()))
        for link, name in zip(LINKS, NAMES, strict=True)
    ]
    assert [part.path for part in linked("row", again)] == LINKS
    assert (root / LINKS[0]).read_text() == NAMES[0]


def test_a_file_in_the_place_of_a_link_is_not_lost(tmp_path: Path, root: Path) -> None:
    own = root / LINKS[1]
    own.parent.mkdir(parents=True)
    own.write_text("a file of the user's own")
    with pytest.raises(TecError, match="a file lies where a link belongs") as caught:
        linked("row", parts(tmp_path / "home"))
    assert caught.value.where == own
    assert own.read_text() == "a file of the user's own"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, root: Path) -> None:
    root.mkdir()
    (root / "cache").write_text("a file where a folder should be")
    with pytest.raises(TecError, match="cannot link the files of row row") as caught:
        linked("row", parts(tmp_path / "home"))
    assert caught.value.where == root / "cache" / "files" / "row"


def test_without_links_the_files_keep_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    given = parts(tmp_path / "home")
    assert linked("row", given) == given
    assert "cache/files/row cannot have links" in capsys.readouterr().err
