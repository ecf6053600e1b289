"""A row that fails: the others are finished and shown, and the next run tries it alone again."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import fake_tools
from fake_repository import make_repository, run
from tec.outcome import failure_in

ROWS = ("first", "broken", "last")
OUTCOME = "results/fake/verdicts/passed"
RUN = "results/fake/runs/broken.prompts.jsonl"
SMALL: dict[str, Any] = {
    "arms": {"off": {"expert_cache": "off"}, "cached": {"expert_cache": "sweep"}},
    "capacities": {"shares": [0.5]},
    "protocols": {
        "prompts": {"n_gen": 8, "rounds": 2, "threads": 1, "ctx": 64},
        "locality": {"tokens": 8, "threads": 1},
    },
}
COUNTS = {"all_hits": "--forced"}
"""What the fake tool has to count on its trace, which selects the first two experts only."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three rows, of which the model file of one is cut off."""
    return damaged(tmp_path, ROWS)


@pytest.fixture
def lone(tmp_path: Path) -> Path:
    """The broken row alone."""
    return damaged(tmp_path, ["broken"])


def damaged(folder: Path, rows: Sequence[str]) -> Path:
    repository = make_repository(folder, rows, **SMALL)
    fake_tools.set_faults(folder / "bin", **COUNTS)
    file = folder / "broken.gguf"
    file.rename(folder / "whole.gguf")
    file.write_bytes((folder / "whole.gguf").read_bytes()[:-100])
    return repository


def mend(repository: Path) -> None:
    (repository.parent / "whole.gguf").rename(repository.parent / "broken.gguf")


def table(repository: Path, name: str) -> list[dict[str, str]]:
    with (repository / "results" / "fake" / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def failure_files(repository: Path) -> list[Path]:
    folders = (repository / "results", repository / ".cache" / "models")
    return [path for folder in folders for path in folder.rglob("*.*") if failure_in(path)]


def planned(repository: Path, *targets: str) -> Counter[tuple[str, str]]:
    """Return the planned jobs as (rule, row) by a dry run."""
    status, said = run(repository, *targets, "--dry-run")
    assert status == 0, said
    blocks = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", said, re.MULTILINE)
    rows = [(rule, re.search(r"wildcards: .*row=([\w.-]+)", block)) for rule, block in blocks]
    return Counter((rule, row[1] if row else "") for rule, row in rows)


def measured(repository: Path) -> Counter[str]:
    """Return how many processes ran on each row's model so far."""
    calls = fake_tools.calls(repository.parent / "bin")
    return Counter(row for row in ROWS for call in calls if f"/{row}.gguf" in call)


def test_one_broken_row_leaves_the_others_and_is_tried_again_alone(repository: Path) -> None:
    status, said = run(repository, OUTCOME)
    assert status != 0
    assert "1 row failed; the others are finished\n  broken: model: the model file is cor" in said
    assert not (repository / OUTCOME).exists()
    main = table(repository, "main")
    assert [(row["row"], row["outcome"]) for row in main] == [
        ("first", "ok"),
        ("broken", "failed"),
        ("last", "ok"),
    ]
    assert "corrupt or another one" in main[1]["reason"]
    assert main[1]["tec_tps"] == ""
    assert float(main[2]["tec_tps"]) > 0
    for name in ("capacity", "overhead", "locality", "reuse", "calibration"):
        assert {row["row"] for row in table(repository, name)} == {"first", "last"}
    checks = [row for row in table(repository, "parity") if row["row"] == "broken"]
    assert [(row["check"], row["verdict"]) for row in checks] == [("self", "not_run")]
    assert failure_files(repository) == []

    again = Counter(
        {
            ("model", "broken"): 1,
            ("measure", "broken"): 2,
            ("measure_locality", "broken"): 1,
            ("verdicts", "broken"): 1,
            ("tables", ""): 1,
            ("locality", ""): 1,
            ("calibrate", "broken"): 1,
            ("calibration", ""): 1,
            ("outcome", ""): 1,
        }
    )
    assert planned(repository, OUTCOME) == again

    mend(repository)
    before = measured(repository)
    status, said = run(repository, OUTCOME)
    assert status == 0, said
    assert set(measured(repository) - before) == {"broken"}
    assert [row["outcome"] for row in table(repository, "main")] == ["ok", "ok", "ok"]
    assert planned(repository, OUTCOME) == Counter()


def test_row_failing_in_the_middle_keeps_what_is_finished(lone: Path) -> None:
    mend(lone)
    fake_tools.set_faults(lone.parent / "bin", **COUNTS, fail="llama-perplexity")
    status, said = run(lone, OUTCOME)
    assert status != 0
    assert "broken: parity: llama-perplexity" in said
    (row,) = [row for row in table(lone, "main") if row["row"] == "broken"]
    assert row["outcome"] == "failed"
    assert float(row["tec_tps"]) > 0
    assert "parity: llama-perplexity" in row["reason"]
    (partial,) = (lone / "results" / "fake" / "kept").glob("*.partial")
    done = partial.read_bytes().count(b"\n")
    assert planned(lone, OUTCOME)["measure", "broken"] == 1

    fake_tools.set_faults(lone.parent / "bin", **COUNTS)
    status, said = run(lone, OUTCOME)
    assert status == 0, said
    assert f"continuing: {done} of" in said


def test_row_asked_for_alone_fails_the_run_and_leaves_no_file(lone: Path) -> None:
    status, said = run(lone, RUN)
    assert status != 0
    assert "1 row failed" in said
    assert failure_files(lone) == []
    assert not (lone / RUN).exists()


def test_failures_of_a_killed_run_are_tried_again(lone: Path) -> None:
    """What a killed run leaves behind does not pass for a result."""
    mend(lone)
    failure = '{"failure": {"row": "broken", "stage": "measure prompts", "what": "killed"}}\n'
    (lone / RUN).parent.mkdir(parents=True)
    (lone / RUN).write_text(failure)
    status, said = run(lone, RUN, "--dry-run")
    assert "row broken failed in a run that was killed" in said
    assert failure_in(lone / RUN), "a dry run changes nothing"
    status, said = run(lone, RUN)
    assert status == 0, said
    assert failure_in(lone / RUN) is None
    assert measured(lone)["broken"] == 2 * 2


def test_what_concerns_the_whole_run_stops_its_other_jobs_at_once(repository: Path) -> None:
    mend(repository)
    tool = repository.parent / "bin" / "llama-expert-bench"
    ran = repository.parent / "ran"
    whole = tool.with_name("whole")
    tool.rename(whole)
    tool.write_text(f"#!/bin/sh\necho >> {ran}\necho 'No space left on device' >&2\nexit 1\n")
    tool.chmod(0o755)
    status, said = run(repository, OUTCOME)
    assert status != 0
    assert ran.read_text().count("\n") == 1
    assert said.count("the disk or your quota on it is full: llama-expert-bench") > 1
    assert "failed; the others" not in said
    assert failure_files(repository) == []

    whole.rename(tool)
    status, said = run(repository, OUTCOME)
    assert status == 0, said


def test_lock_that_does_not_fit_fails_its_row_alone(lone: Path) -> None:
    file = lone / "configs" / "models" / "broken.yaml"
    source = {"kind": "hub", "repo": "owner/name", "files": ["new.gguf"]}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "source": source}))
    locked = {"name": "old.gguf", "size": 1, "sha256": "a" * 64}
    entry = {"repo": "owner/name", "commit": "b" * 40, "files": [locked]}
    lock = {"version": 1, "rows": {"broken": entry}}
    (lone / "configs" / "hub.lock.json").write_text(json.dumps(lock))
    assert planned(lone, OUTCOME)["model", "broken"] == 1
    status, said = run(lone, OUTCOME)
    assert status != 0
    assert "1 row failed" in said
    assert "broken: model: row broken names new.gguf of owner/name, but the lock has old" in said
