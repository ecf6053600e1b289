"""Measuring with stand-ins for the tools: what is run, in which order, and what is kept."""

import errno
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
from tec import measure as measure_module
from tec import perplexity
from tec.cli import main
from tec.errors import TecError
from tec.measure import interleaved, measure_key, prompts_plan, random_plan
from tec.records import Record, read_records

pytestmark = pytest.mark.usefixtures("apart")


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
    assert record.result["status"] == {"engaged": True, "reason": None, "capacity": 8}
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
    time.sleep(0.5)  # the tool that was running ends by itself and frees the machine
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


def test_key_changes_with_what_matters_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, row, build = make_study(tmp_path), make_row(tmp_path), ["engine", "cpu", "-DA=ON"]
    key = measure_key(study, row, "prompts", build, "machine")
    parity = study.parity.model_copy(update={"n_gen": 99})
    same = {"name": "other", "rows": ["toy", "more"], "parity": parity}
    assert measure_key(study.model_copy(update=same), row, "prompts", build, "machine") == key
    keys = [
        key,
        measure_key(study, row, "random", build, "machine"),
        measure_key(study, row, "parity", build, "machine"),
        measure_key(study, row, "prompts", ["other", *build[1:]], "machine"),
        measure_key(study, row, "prompts", ["engine", "cpu", "-DA=OFF"], "machine"),
        measure_key(study, row, "prompts", build, "another machine"),
    ]
    monkeypatch.setattr(perplexity, "_CTX", 256)
    keys.append(measure_key(study, row, "parity", build, "machine"))
    (tmp_path / "prompts.jsonl").write_text('{"id": "x", "text": "other"}\n')
    keys.append(measure_key(study, row, "prompts", build, "machine"))
    assert len(set(keys)) == len(keys)


class TestCommand:
    """`tec measure` as the pipeline calls it: a kept file per key, a copy under a fixed name."""

    @pytest.fixture(autouse=True)
    def configured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = install(tmp_path / "bin")
        (tmp_path / "build.json").write_text(manifest.model_dump_json())
        (tmp_path / "model.json").write_text(make_model(tmp_path).model_dump_json())
        monkeypatch.setattr(measure_module, "load_study", lambda _: make_study(tmp_path))
        monkeypatch.setattr(measure_module, "load_row", lambda _: make_row(tmp_path))

    def run(self, folder: Path, key: str) -> int:
        options = {
            "build": folder / "build.json",
            "model": folder / "model.json",
            "kept": folder / "kept" / f"toy.prompts.{key}.jsonl",
            "out": folder / "runs" / "toy.prompts.jsonl",
            "log": folder / "log",
        }
        words = [word for name, path in options.items() for word in (f"--{name}", str(path))]
        return main(["measure", "prompts", "fake", "toy", *words])

    def test_same_key_is_measured_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, "one") == 0
        kept, out = tmp_path / "kept" / "toy.prompts.one.jsonl", tmp_path / "runs"
        before = (kept.read_bytes(), kept.stat().st_mtime_ns)
        assert kept.stat().st_mode & 0o777 == 0o444
        shutil.rmtree(out)
        assert self.run(tmp_path, "one") == 0
        assert "nothing to measure" in capsys.readouterr().err
        assert len(fake_tools.calls(tmp_path / "bin")) == 15
        assert (out / "toy.prompts.jsonl").read_bytes() == before[0]
        assert (kept.read_bytes(), kept.stat().st_mtime_ns) == before

    def test_another_key_is_measured_and_both_are_kept(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "one") == 0
        first = (tmp_path / "runs" / "toy.prompts.jsonl").read_bytes()
        assert self.run(tmp_path, "two") == 0
        assert len(fake_tools.calls(tmp_path / "bin")) == 30
        kept = sorted((tmp_path / "kept").iterdir())
        assert [path.name for path in kept] == ["toy.prompts.one.jsonl", "toy.prompts.two.jsonl"]
        assert kept[0].read_bytes() == first
        assert kept[1].read_bytes() == (tmp_path / "runs" / "toy.prompts.jsonl").read_bytes()

    def test_kept_file_that_is_not_whole_is_refused_and_left_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, "one") == 0
        kept = tmp_path / "kept" / "toy.prompts.one.jsonl"
        kept.chmod(0o644)
        kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:-1]))
        assert self.run(tmp_path, "one") == 2
        assert "14 records, which are not one for each of 15" in capsys.readouterr().err
        assert len(read_records(kept)) == 14

    def test_full_disk_while_copying_is_one_clear_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full_after(15))
            assert self.run(tmp_path, "one") == 2
        assert "disk or your quota on it is full" in capsys.readouterr().err
        assert list((tmp_path / "runs").iterdir()) == []
        assert self.run(tmp_path, "one") == 0
        assert len(fake_tools.calls(tmp_path / "bin")) == 15
