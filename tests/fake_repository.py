"""A copy of this repository with the fake study, its build faked and done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import fake_tools
from fake_study import make_row, make_study
from gguf_files import write_moe
from tec.files import sha256_file
from tec.paths import PATCHED_SERIES, ROOT, build_manifest, relative, source_record
from tec.pin import load_pin

COPIED = ("Snakefile", "workflow", "configs", "llama.cpp", "patches", "paper")


def make_repository(
    folder: Path,
    rows: Sequence[str] = ("toy",),
    faults: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Make the copy in `folder`/repository; the rows' files and tools lie beside it.

    Args:
        folder: an empty folder.
        rows: names of the study's rows; each has a model file of its own, `<row>.gguf`.
        faults: how the tools behave (`fake_tools`).
        changes: replace keys of the study.
    """
    repository = folder / "repository"
    repository.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, repository / name)
    (repository / "profiles").symlink_to("workflow/profiles")
    for row in rows:
        _write(repository / "configs" / "models" / f"{row}.yaml", _row(folder, row))
    study = make_study(folder, **{"rows": list(rows), **changes})
    _write(repository / "configs" / "studies" / "fake.yaml", study.model_dump(mode="json"))
    manifest = fake_tools.install(folder / "bin", **(faults or {}))
    manifest = manifest.model_copy(update={"target": study.target})
    built = build_manifest(study.target)
    for done in (source_record(load_pin().digest), PATCHED_SERIES, built):
        file = repository / relative(done)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(manifest.model_dump_json())
    return repository


def _row(folder: Path, name: str) -> Mapping[str, object]:
    file = write_moe(folder / f"{name}.gguf")
    source = {"kind": "file", "path": str(file), "sha256": sha256_file(file)}
    return {**make_row(folder).model_dump(mode="json"), "name": name, "source": source}


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def start(repository: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the copy's pipeline on the fake study; its machine lock is its own.

    Args:
        repository: from `make_repository`.
        log: takes both streams.
        arguments: targets, then options; `--config` is the last one, and more may follow.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(repository / "workflow"),
        "TMPDIR": str(repository.parent),
    }
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    if "--config" not in command:
        command.append("--config")
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "study=fake"],
            cwd=repository,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def run(repository: Path, *arguments: str) -> tuple[int, str]:
    """Run the copy's pipeline to its end; return the exit status and what it said."""
    log = repository.parent / "snakemake.log"
    status = start(repository, log, *arguments).wait(1800)
    return status, log.read_text()
