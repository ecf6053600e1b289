"""The comparison with ik_llama.cpp, with programs that only say how much memory they use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from programs import run_program
from tec.paths import ROOT
from tec.table import times

SCRIPT = ROOT / "benchmarks" / "beside_ik_llama.py"
MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"  # 64 experts in each of its layers

SMI = """#!{python}
import pathlib, sys, time
use, seen = pathlib.Path("{folder}/use"), pathlib.Path("{folder}/seen")
while True:
    try:
        now = use.read_text()
    except FileNotFoundError:
        now = ""
    print(now or 100, flush=True)
    if now:
        seen.touch()
    if "-lms" not in sys.argv:
        break
    time.sleep(0.005)
"""
BENCH = """#!{python}
import json, pathlib, sys, time
word = lambda name: sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None
use, seen = pathlib.Path("{folder}/use"), pathlib.Path("{folder}/seen")
slots, on_cpu = word("--expert-cache"), int(word("--n-cpu-moe"))
mib = 1000 + (10 * int(slots) if slots else 80 * (8 - on_cpu))
if mib > 1330:
    sys.exit("error: out of memory")
seen.unlink(missing_ok=True)
pathlib.Path("{folder}/new").write_text(str(100 + mib))
pathlib.Path("{folder}/new").replace(use)
while not seen.exists():  # the other program has looked
    time.sleep(0.005)
use.unlink()
speed = 200 if slots else 160 if word("-rtr") == "1" else 100
said = dict(build_commit="abc", samples_ts=[speed, speed], avg_ts=speed, n_prompt=0, n_gen=128)
if slots:
    said |= dict(expert_cache_capacity=int(slots) + {wrong}, expert_cache_hits=9)
    said |= dict(expert_cache_misses=1)
print(json.dumps([said]))
"""


def run(folder: Path, *words: object, wrong: int = 0) -> subprocess.CompletedProcess[str]:
    for name, text in (("nvidia-smi", SMI), ("ik", BENCH), ("tec", BENCH)):
        program = folder / name
        program.write_text(text.format(python=sys.executable, folder=folder, wrong=wrong))
        program.chmod(0o755)
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "workflow")}
    return run_program([sys.executable, SCRIPT, *words], 600, **variables)


def measure(folder: Path, *words: object, wrong: int = 0) -> subprocess.CompletedProcess[str]:
    programs = ("--ik", folder / "ik", "--tec", folder / "tec")
    return run(folder, "measure", MODEL, folder / "out.jsonl", *programs, *words, wrong=wrong)


def launches(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ik")
    done = measure(folder, "--shares", "0.25,0.5", "--rounds", "2", "--arms", "lru,ik,ik-rtr")
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def test_the_other_engine_stays_within_the_memory_of_the_cached_arm(measured: Path) -> None:
    """It gets as many layers as that takes, and with one more it would not stay within."""
    for capacity, on_cpu in ((16, 6), (32, 4)):
        here = [one for one in launches(measured) if one["capacity"] == capacity]
        limit = next(one["vram_mib"] for one in here if one["arm"] == "lru")
        assert limit == 1000 + 10 * capacity
        in_turn = [one for one in here if one["round"] >= 0]
        assert [one["arm"] for one in in_turn] == ["lru", "ik", "ik-rtr"] * 2
        assert {one["n_cpu_moe"] for one in in_turn if one["arm"] != "lru"} == {on_cpu}
        assert all(one["vram_mib"] <= limit for one in in_turn)
    beyond = [one for one in launches(measured) if one["n_cpu_moe"] == 5]
    assert [one["vram_mib"] for one in beyond] == [1240]  # that of 32 slots ran out of memory


def test_table_has_ratios_of_the_rounds(measured: Path) -> None:
    shown = run(measured, "table", measured / "out.jsonl")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout in (measured / "printed").read_text()
    ratio = f"{times(1.25)} [1.25, 1.25]"
    assert f"| 32 | lru | all | 1320 | 200.0 | 90.0 % | {ratio} |" in shown.stdout
    assert "| 32 | ik-rtr | 4 | 1320 | 160.0 |  |  |" in shown.stdout


def test_records_name_no_folder_of_the_machine(measured: Path) -> None:
    assert str(measured) not in (measured / "out.jsonl").read_text()


def test_a_cache_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = measure(tmp_path, "--shares", "0.5", wrong=1)
    assert done.returncode == 1
    assert "error: lru: 32 slots were asked for and are not there" in done.stderr


def test_a_line_that_is_no_launch_is_named(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"arm": "lru"}\n')
    done = run(tmp_path, "table", tmp_path / "out.jsonl")
    assert done.returncode == 1
    assert "out.jsonl, line 1" in done.stderr
