"""Measuring with stand-ins for the tools: what is run, in which order, and what is kept."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_tools
from fake_study import ARMS, make_model, make_row, make_session, make_steps, make_study
from fake_tools import install
from gguf_files import write_moe
from tec import measure as measure_module
from tec.cli import main
from tec.errors import TecError
from tec.files import sha256_file
from tec.inputs import INPUTS
from tec.measure import kept_trace, locality_plan, prompts_plan, random_plan
from tec.order import interleaved
from tec.outcome import failure_in
from tec.records import Record, read_records

pytestmark = pytest.mark.usefixtures("apart")

WITH_LOCALITY = {
    "prompts": {"n_gen": 8, "rounds": 1, "threads": 1, "ctx": 64},
    "locality": {"tokens": 9, "threads": 1},
}


def measure(folder: Path, **faults: Any) -> list[Record]:
    maker = make_steps(folder, **faults)
    made = make_session(folder, maker, "prompts")
    made.run(prompts_plan(maker), wait=0)
    return read_records(made.kept)


def unfinish(kept: Path) -> None:
    """Make a finished file an unfinished run's."""
    kept.chmod(0o644)
    kept.rename(kept.with_name(f"{kept.name}.partial"))


@given(
    st.lists(st.sampled_from(["off", "off-aa", "c8", "c16", "c64"]), min_size=1, unique=True),
    st.integers(1, 9),
    st.text(max_size=5),
)
def test_every_round_has_every_arm_once_and_starts_with_another(
    arms: list[str], rounds: int, seed: str
) -> None:
    order = list(interleaved(arms, rounds, seed))
    assert order == list(interleaved(arms, rounds, seed))
    by_round = [[arm for r, arm in order if r == number] for number in range(rounds)]
    assert all(sorted(chosen) == sorted(arms) for chosen in by_round)
    first = [chosen[0] for chosen in by_round[: len(arms)]]
    assert len(set(first)) == len(first)


def test_one_fresh_process_per_arm_and_round(tmp_path: Path) -> None:
    records = measure(tmp_path)
    assert Counter((r.arm, r.round) for r in records) == Counter(
        {(arm, number): 1 for arm in ARMS for number in range(3)}
    )
    assert len(fake_tools.calls(tmp_path / "bin")) == 15
    assert [r.order for r in records] == list(range(15))


def test_record_carries_command_system_build_model_and_the_tools_line(tmp_path: Path) -> None:
    record = next(r for r in measure(tmp_path) if r.arm == "cached-c8")
    assert record.command[0] == str(tmp_path / "bin" / "llama-expert-bench")
    assert " ".join(record.command).endswith("-n 8 -r 1 -t 1 -c 64 --expert-cache 8")
    assert record.system.ram_bytes > 0
    assert record.key.system == record.system.fingerprint
    assert record.build.series_hash == "5" * 64
    assert record.build.cmake_args == ("-DGGML_CUDA=OFF",)  # no path of this machine
    assert record.model.n_expert == 16
    assert record.result["status"]["capacity"] == 8
    assert record.process.exit_code == 0
    assert record.started_at.tzinfo is not None
    assert record.evidence == "functional"


def test_published_protocol_runs_prompt_and_decode_in_processes_of_their_own(
    tmp_path: Path,
) -> None:
    maker = make_steps(tmp_path)
    made = make_session(tmp_path, maker, "random")
    made.run(random_plan(maker), wait=0)
    records = read_records(made.kept)
    assert Counter(r.test for r in records) == {"pp4": 10, "tg6": 10}
    decode = next(r for r in records if r.test == "tg6" and r.arm == "off")
    assert " ".join(decode.command[3:]) == ("-p 0 -n 6 -r 1 -fa 1 -t 1 -o jsonl --expert-cache off")


def test_progress_has_a_line_per_process_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 15
    assert re.fullmatch(
        r"\[15/15\] toy prompts: round 3, \S+ prompts, \d+\.\d s; 0 s left", lines[-1]
    )


def test_failing_tool_stops_and_the_next_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TecError, match="capacity 1 is below") as caught:
        measure(tmp_path, fail="--expert-cache 8")
    assert "llama-expert-bench" in str(caught.value)
    assert str(tmp_path / "tools.log") in str(caught.value)
    assert not (tmp_path / "toy.prompts.jsonl").exists()
    done = len(fake_tools.calls(tmp_path / "bin")) - 1
    records = measure(tmp_path)
    assert f"continuing: {done} of 15" in capsys.readouterr().err
    assert len(fake_tools.calls(tmp_path / "bin")) == 15 + 1
    assert sorted(r.order for r in records) == list(range(15))
    assert not list(tmp_path.glob("*.partial*"))


def test_torn_last_record_is_measured_again(tmp_path: Path) -> None:
    with pytest.raises(TecError):
        measure(tmp_path, fail="--expert-cache 8")
    with (tmp_path / "toy.prompts.jsonl.partial").open("ab") as partial:
        partial.write(b'{"schema": 1, "study": "fa')
    assert len(measure(tmp_path)) == 15


@pytest.mark.parametrize("change", ["build", "prompts", "study"])
def test_partial_file_of_other_settings_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    measure(tmp_path)
    out = tmp_path / "toy.prompts.jsonl"
    unfinish(out)
    maker = make_steps(tmp_path)
    if change == "build":
        maker.manifest.series_hash = "6" * 64
    elif change == "study":
        protocols = json.loads(maker.study.protocols.model_dump_json())
        protocols["prompts"]["n_gen"] = 9
        maker = make_steps(tmp_path, make_study(tmp_path, protocols=protocols))
    else:
        (tmp_path / "prompts.jsonl").write_text('{"id": "p0", "text": "other"}\n')
    made = make_session(tmp_path, maker, "prompts")
    made.run(prompts_plan(maker), wait=0)
    assert "set aside" in capsys.readouterr().err
    assert (tmp_path / "toy.prompts.jsonl.partial.1").exists()
    assert len({r.key for r in read_records(out)}) == 4  # off and off-aa share theirs
    assert len(fake_tools.calls(tmp_path / "bin")) == 30


def test_more_rounds_continue_a_partial_file(tmp_path: Path) -> None:
    measure(tmp_path)
    unfinish(tmp_path / "toy.prompts.jsonl")
    study = make_study(tmp_path)
    protocols = json.loads(study.protocols.model_dump_json())
    protocols["prompts"]["rounds"] = 4
    maker = make_steps(tmp_path, make_study(tmp_path, protocols=protocols))
    make_session(tmp_path, maker, "prompts").run(prompts_plan(maker), wait=0)
    assert len(fake_tools.calls(tmp_path / "bin")) == 15 + 5


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"torn": True}, "cannot be read"),
        ({"not_engaged": True}, "not engaged: off"),
    ],
)
def test_results_that_are_none_are_refused(
    tmp_path: Path, faults: dict[str, bool], message: str
) -> None:
    with pytest.raises(TecError, match=message) as caught:
        measure(tmp_path, **faults)
    assert "arm " in str(caught.value)
    assert not (tmp_path / "toy.prompts.jsonl").exists()


def test_killed_measurement_keeps_what_was_finished(tmp_path: Path) -> None:
    make_steps(tmp_path, slow=0.2)
    code = (
        "import sys; from pathlib import Path; import fake_study as s\n"
        "from tec import machine_lock; from tec.measure import prompts_plan\n"
        "folder = Path(sys.argv[1]); machine_lock.lock_path = lambda: folder / 'lock'\n"
        "maker = s.make_steps(folder, slow=0.2)\n"
        "s.make_session(folder, maker, 'prompts').run(prompts_plan(maker), wait=0)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    partial = tmp_path / "toy.prompts.jsonl.partial"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.wait()
    kept = partial.read_bytes().count(b"\n")
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tool that was running ends by itself
    before = len(fake_tools.calls(tmp_path / "bin"))
    assert len(measure(tmp_path)) == 15
    assert len(fake_tools.calls(tmp_path / "bin")) - before == 15 - kept


def test_full_disk_keeps_the_finished_records_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full_after(2))
        with pytest.raises(TecError, match="disk is full") as caught:
            measure(tmp_path)
    assert "free some space" in str(caught.value)
    assert not (tmp_path / "toy.prompts.jsonl").exists()
    assert len(read_records(tmp_path / "toy.prompts.jsonl.partial")) == 2
    assert len(measure(tmp_path)) == 15
    assert len(fake_tools.calls(tmp_path / "bin")) == 15 + 1


def _full_after(writes: int) -> Callable[[int], None]:
    """Return a stand-in for fsync that finds the disk full after so many calls."""
    calls = iter(range(writes))

    def fsync(_: int) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    return fsync


class TestCommand:
    """`tec measure` as the pipeline calls it: a kept file per key, a copy under a fixed name."""

    @pytest.fixture(autouse=True)
    def configured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = install(tmp_path / "bin")
        (tmp_path / "build.json").write_text(manifest.model_dump_json())
        monkeypatch.setattr(measure_module, "load_study", lambda _: make_study(tmp_path))
        monkeypatch.setattr(measure_module, "load_row", lambda _: make_row(tmp_path))

    def run(self, folder: Path, model: str = "a", *more: str) -> int:
        info = make_model(folder).model_copy(update={"sha256": model * 64})
        (folder / "model.json").write_text(info.model_dump_json())
        options = {
            "build": folder / "build.json",
            "model": folder / "model.json",
            "kept": folder / "kept",
            "out": folder / "runs" / "toy.prompts.jsonl",
            "log": folder / "log",
        }
        words = [word for name, path in options.items() for word in (f"--{name}", str(path))]
        return main(["measure", "prompts", "fake", "toy", *words, *more])

    def kept(self, folder: Path) -> list[Path]:
        return sorted((folder / "kept").iterdir(), key=lambda path: path.stat().st_mtime_ns)

    def test_same_key_is_measured_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path) == 0
        (kept,) = self.kept(tmp_path)
        assert re.fullmatch(r"toy\.prompts\.[0-9a-f]{12}\.jsonl", kept.name)
        before = (kept.read_bytes(), kept.stat().st_mtime_ns)
        assert kept.stat().st_mode & 0o777 == 0o444
        shutil.rmtree(tmp_path / "runs")
        assert self.run(tmp_path) == 0
        assert "nothing to measure" in capsys.readouterr().err
        assert len(fake_tools.calls(tmp_path / "bin")) == 15
        assert (tmp_path / "runs" / "toy.prompts.jsonl").read_bytes() == before[0]
        assert (kept.read_bytes(), kept.stat().st_mtime_ns) == before

    def test_another_model_is_measured_and_both_are_kept(self, tmp_path: Path) -> None:
        assert self.run(tmp_path) == 0
        first = (tmp_path / "runs" / "toy.prompts.jsonl").read_bytes()
        assert self.run(tmp_path, "b") == 0
        assert len(fake_tools.calls(tmp_path / "bin")) == 30
        one, two = self.kept(tmp_path)
        assert one.read_bytes() == first
        assert two.read_bytes() == (tmp_path / "runs" / "toy.prompts.jsonl").read_bytes()

    def test_chosen_arms_alone_are_measured_and_kept_apart(self, tmp_path: Path) -> None:
        assert self.run(tmp_path) == 0
        assert self.run(tmp_path, "a", "--arms", "off,cached", "--capacities", "4") == 0
        whole, part = self.kept(tmp_path)
        assert {record.arm for record in read_records(part)} == {"off", "cached-c4"}
        assert len(read_records(whole)) == 15

    def test_kept_file_that_is_not_whole_is_refused_and_left_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path) == 0
        (kept,) = self.kept(tmp_path)
        kept.chmod(0o644)
        kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:-1]))
        assert self.run(tmp_path) == 2
        assert "14 records, which are not one for each of these 15" in capsys.readouterr().err
        assert len(read_records(kept)) == 14

    def test_failure_becomes_the_outcome_where_asked_for(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_tools.set_faults(tmp_path / "bin", fail="--expert-cache 8")
        assert self.run(tmp_path) == 2
        assert not (tmp_path / "runs").exists()
        assert self.run(tmp_path, "a", "--failure-as-outcome") == 0
        failure = failure_in(tmp_path / "runs" / "toy.prompts.jsonl")
        assert failure is not None
        assert (failure.row, failure.stage) == ("toy", "measure prompts")
        assert "capacity 1 is below" in failure.reason
        assert "the others go on" in capsys.readouterr().err

    def test_full_disk_while_copying_is_one_clear_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full_after(15))
            assert self.run(tmp_path) == 2
        assert "disk or your quota on it is full" in capsys.readouterr().err
        assert list((tmp_path / "runs").iterdir()) == []
        assert self.run(tmp_path) == 0
        assert len(fake_tools.calls(tmp_path / "bin")) == 15


def test_locality_records_each_inputs_routing_once_and_counts_at_every_capacity(
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path, protocols=WITH_LOCALITY)
    maker = make_steps(tmp_path, study)
    write_moe(tmp_path / "toy.gguf")  # make_steps leaves a stand-in there
    made = make_session(tmp_path, maker, "locality")
    made.run(locality_plan(maker, made.kept), wait=0)
    records = read_records(made.kept)
    cached = [name for name in ARMS if name.startswith("cached")]
    assert [(r.test, r.arm) for r in records] == [
        (name, arm) for name in INPUTS for arm in ("off", *cached)
    ]
    for record in records:
        trace = kept_trace(made.kept, record.test)
        assert ("trace_sha256" in record.result) == (record.arm == "off")
        if record.arm == "off":
            assert record.result["trace_sha256"] == sha256_file(trace)


def test_counts_that_the_trace_does_not_predict_are_the_rows_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path, protocols=WITH_LOCALITY)
    monkeypatch.setattr(measure_module, "load_study", lambda _: study)
    monkeypatch.setattr(measure_module, "load_row", lambda _: make_row(tmp_path))
    (tmp_path / "build.json").write_text(install(tmp_path / "bin").model_dump_json())
    (tmp_path / "model.json").write_text(make_model(tmp_path).model_dump_json())
    write_moe(tmp_path / "toy.gguf")
    paths = {"build": "build.json", "model": "model.json", "kept": "kept", "log": "log"}
    paths |= {"out": "out.jsonl", "traces": "traces"}
    words = [word for name, file in paths.items() for word in (f"--{name}", str(tmp_path / file))]
    assert main(["measure", "locality", "fake", "toy", *words]) == 2
    assert "at token 0 the trace predicts 4 LRU hits" in capsys.readouterr().err
    assert not (tmp_path / "traces").exists()
    shutil.rmtree(tmp_path / "kept")
    fake_tools.set_faults(tmp_path / "bin", all_hits="--forced")  # what its trace predicts
    assert main(["measure", "locality", "fake", "toy", *words]) == 0
    assert {path.name for path in (tmp_path / "traces").iterdir()} == {
        f"toy.{name}.npy" for name in INPUTS
    }


def test_protocol_that_is_not_in_the_study_is_named(tmp_path: Path) -> None:
    maker = make_steps(tmp_path)
    with pytest.raises(TecError, match="protocol locality is not run for row toy"):
        locality_plan(maker, tmp_path / "toy.locality.jsonl")
