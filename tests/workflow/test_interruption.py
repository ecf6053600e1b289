"""A killed pipeline continues its measurement, and a finished one is not made again."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

import fake_tools
from fake_repository import make_repository, start
from fake_study import ARMS
from process_tree import kill_tree
from tec.paths import build_manifest, relative
from tec.records import read_records

RUNS = "results/fake/runs/toy.prompts.jsonl"
ROUNDS = 3


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path, faults={"slow": 0.1})


def wait_for_records(folder: Path, wanted: int, process: subprocess.Popen[bytes]) -> Path:
    """Return the partial file once it has as many records."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        for partial in folder.glob("*.partial"):
            if partial.read_bytes().count(b"\n") >= wanted:
                return partial
        time.sleep(0.02)
    pytest.fail(f"no {wanted} records in {folder}")


def test_killed_measurement_continues_and_is_then_kept(repository: Path, tmp_path: Path) -> None:
    log, kept = tmp_path / "snakemake.log", repository / "results" / "fake" / "kept"
    killed = start(repository, log, RUNS)
    partial = wait_for_records(kept, 3, killed)
    kill_tree(killed)
    finished = partial.read_bytes().count(b"\n")
    before = len(fake_tools.calls(tmp_path / "bin"))
    assert not (repository / RUNS).exists()

    again = start(repository, log, RUNS)
    assert again.wait(600) == 0, log.read_text()
    total = len(ARMS) * ROUNDS
    assert f"continuing: {finished} of {total} processes" in log.read_text()
    assert len(fake_tools.calls(tmp_path / "bin")) - before == total - finished
    assert not list(kept.glob("*.partial*"))
    records = read_records(repository / RUNS)
    assert sorted(record.order for record in records) == list(range(total))
    (file,) = kept.iterdir()
    assert file.read_bytes() == (repository / RUNS).read_bytes()

    before = len(fake_tools.calls(tmp_path / "bin"))
    manifest = repository / relative(build_manifest("cpu"))
    manifest.write_text(manifest.read_text() + "\n")  # as after a patch edited and reverted
    unchanged = start(repository, log, RUNS)
    assert unchanged.wait(600) == 0, log.read_text()
    assert "nothing to measure" in log.read_text()
    assert len(fake_tools.calls(tmp_path / "bin")) == before
    assert file.read_bytes() == (repository / RUNS).read_bytes()
