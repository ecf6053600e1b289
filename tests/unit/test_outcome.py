"""A row's failure as its outcome: written, handed on, told and taken away."""

import errno
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from tec import outcome
from tec.cli import main
from tec.errors import RunError, TecError
from tec.outcome import (
    Failure,
    attempt,
    failure_in,
    failures_in,
    read_records_or_failure,
    take_away,
)
from tec.paths import ROOT
from tec.records import Verdict

BROKEN = TecError("the model file is corrupt", ROOT / "models" / "toy.gguf", "restore it")


@pytest.fixture(autouse=True)
def stopped(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where word is left that a run cannot go on."""
    file = tmp_path_factory.mktemp("cache") / "stopped.json"
    monkeypatch.setattr(outcome, "STOPPED", file)
    return file


def run(
    folder: Path, error: BaseException | None = None, reads: str = "record", outcome: bool = True
) -> list[Path]:
    """Attempt work that makes two files; return them."""
    files = [folder / "runs" / "toy.jsonl", folder / "traces" / "toy.npy"]

    def work() -> None:
        if error:
            raise error
        for path in files:
            path.parent.mkdir(exist_ok=True)
            path.write_text("whole\n")

    attempt(
        work,
        Namespace(failure_as_outcome=outcome),
        row="toy",
        variant="miniature",
        stage="measure prompts",
        reads=[folder / reads],
        makes=files,
    )
    return files


def test_success_leaves_what_was_made(tmp_path: Path) -> None:
    assert [path.read_text() for path in run(tmp_path)] == ["whole\n", "whole\n"]


def test_failure_takes_the_place_of_every_file_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = run(tmp_path, BROKEN)
    expected = Failure(
        row="toy",
        variant="miniature",
        stage="measure prompts",
        what="the model file is corrupt",
        where="models/toy.gguf",  # no path of this machine
        hint="restore it",
    )
    assert [failure_in(path) for path in files] == [expected, expected]
    assert read_records_or_failure(files[0]) == expected
    assert expected.reason == "measure prompts: the model file is corrupt (models/toy.gguf)"
    said = capsys.readouterr().err
    assert "error: the model file is corrupt" in said
    assert "row toy has failed; the others go on" in said


def test_without_being_asked_for_a_failure_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="corrupt"):
        run(tmp_path, BROKEN, outcome=False)
    assert list(tmp_path.iterdir()) == []


def test_later_stages_hand_the_first_failure_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Failure(row="toy", stage="model", what="no such file", where="x", hint="fetch it")
    (tmp_path / "record").write_text(f'{{"failure": {first.model_dump_json()}}}\n')
    assert [failure_in(path) for path in run(tmp_path)] == [first, first]
    assert "row toy failed at model: measure prompts is left out" in capsys.readouterr().err
    with pytest.raises(TecError, match="row toy failed at model: no such file") as caught:
        run(tmp_path, outcome=False)
    assert caught.value.hint == "fetch it"


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (PermissionError(13, "Permission denied", "/srv/models/a b.gguf"), "'a b.gguf'"),
        (ValueError("no such head"), "ValueError: no such head"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_what_nobody_foresaw_fails_its_row_and_leaves_its_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, what: str
) -> None:
    failures = [failure_in(path) for path in run(tmp_path, error)]
    assert all(failure and failure.what.startswith(type(error).__name__) for failure in failures)
    assert all(failure and what in failure.what for failure in failures)
    assert "/srv" not in str(failures)
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert str(error) in said
    with pytest.raises(type(error)):
        run(tmp_path, error, outcome=False)


def test_failure_says_nothing_of_the_machine_and_standard_error_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = TecError(
        "cannot reach https://user:secret@mirror.local/x (/home/someone/.cache/huggingface/hub)",
        "https://mirror.local/api",
        "look into /home/someone/.cache",
    )
    failure = failure_in(run(tmp_path, error)[0])
    assert failure is not None
    assert failure.what == "cannot reach URL (hub)"
    assert failure.where is None
    assert failure.hint == "look into .cache"
    assert str(error) in capsys.readouterr().err


def test_what_stops_a_run_is_told_at_once_by_its_later_jobs(tmp_path: Path, stopped: Path) -> None:
    taken = RunError("another measurement is running", tmp_path / "lock", "wait")
    with pytest.raises(RunError):
        run(tmp_path, taken)
    with pytest.raises(RunError) as caught:
        run(tmp_path)
    assert str(caught.value) == str(taken)
    assert list(tmp_path.iterdir()) == []
    run(tmp_path, outcome=False)  # no job of a run
    stopped.unlink()
    assert run(tmp_path)[0].read_text() == "whole\n"


def _full_disk() -> TecError:
    error = TecError("this repetition was not kept")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    "error",
    [
        RunError("another measurement is running on this machine"),
        _full_disk(),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
        SystemExit(143),
    ],
)
def test_what_strikes_every_row_is_no_rows_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(tmp_path, error)
    assert list(tmp_path.iterdir()) == []


def test_only_failures_are_taken_away_each_row_named_once(tmp_path: Path) -> None:
    failed = run(tmp_path, BROKEN)
    whole = tmp_path / "other.jsonl"
    whole.write_text("{}\n")
    paths = [*failed, whole, tmp_path / "missing"]
    assert [failure.row for failure in failures_in(paths)] == ["toy"]
    assert [failure.row for failure in take_away(paths)] == ["toy"]
    assert [path.exists() for path in paths] == [False, False, True, False]
    assert take_away(paths) == []


def verdicts(path: Path, **changes: str) -> Path:
    values = {"row": "sound", "arm": "off", "check": "self", "verdict": "pass", "detail": "equal"}
    line = Verdict.model_validate({**values, "evidence": "functional", **changes})
    path.write_text(line.model_dump_json() + "\n")
    return path


@pytest.mark.parametrize(
    ("damage", "status", "message"),
    [
        (lambda folder: verdicts(folder / "v"), 0, ""),
        (lambda folder: verdicts(folder / "v", verdict="fail"), 2, "sound off self: equal"),
        (
            lambda folder: run(folder, BROKEN)[0],
            2,
            "1 row failed; the others are finished\n  toy: measure prompts: the model file",
        ),
    ],
)
def test_command_ends_a_run_by_its_outcome(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Path],
    status: int,
    message: str,
) -> None:
    good = verdicts(tmp_path / "good")
    assert main(["outcome", "--verdicts", str(good), str(damage(tmp_path))]) == status
    assert message in capsys.readouterr().err


def test_command_looks_for_failures_in_other_files_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, failed = verdicts(tmp_path / "good"), run(tmp_path, BROKEN)
    wrong = verdicts(tmp_path / "wrong", verdict="fail", check="bitwise", detail="differ")
    words = ["--verdicts", str(good), str(wrong), "--others", *map(str, failed)]
    assert main(["outcome", *words]) == 2
    said = capsys.readouterr().err
    assert "toy: measure prompts" in said
    assert "sound off bitwise: differ" in said
    assert "run again: only what is missing is tried again" in said
