"""A killed pipeline continues its measurement, and a finished one is not made again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fake_tools
from fake_study import ARMS, make_row, make_study
from gguf_files import write_moe
from process_tree import kill_tree
from tec.files import sha256_file
from tec.paths import PATCHED_SERIES, ROOT, build_manifest, relative, source_record
from tec.pin import load_pin
from tec.records import read_records

RUNS = "results/fake/runs/toy.prompts.jsonl"
COPIED = ("Snakefile", "workflow", "configs", "llama.cpp", "patches", "paper")
ROUNDS = 3


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of this repository with the fake study, its build faked and done."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "profiles").symlink_to("workflow/profiles")
    _write_configs(folder, tmp_path)
    manifest = fake_tools.install(tmp_path / "bin", slow=0.1)
    for done in (source_record(load_pin().digest), PATCHED_SERIES, build_manifest("cpu")):
        file = folder / relative(done)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(manifest.model_dump_json())
    return folder


def _write_configs(folder: Path, inputs: Path) -> None:
    """Write the fake study and its row; their files lie in `inputs`."""
    study, row = make_study(inputs), make_row(inputs)
    source = {"path": str(write_moe(inputs / "toy.gguf"))}
    source["sha256"] = sha256_file(Path(source["path"]))
    content = row.model_dump(mode="json") | {"source": {"kind": "file", **source}}
    (folder / "configs" / "models" / "toy.yaml").write_text(yaml.safe_dump(content))
    written = yaml.safe_dump(study.model_dump(mode="json"))
    (folder / "configs" / "studies" / "fake.yaml").write_text(written)


def start(repository: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the pipeline; its machine lock is its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(repository / "workflow"),
        "TMPDIR": str(repository.parent),
    }
    command = [sys.executable, "-m", "snakemake", "--cores", "1", RUNS, "--config", "study=fake"]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=repository, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def wait_for_records(folder: Path, wanted: int, process: subprocess.Popen[bytes]) -> Path:
    """Return the partial file once it has as many records."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for partial in folder.glob("*.partial"):
            if partial.read_bytes().count(b"\n") >= wanted:
                return partial
        time.sleep(0.02)
    pytest.fail(f"no {wanted} records in {folder}")


def test_killed_measurement_continues_and_is_then_kept(repository: Path, tmp_path: Path) -> None:
    log, kept = tmp_path / "snakemake.log", repository / "results" / "fake" / "kept"
    killed = start(repository, log)
    partial = wait_for_records(kept, 3, killed)
    kill_tree(killed)
    finished = partial.read_bytes().count(b"\n")
    before = len(fake_tools.calls(tmp_path / "bin"))
    assert not (repository / RUNS).exists()

    again = start(repository, log)
    assert again.wait(60) == 0, log.read_text()
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
    unchanged = start(repository, log)
    assert unchanged.wait(60) == 0, log.read_text()
    assert "nothing to measure" in log.read_text()
    assert len(fake_tools.calls(tmp_path / "bin")) == before
    assert file.read_bytes() == (repository / RUNS).read_bytes()
