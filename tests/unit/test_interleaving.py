from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fake_study import make_steps
from history_launches import OLD
from tec import against, against_session, paths, rerun
from tec.against_session import measure
from tec.cells import Cell
from tec.choice import choose
from tec.compare_paired import compare_paired
from tec.config import Study
from tec.errors import TecError
from tec.history import Series
from tec.interleaving import Side, Work, arms_of, build_key, run_interleaved
from tec.records import read_records
from tec.regress import report_of
from tec.selection import select
from tec.session import Step
from tec.steps import Steps


@pytest.fixture
def work(tmp_path: Path, apart: None) -> Work:
    steps = make_steps(tmp_path)
    return Work(
        study=steps.study,
        row=steps.row,
        model=steps.model,
        protocol="prompts",
        choice=choose("off,off-aa,cached-c8"),
        rounds=2,
        out=tmp_path / "out" / "runs.jsonl",
        log=tmp_path / "log.txt",
    )


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Side, Side]:
    manifest = make_steps(tmp_path).manifest
    return Side(manifest, "old"), Side(manifest.model_copy(update={"series_hash": "n"}), "new")


def test_every_round_has_a_new_launch_and_two_old_ones_of_every_arm(
    work: Work, sides: tuple[Side, Side]
) -> None:
    launches = run_interleaved(work, *sides, wait=0)
    count = Counter((r.arm, r.round, r.commit) for r in launches)
    assert count == {
        (arm, number, commit): 2 if commit == "old" else 1
        for arm in ("off", "cached-c8")
        for number in range(2)
        for commit in ("old", "new")
    }
    assert len({r.session for r in launches}) == 1
    assert len(read_records(work.out)) == len(launches)
    assert {r.build for r in launches} == {build_key(side) for side in sides}


def test_arms_that_are_the_same_twice_run_once(work: Work) -> None:
    assert arms_of(work) == ["off", "cached-c8"]


def test_protocol_without_throughput_is_refused(work: Work, sides: tuple[Side, Side]) -> None:
    with pytest.raises(TecError, match="locality measures no throughput"):
        run_interleaved(replace(work, protocol="locality"), *sides, wait=0)


def test_equal_binaries_decide_equally_and_few_rounds_are_no_pass(
    work: Work, sides: tuple[Side, Side]
) -> None:
    work = replace(work, rounds=1)
    launches, report = measure([work], *sides, wait=0)
    found = {(cell.arm, cell.metric): cell.finding for cell in report.comparisons}
    assert found["cached-c8", "hit_rate"] == "no change"
    assert found["cached-c8", "victims"] == "no change"
    assert found["off", "tg_tps"] == "measured nothing"
    assert report.finding == "measured nothing"
    assert report.old is not None
    assert report.old.commits == ("old",)
    cells = compare_paired(launches, [], *(build_key(side) for side in sides))
    exact = report_of("paired", [], launches, cells, "exact")
    assert exact.exit_status == 0


def test_other_victims_are_found_by_hits_alone(
    work: Work, sides: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new side's tool has a smaller cache than it says, so other experts are hits."""
    real = Steps.decode_prompts

    def fewer(self: Steps, arm: str, number: int) -> Step:
        step = real(self, arm, number)
        if arm == "off" or self.manifest.series_hash != "n":
            return step
        words = list(step.command)
        words[words.index("--expert-cache") + 1] = "2"
        return replace(step, command=tuple(words))

    monkeypatch.setattr(Steps, "decode_prompts", fewer)
    _, report = measure([replace(work, rounds=1)], *sides, wait=0, metrics="exact")
    found = {cell.metric: cell.finding for cell in report.comparisons if cell.arm == "cached-c8"}
    assert found["hit_rate"] == "regressed"
    assert found["victims"] == "regressed"
    assert report.exit_status == 10


def test_revision_is_built_in_a_worktree_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = against.commit_of("HEAD")
    assert len(commit) == len("c" * 40)
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(against, "WORKTREES", tmp_path)
    monkeypatch.setattr(against, "_check_out", lambda tree, name: tree.mkdir())
    monkeypatch.setattr(against, "_build", lambda *words: calls.append(words))
    with pytest.raises(TecError, match="this build does not exist"):
        against.build_revision(commit, "cpu", 1)
    tree = tmp_path / commit[:12]
    assert calls[0][:3] == (tree, commit, "cpu")
    assert (tree / ".cache" / "source").resolve() == paths.SOURCE_CACHE.resolve()


def test_kept_measurement_is_set_aside_and_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / f"toy.prompts.{OLD}.jsonl"
    monkeypatch.setattr(rerun, "kept_file", lambda *_: kept)
    monkeypatch.setattr(rerun, "relative", str)
    monkeypatch.setattr(rerun, "build_manifest", lambda _: tmp_path)
    monkeypatch.setattr(rerun, "model_record", lambda *_: tmp_path)
    monkeypatch.setattr(Study, "variant", lambda *_: "full")
    selection = select({"study": "demo", "rows": "pydoc-moe"})
    assert rerun.set_aside(selection, "pydoc-moe", "prompts", None) is None
    for number in (1, 2):
        kept.write_text(f"{number}")
        aside = rerun.set_aside(selection, "pydoc-moe", "prompts", None)
        assert aside is not None
        assert aside.read_text() == f"{number}"
    assert not kept.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_suspected_cells_are_measured_again_in_a_file_of_their_own(
    work: Work, sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(Series("toy", "cached-c8", "prompts", "0" * 12), "tg_tps")
    monkeypatch.setattr(against_session, "suspects", lambda *_: [cell])
    launches, _ = measure([replace(work, rounds=1)], *sides, wait=0)
    first, again = sorted(work.out.parent.iterdir())
    assert {record.arm for record in read_records(first)} == {"cached-c8"}
    assert len(read_records(again)) == 6
    assert len({launch.session for launch in launches}) == 2
