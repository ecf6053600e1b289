"""The branch that keeps the history: two jobs at once lose nothing, and nothing is forced."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tec.paths import ROOT

BRANCH = "tec-history"


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository with one commit of code."""
    seed = tmp_path / "seed"
    (seed / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "history", seed / ".ci")
    git(tmp_path, "init", "-q", "-b", "main", str(seed))
    git(seed, "add", ".")
    git(seed, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "-m", "Code")
    git(tmp_path, "clone", "-q", "--bare", str(seed), "remote.git")
    return tmp_path / "remote.git"


def job(remote: Path, name: str) -> Path:
    """Return a fresh clone, as a job has one."""
    folder = remote.parent / name
    git(remote.parent, "clone", "-q", str(remote), str(folder))
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "TEC_"))}
    command = [str(folder / ".ci" / "history"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def fetch(folder: Path) -> Path:
    done = run(folder, "fetch")
    assert done.returncode == 0, done.stderr
    return folder / ".cache" / "history" / "history.jsonl"


def append(folder: Path, *lines: str) -> None:
    path = folder / ".cache" / "history" / "history.jsonl"
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def push(folder: Path) -> None:
    done = run(folder, "push")
    assert done.returncode == 0, done.stderr


def kept(remote: Path) -> list[str]:
    return git(remote, "show", f"{BRANCH}:history.jsonl").splitlines()


def test_the_first_job_begins_a_branch_that_shares_nothing_with_the_code(remote: Path) -> None:
    one = job(remote, "one")
    assert not fetch(one).exists()
    append(one, "a", "b")
    push(one)
    assert kept(remote) == ["a", "b"]
    assert git(remote, "ls-tree", "--name-only", BRANCH).split() == [
        ".gitattributes",
        "history.jsonl",
    ]
    roots = git(remote, "rev-list", "--max-parents=0", "main", BRANCH).split()
    assert len(roots) == 2
    assert fetch(job(remote, "next")).read_text() == "a\nb\n"


@pytest.mark.parametrize("begun", [True, False], ids=["branch", "no-branch"])
def test_jobs_that_push_at_once_lose_nothing(remote: Path, begun: bool) -> None:
    before = ["old"] if begun else []
    if begun:
        first = job(remote, "first")
        fetch(first)
        append(first, *before)
        push(first)
    jobs = [job(remote, f"job{number}") for number in range(4)]
    for number, folder in enumerate(jobs):
        fetch(folder)
        append(folder, f"{number}-1", f"{number}-2")
    running = [
        subprocess.Popen([folder / ".ci" / "history", "push"], stderr=subprocess.DEVNULL)
        for folder in jobs
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * 4
    lines = kept(remote)
    assert lines[: len(before)] == before
    assert sorted(lines[len(before) :]) == [f"{n}-{i}" for n in range(4) for i in (1, 2)]
    for number in range(4):
        assert lines.index(f"{number}-1") + 1 == lines.index(f"{number}-2")


@pytest.mark.parametrize("begun", [True, False], ids=["branch", "no-branch"])
def test_a_branch_that_is_being_written_is_waited_for(remote: Path, begun: bool) -> None:
    one, two = job(remote, "one"), job(remote, "two")
    for folder in (one, two):
        fetch(folder)
        append(folder, folder.name)
    if begun:
        push(one)
    lock = remote / "refs" / "heads" / f"{BRANCH}.lock"
    lock.touch()
    freed = threading.Timer(1.0, lock.unlink)  # git itself waits a tenth of that
    freed.start()
    push(two)
    freed.join()
    assert "two" in kept(remote)


def test_a_torn_last_line_is_ended(remote: Path) -> None:
    one, two = job(remote, "one"), job(remote, "two")
    path = fetch(one)
    path.write_text('a\n{"torn')
    fetch(two)
    append(two, "b")
    push(one)
    push(two)
    assert kept(remote) == ["a", '{"torn', "b"]


def test_nothing_new_pushes_nothing(remote: Path) -> None:
    one = job(remote, "one")
    fetch(one)
    done = run(one, "push")
    assert (done.returncode, done.stdout) == (0, "nothing to push\n")
    assert BRANCH not in git(remote, "branch", "--list")


def test_a_remote_that_refuses_is_an_error_and_keeps_the_lines(remote: Path) -> None:
    one = job(remote, "one")
    path = fetch(one)
    append(one, "a")
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho not allowed >&2\nexit 1\n")
    hook.chmod(0o755)
    done = run(one, "push")
    assert done.returncode == 2
    assert "not allowed" in done.stderr
    assert "error: origin refuses the push" in done.stderr
    assert path.read_text() == "a\n"
    hook.unlink()
    push(one)
    assert kept(remote) == ["a"]


def test_a_remote_that_is_gone_is_not_an_empty_history(remote: Path) -> None:
    one = job(remote, "one")
    remote.rename(remote.with_name("gone"))
    done = run(one, "fetch")
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert not (one / ".cache" / "history").exists()


def test_a_folder_that_is_there_is_not_overwritten(remote: Path) -> None:
    one = job(remote, "one")
    fetch(one)
    append(one, "unpushed")
    done = run(one, "fetch")
    assert done.returncode == 2
    assert "is there already" in done.stderr
