"""The workflow for GitHub: few rights, pinned actions, nothing of a fork on one's own runner."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import yaml

from tec.paths import ROOT

TEXT = (ROOT / ".github" / "workflows" / "regress.yml").read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]

WORKFLOW_KEYS = {"name", True, "permissions", "concurrency", "jobs"}  # YAML reads `on` as true
JOB_KEYS = {
    *("if", "needs", "runs-on", "timeout-minutes", "permissions", "concurrency", "env", "steps")
}
STEP_KEYS = {"name", "if", "uses", "with", "env", "run"}


def steps() -> list[dict[str, Any]]:
    return [step for job in JOBS.values() for step in job["steps"]]


def own_runner() -> list[str]:
    return [name for name, job in JOBS.items() if "self-hosted" in job["runs-on"]]


def test_only_known_keys_and_jobs_that_exist() -> None:
    assert WORKFLOW.keys() == WORKFLOW_KEYS
    for job in JOBS.values():
        assert job.keys() <= JOB_KEYS
        assert set(job.get("needs", [])) <= JOBS.keys()
        assert 0 < job["timeout-minutes"] <= 360
        for step in job["steps"]:
            assert step.keys() <= STEP_KEYS
            assert ("uses" in step) != ("run" in step)


def test_actions_are_pinned_to_commits_and_say_which_version() -> None:
    used = re.findall(r"uses: (\S+)(.*)", TEXT)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action)
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment)


def test_rights_are_as_few_as_possible() -> None:
    assert WORKFLOW["permissions"] == {}
    assert {name: job["permissions"] for name, job in JOBS.items()} == {
        "exact": {"contents": "read"},
        "paired": {"contents": "read"},
        "history": {"contents": "write"},
        "comment": {"pull-requests": "write"},
    }
    assert "pull_request_target" not in TEXT
    assert "secrets" not in TEXT


def test_only_the_job_that_pushes_keeps_its_token() -> None:
    for name, job in JOBS.items():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"].get("persist-credentials", True) is (name == "history")


@pytest.mark.parametrize("name", own_runner())
def test_a_fork_does_nothing_on_ones_own_runner(name: str) -> None:
    condition = JOBS[name]["if"]
    assert "vars.TEC_TARGET != ''" in condition
    same_repository = "pull_request.head.repo.full_name == github.repository"
    assert same_repository in condition or "github.event_name != 'pull_request'" in condition
    assert JOBS[name]["concurrency"] == {"group": "tec-gpu", "cancel-in-progress": False}


def test_timing_needs_ones_own_runner() -> None:
    assert own_runner() == ["paired", "history"]
    for name, job in JOBS.items():
        timed = [step for step in job["steps"] if re.search("paired|history", step.get("run", ""))]
        assert bool(timed) == (name in own_runner()) or name == "comment"


def test_what_a_pull_request_says_never_becomes_a_command() -> None:
    assert [step for step in steps() if "${{" in step.get("run", "")] == []


def test_job_that_writes_to_a_pull_request_runs_nothing_of_it() -> None:
    used = [step["uses"].split("@")[0] for step in JOBS["comment"]["steps"] if "uses" in step]
    assert used == ["actions/download-artifact"]


def test_commands_exist() -> None:
    called = {path for step in steps() for path in re.findall(r"\.ci/\w+", step.get("run", ""))}
    assert called == {".ci/regress", ".ci/history"}
    for path in called:
        assert os.access(ROOT / path, os.X_OK)
    folders = [step["with"]["path"] for step in steps() if "upload" in step.get("uses", "")]
    assert all("results/regress/" in folder for folder in folders)
