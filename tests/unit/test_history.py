import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from fake_study import apart_in, make_session, make_steps
from history_launches import START, launch
from tec import cli
from tec.errors import TecError
from tec.history import Appended, append, load
from tec.launches import condense
from tec.measure import prompts_plan, random_plan
from tec.paths import REFERENCE
from tec.records import Record, read_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "history.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of raw records of the fake study, one a protocol."""
    folder = tmp_path_factory.mktemp("runs")
    with apart_in(folder):
        maker = make_steps(folder)
        make_session(folder, maker, "prompts").run(prompts_plan(maker), wait=0)
        make_session(folder, maker, "random").run(random_plan(maker)[:4], wait=0)
    return folder


@pytest.fixture
def raw(folder: Path) -> Path:
    """A file of raw records."""
    return folder / "toy.prompts.jsonl"


@pytest.fixture
def bench(folder: Path) -> list[Record]:
    """Raw records of llama-bench."""
    return read_records(folder / "toy.random.jsonl")


def test_launches_come_back_in_the_order_they_were_appended(path: Path) -> None:
    launches = [launch(number) for number in (3, 1, 2)]
    assert append(path, launches[:1]) == Appended(1, 0)
    append(path, launches[1:])
    assert list(load(path).records) == launches


def test_a_launch_is_appended_once(path: Path) -> None:
    append(path, [launch(0)])
    assert append(path, [launch(0), launch(1)]) == Appended(1, 1)
    assert len(load(path).records) == 2


def test_absent_and_empty_histories_have_no_launches(path: Path) -> None:
    assert load(path).records == ()
    path.parent.mkdir()
    path.touch()
    assert load(path).records == ()
    append(path, [launch()])
    assert len(load(path).records) == 1


@pytest.mark.parametrize("cut", [2, 50, 600])
def test_torn_last_line_is_reported_and_nothing_is_glued_to_it(path: Path, cut: int) -> None:
    append(path, [launch(0), launch(1)])
    os.truncate(path, path.stat().st_size - cut)
    assert list(load(path).records) == [launch(0)]
    assert "line 2: torn" in str(load(path).problems[0])
    append(path, [launch(1), launch(2)])
    found = load(path)
    assert list(found.records) == [launch(0), launch(1), launch(2)]
    assert [problem.line for problem in found.problems] == [2]


def test_line_without_its_end_is_ended_and_counts_again(path: Path) -> None:
    append(path, [launch(0)])
    os.truncate(path, path.stat().st_size - 1)
    assert load(path).records == ()
    assert append(path, [launch(0), launch(1)]) == Appended(1, 1)
    assert list(load(path).records) == [launch(0), launch(1)]


def test_killed_append_loses_no_whole_line(path: Path) -> None:
    """The process is killed at any moment of many appends; what it reported is there."""
    script = f"""
        from pathlib import Path
        from history_launches import launch
        from tec.history import append
        for number in range(10_000):
            append(Path({str(path)!r}), [launch(number)])
            print(number, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "20":
                break
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        reported = 20 + len(process.stdout.readlines())
    append(path, [launch(99_999)])
    found = load(path)
    assert len(found.records) >= reported + 2
    assert len(found.problems) <= 1


def _append_many(path: Path, first: int) -> None:
    for number in range(first, first + 50):
        append(path, [launch(number), launch(1000 + number % 50)])


def test_concurrent_appends_lose_nothing_and_double_nothing(path: Path) -> None:
    """Three processes, each with 50 launches of its own and 50 that all of them append."""
    processes = [
        multiprocessing.get_context("fork").Process(target=_append_many, args=(path, first))
        for first in (0, 50, 100)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = load(path)
    assert {record.round for record in found.records} == {*range(150), *range(1000, 1050)}
    assert found.problems == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: "some text", "this is no JSON"),
        (lambda line: '{"a": 1}', "no line of a history"),
        (lambda line: line.replace('"schema":2', '"schema":3'), "schema 3.*reads up to 2"),
        (lambda line: line.replace('"tg_tps":100.0', '"tg_tps":NaN'), "tg_tps"),
        (lambda line: line.replace('"tg_tps":100.0', '"tg_tps":0.0'), "greater than 0"),
        (lambda line: line.replace('"tg_tps":100.0', '"tg_tps":Infinity'), "tg_tps"),
    ],
)
def test_foreign_lines_are_refused_by_number(
    path: Path, change: Callable[[str], str], message: str
) -> None:
    append(path, [launch(0), launch(1)])
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{change(second)}\n")
    with pytest.raises(TecError, match=message) as caught:
        load(path)
    assert f"{path}, line 2" in str(caught.value)
    assert "next: " in str(caught.value)


def test_nothing_is_appended_to_a_foreign_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("row,arm\ntoy,off\n")
    with pytest.raises(TecError, match="no line of a history"):
        append(path, [launch()])
    assert path.read_text() == "row,arm\ntoy,off\n"


def test_clock_that_goes_back_is_reported_and_the_order_of_lines_kept(path: Path) -> None:
    later = launch(0, session="1" * 12)
    earlier = launch(1, session="2" * 12, started_at=START - timedelta(days=400))
    append(path, [later, earlier])
    found = load(path)
    assert list(found.records) == [later, earlier]
    assert "the clock went back" in str(found.problems[0])


def test_raw_records_are_condensed(raw: Path) -> None:
    records = read_records(raw)
    launches = condense(records, {records[0].key.build: "abc"})
    assert len(launches) == len(records)
    assert {each.session for each in launches} == {launches[0].session}
    assert len({each.id for each in launches}) == len(launches)
    cached = next(each for each in launches if each.arm == "cached-c8")
    off = next(each for each in launches if each.arm == "off")
    assert cached.commit == "abc"
    assert None not in (cached.values.tg_tps, cached.values.step_tps, cached.values.pp_tps)
    assert cached.values.routing is not None
    assert off.values.hits is None


def test_a_column_that_a_build_adds_is_no_other_routing(raw: Path) -> None:
    record = next(r for r in read_records(raw) if r.arm == "cached-c8")
    layers = [{"layer": 0, "hits": 5, "misses": 2}, {"layer": 1, "hits": 4, "misses": 3}]

    def routing(changed: list[dict[str, int]]) -> str | None:
        found = record.model_copy(update={"result": {**record.result, "layers": changed}})
        return condense([found], {})[0].values.routing

    assert routing([{**layer, "copied": 2} for layer in layers]) == routing(layers)
    assert routing([layers[0], {**layers[1], "misses": 2}]) != routing(layers)


def test_raw_records_are_schema_1_of_a_history(path: Path, raw: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(raw.read_bytes())
    migrated = load(path).records
    fresh = condense(read_records(raw), {})
    assert [r.values for r in migrated] == [r.values for r in fresh]
    assert [r.id for r in migrated] == [r.id for r in fresh]
    assert append(path, [launch()]).added == 1
    assert len(load(path).records) == len(fresh) + 1


def test_measured_runs_of_the_reference_are_condensed() -> None:
    for file in REFERENCE.glob("*/*/runs/*.jsonl"):
        launches = condense(read_records(file), {})
        assert launches, file
        if "parity" in file.name:
            assert all(each.values.parity for each in launches)
        else:
            assert {each.evidence for each in launches} == {"gpu"}
            assert all(each.values.vram_bytes for each in launches)


def test_random_tokens_have_prompt_and_decode_speed_apart(bench: list[Record]) -> None:
    launches = condense(bench, {})
    assert all((r.values.tg_tps is None) != (r.values.pp_tps is None) for r in launches)


@pytest.mark.parametrize("speed", [0.0, float("nan"), float("inf"), -1.0])
def test_zero_or_nan_tps_is_refused_with_its_launch(bench: list[Record], speed: float) -> None:
    record = bench[0]
    broken = record.model_copy(update={"result": {**record.result, "avg_ts": speed}})
    with pytest.raises(TecError, match=r"is no throughput .row toy, arm .*round 1"):
        condense([broken], {})


def test_no_time_at_all_is_no_throughput(raw: Path) -> None:
    record = read_records(raw)[0]
    broken = record.model_copy(update={"result": {**record.result, "decode_ns": 0}})
    with pytest.raises(TecError, match="inf tok/s is no throughput"):
        condense([broken], {})


def test_command_appends_once_and_lists(
    path: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["history", "append", str(raw), "--history", str(path), "--commit", "abc"]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0
    assert "0 launches appended, 15 were there already" in capsys.readouterr().out
    assert cli.main(["history", "list", "--history", str(path)]) == 0
    assert "15 launches in 5 series" in capsys.readouterr().out
    assert {json.loads(line)["commit"] for line in path.read_text().splitlines()} == {"abc"}


def test_record_of_parity_alone_says_nothing(path: Path) -> None:
    file = next(REFERENCE.glob("*/*/runs/*.parity.jsonl"))
    record: Record = read_records(file)[0]
    path.parent.mkdir()
    path.write_text(record.model_dump_json(by_alias=True) + "\n")
    with pytest.raises(TecError, match="says nothing by itself"):
        load(path)
