"""The shipped series on the pinned llama.cpp tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tec.digest import tree_digest
from tec.patches import check, load_series, stage, sync
from tec.paths import source_tree
from tec.pin import Pin, load_pin
from tec.source import check_tree


@pytest.fixture(scope="module")
def pin() -> Pin:
    return load_pin()


@pytest.fixture(scope="module")
def pristine(pin: Pin) -> Path:
    tree = source_tree(pin.digest)
    if not tree.is_dir():
        pytest.fail(f"no source tree at {tree}; make it: tec source, or: make test")
    return tree


def test_series_applies_and_comes_off_again(pin: Pin, pristine: Path, tmp_path: Path) -> None:
    series = load_series()
    staging, tree, record = tmp_path / "staging", tmp_path / "tree", tmp_path / "series"
    staging.mkdir()
    sync(pristine, {}, tree, record)
    sync(pristine, stage(series, pristine, staging), tree, record)
    assert tree_digest(tree, pin.parts) != pin.digest
    assert all((tree / path).is_file() for path in series.sources)
    sync(pristine, {}, tree, record)
    check_tree(tree, pin)
    assert not any((tree / path).exists() for path in series.sources)


def test_every_patch_is_reversible(pristine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(load_series(), pristine)
    assert "apply and come off" in capsys.readouterr().out
