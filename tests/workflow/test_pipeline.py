"""The pipeline as a person calls it."""

import os
import re
import subprocess
import sys

import pytest

from tec.config import load_study
from tec.paths import CACHE, ROOT, relative, source_record
from tec.pin import load_pin
from tec.run_lock import hold

SOURCE = relative(source_record(load_pin().digest))


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Plan, and do nothing."""
    return snakemake("--dry-run", *arguments)


def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run snakemake; both streams are in stdout."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_everything_is_planned_and_the_profile_is_loaded() -> None:
    result = dry_run("--forceall", "all")
    assert result.returncode == 0, result.stdout
    assert "profiles/default" in result.stdout
    assert "machine=100" in result.stdout, "no job asks for the whole machine"


def test_cuda_target_can_be_planned() -> None:
    result = dry_run("--forceall", "all", "--config", "target=sm_90")
    assert result.returncode == 0, result.stdout
    assert ".cache/build/sm_90/manifest.json" in result.stdout


def test_limits_of_vram_are_refused_without_a_gpu_before_anything_is_built() -> None:
    result = dry_run("all", "--config", "study=replicas", "target=cpu")
    assert result.returncode != 0
    assert "compares arms at limits of a GPU's memory" in result.stdout
    result = dry_run("all", "--config", "study=replicas", "rows=gpt-oss-120b-mxfp4", "rounds=1")
    assert result.returncode == 0, result.stdout
    assert "measure replay replicas gpt-oss-120b-mxfp4" in result.stdout
    assert "--variant replica --build .cache/build/sm_90/manifest.json" in result.stdout
    assert "paper.pdf" not in result.stdout


def test_paper_study_can_be_planned_on_the_cpu_and_fetches_every_row() -> None:
    planned = dry_run("--forceall", "all", "--config", "study=paper", "target=cpu")
    assert planned.returncode == 0, planned.stdout
    fetched = re.findall(r"tec model ([\w.-]+) --variant full", planned.stdout)
    assert sorted(fetched) == sorted(load_study("paper").rows)
    assert planned.stdout.count("downloads=1") == len(fetched)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("stdy=demo", "unknown --config key 'stdy'\n  next: did you mean 'study'?"),
        ("arms=of", "unknown arm 'of' (study demo)\n  next: did you mean 'off'?"),
        ("rows=pydoc", "unknown row 'pydoc' (study demo)\n  next: did you mean 'pydoc-moe'?"),
    ],
)
def test_bad_configuration_is_one_clear_error(option: str, message: str) -> None:
    result = dry_run("all", "--config", option)
    assert result.returncode != 0
    assert message in result.stdout
    assert "Traceback" not in result.stdout


def test_without_the_profile_nothing_runs() -> None:
    result = dry_run("all", "--workflow-profile", "none")
    assert result.returncode != 0
    assert "workflow/profiles/default is not loaded" in result.stdout
    assert "ln -sfn workflow/profiles profiles" in result.stdout


def test_second_run_in_the_same_place_is_refused_but_may_look() -> None:
    lock = hold(CACHE / "pipeline.lock", "testing")
    try:
        assert "Building DAG" in dry_run(SOURCE).stdout
        result = snakemake(SOURCE)
    finally:
        os.close(lock)
    assert result.returncode != 0
    assert "another process is running this pipeline" in result.stdout
