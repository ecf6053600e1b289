"""One arm or one capacity, asked for by name or by result file."""

from __future__ import annotations

from pathlib import Path

import pytest

import fake_tools
from fake_repository import make_repository, run
from tec.records import read_records

RUN = "results/fake/runs/toy.prompts.jsonl"
PARITY = "results/fake/runs/toy.parity.jsonl"
ARM = "results/fake/arms/toy.{protocol}.cached-c8.jsonl"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path)


def arms(repository: Path, file: str) -> set[str]:
    return {record.arm for record in read_records(repository / file)}


def test_command_line_narrows_and_the_whole_is_kept(repository: Path) -> None:
    status, said = run(repository, RUN)
    assert status == 0, said
    before = len(fake_tools.calls(repository.parent / "bin"))
    narrow = ("--config", "arms=off,cached", "capacities=5,8")
    status, said = run(repository, RUN, PARITY, *narrow)
    assert status == 0, said
    assert arms(repository, RUN) == {"off", "cached-c5", "cached-c8"}
    assert arms(repository, PARITY) == {"off", "cached-c5", "cached-c8"}
    assert len(fake_tools.calls(repository.parent / "bin")) > before

    before = len(fake_tools.calls(repository.parent / "bin"))
    status, said = run(repository, RUN)
    assert status == 0, said
    assert "nothing to measure" in said
    assert len(fake_tools.calls(repository.parent / "bin")) == before
    assert "off-aa" in arms(repository, RUN)


def test_one_arm_by_its_file(repository: Path) -> None:
    files = [ARM.format(protocol=protocol) for protocol in ("prompts", "parity")]
    status, said = run(repository, *files)
    assert status == 0, said
    assert arms(repository, files[0]) == {"cached-c8"}
    assert arms(repository, files[1]) == {"off", "cached-c8"}  # compared with the reference
    assert not (repository / RUN).exists()
    assert len(list((repository / "results" / "fake" / "kept").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/fake/arms/toy.prompts.cached-c9.jsonl"], "unknown arm 'cached-c9' (row toy)"),
        (["results/fake/runs/toy.locality.jsonl"], "locality is not run for row toy, which has"),
        ([".cache/models/toy.miniature.json"], "row toy has no miniature"),
        ([RUN, "--config", "arms=cachd"], "unknown arm 'cachd'"),
        ([RUN, "--config", "capacities=17"], "row toy cannot have 17 slots per layer"),
    ],
)
def test_what_the_study_has_not_is_one_clear_error(
    repository: Path, arguments: list[str], message: str
) -> None:
    status, said = run(repository, *arguments)
    assert status != 0
    assert message in said
    assert "next: " in said
    assert "Traceback" not in said


def test_documents_that_a_narrow_run_does_not_make_are_removed(repository: Path) -> None:
    results = repository / "results" / "fake"
    whole = [results / name for name in ("figures/hit-rate.svg", "paper.pdf", "tables/reuse.md")]
    own = results / "figures" / "mine.svg"
    for path in (*whole, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of the whole study")
    narrow = ("--config", "arms=off", "capacities=8")
    tables = "results/fake/tables/main.csv"
    for arguments in ([RUN, *narrow], [tables, "--dry-run", *narrow]):
        status, said = run(repository, *arguments)
        assert status == 0, said
        assert all(path.exists() for path in whole)
    status, said = run(repository, tables, *narrow)
    assert status == 0, said
    assert "hit-rate.svg, paper.pdf, tables/reuse.md" in said
    assert not any(path.exists() for path in whole)
    assert own.exists()
