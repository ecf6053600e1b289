"""What CI makes of the answers of `tec regress`: pass, fail, or a pass with a notice."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tec.cli import COMMANDS, make_parser
from tec.paths import ROOT
from tec.regression import EXIT_STATUS

PYTHON = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in
    *"-m tec regress"*)
        while [ $# -gt 0 ]; do [ "$1" != --markdown ] || echo "**the summary**" >"$2"; shift; done
        exit "${ANSWER:-0}" ;;
    *"history page"*) [ -z "$NO_PAGE" ] || exit 2
        while [ $# -gt 0 ]; do [ "$1" != --out ] || echo page >"$2"; shift; done ;;
esac
"""
MAKE = """#!/bin/sh
echo "make $*" >>"$CALLS"
exit "${MAKE_STATUS:-0}"
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of which the second changes the engine; `make` and Python only note calls."""
    root = tmp_path / "repository"
    for folder in (".ci", ".venv/bin", "patches", "results/demo/runs"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "regress", root / ".ci")
    (root / "results/demo/runs/toy.prompts.jsonl").touch()
    for path, text in ((root / ".venv/bin/python", PYTHON), (tmp_path / "make", MAKE)):
        path.write_text(text)
        path.chmod(0o755)
    (root / ".gitignore").write_text("/results/\n/.venv/\n")
    git(tmp_path, "init", "-q", str(root))
    for text in ("old", "new"):
        (root / "patches" / "a.patch").write_text(text)
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", text)
    return root


def run(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "TEC_"))}
    path = f"{root.parent}:{inherited['PATH']}"
    environment = {**inherited, "PATH": path, "CALLS": str(root.parent / "calls"), **variables}
    command = [str(root / ".ci" / "regress"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def calls(root: Path) -> list[str]:
    """Return what was called; calls of `tec` are ones it understands."""
    found = (root.parent / "calls").read_text().splitlines()
    for call in found:
        if call.startswith("python -m tec "):
            make_parser(list(COMMANDS)).parse_args(shlex.split(call)[3:])
    return found


@pytest.mark.parametrize(
    ("finding", "status", "said"),
    [
        ("no change", 0, ""),
        ("regressed", 10, "error: regressed"),
        ("improved", 0, "notice: improved"),
        ("measured nothing", 12, "error: measured nothing, which is no pass"),
        ("not comparable", 0, "notice: not comparable"),
    ],
)
def test_findings_become_pass_or_fail(
    repository: Path, finding: str, status: int, said: str
) -> None:
    answer = str({str(name): number for name, number in EXIT_STATUS.items()}[finding])
    done = run(repository, "exact", "HEAD^", ANSWER=answer)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(said)
    assert said or not done.stderr


def test_an_error_stays_one(repository: Path) -> None:
    done = run(repository, "paired", "HEAD^", ANSWER="2")
    assert done.returncode == 2
    assert "error: tec regress ended with status 2" in done.stderr


def test_in_github_notices_and_summary_stand_on_the_run(repository: Path, tmp_path: Path) -> None:
    page = tmp_path / "step.md"
    page.write_text("before\n")
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(page)}
    done = run(repository, "exact", "HEAD^", ANSWER="13", **github)
    assert done.returncode == 0
    assert "::notice title=tec regress::not comparable" in done.stdout
    assert page.read_text() == "before\n**the summary**\n"


def test_exact_times_nothing_and_checks_parity_first(repository: Path) -> None:
    run(repository, "exact", "HEAD^")
    made, compared = calls(repository)
    assert made.startswith("make all STUDY=demo CONFIG=rows=pydoc-moe")
    assert "--against HEAD^ --study demo --rows pydoc-moe --protocol prompts" in compared
    assert compared.endswith("--metrics exact --rounds 1")


def test_a_failed_study_is_not_compared_away(repository: Path) -> None:
    done = run(repository, "exact", "HEAD^", MAKE_STATUS="2")
    assert done.returncode == 2
    assert len(calls(repository)) == 1


def test_paired_prepares_and_passes_what_was_chosen(repository: Path) -> None:
    chosen = {"TEC_STUDY": "replicas", "TEC_ROWS": "a,b", "TEC_TARGET": "sm_90", "TEC_ROUNDS": "7"}
    run(repository, "paired", "HEAD^", TEC_PROTOCOL="replay", **chosen)
    *_, prepared, compared = calls(repository)
    assert prepared.endswith("--until build model --config study=replicas rows=a,b target=sm_90")
    assert "--rows a,b --protocol replay --target sm_90 --rounds 7" in compared


def test_the_same_engine_has_nothing_to_compare(repository: Path) -> None:
    (repository / "README.md").write_text("text only")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "Text")
    done = run(repository, "paired", "HEAD^")
    assert done.returncode == 0
    assert "notice: the engine is that of HEAD^" in done.stderr
    assert not any("regress" in call for call in calls(repository))
    assert "nothing to compare" in (repository / "results/regress/summary.md").read_text()


def test_history_appends_draws_and_keeps_the_answer(repository: Path) -> None:
    done = run(repository, "history", TEC_HISTORY="kept/history.jsonl", ANSWER="10")
    assert done.returncode == 10
    _, compared, drawn = calls(repository)
    runs = "results/demo/runs/toy.prompts.jsonl"
    assert f"{runs} --history kept/history.jsonl --append" in compared
    assert "history page --history kept/history.jsonl" in drawn
    assert (repository / "results/regress/history.html").exists()


def test_a_history_that_cannot_be_drawn_leaves_the_answer(repository: Path) -> None:
    done = run(repository, "history", ANSWER="12", NO_PAGE="1")
    assert done.returncode == 12
    assert "warning: the history could not be drawn" in done.stderr


def test_a_failed_row_fails_the_history_but_its_neighbours_are_kept(repository: Path) -> None:
    done = run(repository, "history", MAKE_STATUS="2")
    assert done.returncode == 2
    assert any("--append" in call for call in calls(repository))


def test_what_an_earlier_job_left_is_not_taken_for_this_one(repository: Path) -> None:
    old = repository / "results" / "regress" / "summary.md"
    old.parent.mkdir()
    old.write_text("of yesterday")
    run(repository, "exact", "HEAD^", MAKE_STATUS="2")
    assert not old.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "usage: .ci/regress"),
        (("timed",), "usage: .ci/regress"),
        (("exact",), "usage: .ci/regress exact BASE"),
        (("exact", "no-such-commit"), "there is no commit 'no-such-commit' here"),
    ],
)
def test_wrong_calls_say_what_is_wrong(
    repository: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run(repository, *arguments)
    assert done.returncode not in (0, 10, 12)
    assert words in done.stderr
