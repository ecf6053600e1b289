from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

from tec import patches
from tec.digest import tree_digest
from tec.errors import TecError
from tec.patches import Series, check, check_patched, load_series, stage, sync
from tec.paths import PATCHES

UPSTREAM = {"common/arg.cpp": "".join(f"line {n}\n" for n in range(1, 31)), "src/a.cpp": "a\n"}
HOOK = dedent("""\
    --- a/common/arg.cpp
    +++ b/common/arg.cpp
    @@ -1,4 +1,4 @@
     line 1
    -line 2
    +line two
     line 3
     line 4
    @@ -20,4 +20,5 @@ here
     line 20
    -line 21
    +line twenty-one
    +and more
     line 22
     line 23
    """)


def write(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    return write(tmp_path / "pristine", UPSTREAM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "series": "# hooks\n0001-hook.patch  # the only one\n",
        "0001-hook.patch": HOOK,
        "src/src/cache.cpp": "cache\n",
    }
    return write(tmp_path / "patches", files)


def patched(series: Series, pristine: Path, tmp_path: Path) -> Path:
    """Stage and sync; return the working tree."""
    staging = tmp_path / f"staging-{len(list(tmp_path.iterdir()))}"
    staging.mkdir()
    tree = tmp_path / "tree"
    sync(pristine, stage(series, pristine, staging), tree, tmp_path / "record")
    return tree


def test_hooks_and_new_files_are_in_the_tree(folder: Path, pristine: Path, tmp_path: Path) -> None:
    tree = patched(load_series(folder), pristine, tmp_path)
    assert "line two\n" in (tree / "common/arg.cpp").read_text()
    assert (tree / "src/cache.cpp").read_text() == "cache\n"
    assert (tree / "src/a.cpp").read_text() == "a\n"
    assert "line 2\n" in (pristine / "common/arg.cpp").read_text()


def test_applying_works_inside_another_repository(
    folder: Path, pristine: Path, tmp_path: Path
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/objects").mkdir()
    (tmp_path / ".git/refs").mkdir()
    tree = patched(load_series(folder), pristine, tmp_path)
    assert "and more\n" in (tree / "common/arg.cpp").read_text()


def test_second_run_touches_only_what_changed(folder: Path, pristine: Path, tmp_path: Path) -> None:
    tree = patched(load_series(folder), pristine, tmp_path)
    record = tmp_path / "record"
    record.write_text("kept while nothing changes")
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*") if path.is_file()}
    patched(load_series(folder), pristine, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert record.exists()

    (folder / "src/src/cache.cpp").write_text("edited\n")
    patched(load_series(folder), pristine, tmp_path)
    changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == [tree / "src/cache.cpp"]
    assert not record.exists()


def test_files_of_an_older_series_disappear(folder: Path, pristine: Path, tmp_path: Path) -> None:
    tree = patched(load_series(folder), pristine, tmp_path)
    sync(pristine, {}, tree, tmp_path / "record")
    assert tree_digest(tree) == tree_digest(pristine)


def test_half_written_file_is_repaired(folder: Path, pristine: Path, tmp_path: Path) -> None:
    tree = patched(load_series(folder), pristine, tmp_path)
    (tree / "common/arg.cpp").write_text("line 1\nli")
    patched(load_series(folder), pristine, tmp_path)
    assert "line 30\n" in (tree / "common/arg.cpp").read_text()


def test_patch_that_no_longer_applies_names_file_and_hunk(
    folder: Path, pristine: Path, tmp_path: Path
) -> None:
    moved_on = UPSTREAM["common/arg.cpp"].replace("line 21\n", "upstream changed this\n")
    (pristine / "common/arg.cpp").write_text(moved_on)
    with pytest.raises(TecError) as caught:
        patched(load_series(folder), pristine, tmp_path)
    assert "common/arg.cpp" in caught.value.what
    assert "@@ -20,4 +20,5 @@ here" in caught.value.what
    assert caught.value.where == folder / "0001-hook.patch"


def test_new_file_that_upstream_has_too_is_an_error(
    folder: Path, pristine: Path, tmp_path: Path
) -> None:
    write(pristine, {"src/cache.cpp": "upstream's\n"})
    with pytest.raises(TecError, match=r"'src/cache\.cpp' is in the pinned llama\.cpp already"):
        patched(load_series(folder), pristine, tmp_path)


def test_patch_of_a_file_that_is_not_there(folder: Path, pristine: Path, tmp_path: Path) -> None:
    (pristine / "common/arg.cpp").unlink()
    with pytest.raises(TecError, match=r"common/arg\.cpp"):
        patched(load_series(folder), pristine, tmp_path)


def test_series_and_patches_must_agree(folder: Path) -> None:
    (folder / "0002-forgotten.patch").write_text(HOOK)
    with pytest.raises(TecError, match=r"'0002-forgotten\.patch' is not in the series"):
        load_series(folder)
    (folder / "series").write_text("0001-hook.patch\n0002-forgotten.patch\n0003-gone.patch\n")
    with pytest.raises(TecError, match=r"'0003-gone\.patch' is missing"):
        load_series(folder)


def test_hash_covers_pin_patches_and_sources(folder: Path) -> None:
    def current() -> str:
        return load_series(folder).hash("pin")

    first = current()
    assert load_series(folder).hash("other pin") != first
    (folder / "src/src/cache.cpp").write_text("edited\n")
    second = current()
    (folder / "0001-hook.patch").write_text(HOOK.replace("two", "2"))
    assert len({first, second, current()}) == 3


def test_series_comes_off_again(
    folder: Path, pristine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(load_series(folder), pristine)
    assert "1 patches and 1 new files" in capsys.readouterr().out


def test_missing_git_is_one_clear_error(
    folder: Path, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TecError, match="git is missing"):
        patched(load_series(folder), pristine, tmp_path)


def test_shipped_series_is_consistent() -> None:
    series = load_series()
    assert all(name[:4].isdigit() for name in series.patches)
    assert list(series.patches) == sorted(series.patches)
    assert PATCHES / "series" in series.files


def test_a_tree_is_checked_without_another_copy_of_the_source(
    folder: Path, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, parts = load_series(folder), ["common", "src"]
    pin = SimpleNamespace(digest=tree_digest(pristine, parts), parts=parts, commit="0" * 40)
    monkeypatch.setattr(patches, "load_pin", lambda: pin)
    monkeypatch.setattr(patches, "load_series", lambda: series)
    tree = patched(series, pristine, tmp_path)
    assert check_patched(tree) == series.hash(pin.digest)
    whole = {
        path: (tree / path).read_text() for path in ("src/a.cpp", "src/cache.cpp", "common/arg.cpp")
    }
    for path in whole:
        (tree / path).write_text(whole[path] + "more\n")
        with pytest.raises(TecError):
            check_patched(tree)
        (tree / path).write_text(whole[path])
    assert check_patched(tree) == series.hash(pin.digest)
    (tree / "src/surplus.cpp").touch()
    with pytest.raises(TecError, match="not the pinned"):
        check_patched(tree)
    with pytest.raises(TecError):
        check_patched(pristine)
