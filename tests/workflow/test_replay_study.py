"""The whole of a study at limits of VRAM, on a card that is not there."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fake_tools
from fake_replay import FAULTS, STUDY, install_card
from fake_repository import make_repository, run
from tec.records import read_records

RESULTS = Path("results") / "fake"
REPLAY = f"{RESULTS}/runs/toy.replay.jsonl"


def table(repository: Path, name: str) -> list[dict[str, str]]:
    with (repository / RESULTS / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def calls(repository: Path) -> int:
    return len(fake_tools.calls(repository.parent / "bin"))


def verify(repository: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tec", "verify", "fake"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of a row that the card can hold and one that it cannot, with two policies."""
    install_card(tmp_path / "programs", monkeypatch)
    text = str(tmp_path / "text.txt")
    parity = {"n_gen": 8, "rounds": 2, "batches": [1, 2], "text": text}
    hot = {"expert_cache": "sweep", "expert_cache_policy": "hot", "options": {"n-cpu-moe": 99}}
    study = {**STUDY, "arms": {**STUDY["arms"], "hot": hot}, "parity": parity}
    return make_repository(tmp_path, ("toy", "big"), FAULTS, **study)


def test_one_command_makes_everything_and_a_second_one_measures_nothing(repository: Path) -> None:
    status, said = run(repository, "all")
    assert status == 0, said
    made = {path.name for path in (repository / RESULTS / "figures").iterdir()}
    assert made == {
        f"{name}.{suffix}"
        for name in ("speed", "split", "loss", "replay-start", "policies", "parity")
        for suffix in ("svg", "pdf")
    }
    assert not (repository / RESULTS / "paper.pdf").exists()
    _check_tables(repository)
    verified = verify(repository)
    assert verified.returncode == 0, verified.stderr
    before = calls(repository)
    copies = list((repository / RESULTS / "runs").iterdir())
    for copy in copies:
        copy.unlink()
    status, said = run(repository, *(str(copy.relative_to(repository)) for copy in copies))
    assert status == 0, said
    assert said.count("nothing to measure") == len(copies) == 4
    assert calls(repository) == before
    (repository / REPLAY).unlink()
    narrow = ("--config", "arms=cached,ncmoe", "capacities=8", "rounds=1")
    status, said = run(repository, REPLAY, *narrow)
    assert status == 0, said
    measured = [r.arm for r in read_records(repository / REPLAY) if r.test == "replay"]
    assert sorted(measured) == ["cached-c8", "ncmoe-c8", "resident"]


def _check_tables(repository: Path) -> None:
    main = {line["row"]: line for line in table(repository, "main")}
    for row in ("toy", "big"):
        assert (main[row]["tec_arm"], main[row]["evidence"]) == ("cached-c8", "gpu")
        assert main[row]["baseline_arm"].endswith("-c8")
        assert float(main[row]["speedup"]) > 1
        assert main[row]["protocol"] == "replay"
    capacity = {(line["row"], line["arm"]): line for line in table(repository, "capacity")}
    cached = capacity["toy", "cached-c8"]
    assert float(cached["tg_tps"]) <= float(cached["resident_tps"])
    assert float(cached["bound_tps"]) > 0
    assert float(cached["vram_gib"]) < float(cached["vram_limit_gib"])
    assert ("big", "resident") not in capacity
    assert capacity["big", "cached-c8"]["bound_tps"] == ""
    baselines = {(line["row"], line["arm"]): line for line in table(repository, "baselines")}
    assert baselines["big", "resident"]["outcome"] == "does not fit"
    found = baselines["toy", "ncmoe-c8"]
    assert (found["flag"], found["value"], found["refused"]) == ("--n-cpu-moe", "1", "0")
    loss = {(line["row"], line["arm"]): line for line in table(repository, "loss")}
    assert loss["toy", "cached-c8"]["loss_ms"] != ""
    assert loss["big", "cached-c8"]["loss_ms"] == ""
    headline = {(line["row"], line["arm"]): line for line in table(repository, "headline")}
    assert headline["toy", "cached-c8"]["batches_equal"] == "1 2"
    assert headline["toy", "cached-c8"]["speedup"] == cached["speedup"]
    policies = {(line["row"], line["arm"]): line for line in table(repository, "policies")}
    assert (policies["toy", "hot-c8"]["exact"], cached["policy"]) == ("no", "lru")
    assert policies["toy", "cached-c8"]["exact"] == "bitwise"
    assert {line["policy"] for (row, _), line in policies.items() if row == "big"} == {
        *("stock", "lru", "hot")
    }
    traces = {line["row"]: line for line in table(repository, "traces")}
    assert set(traces) == {"toy", "big"}
    assert 0 < float(traces["toy"]["lru_0.5"]) < 1
    parity = table(repository, "parity")
    checks = [line for line in parity if line["check"] in ("self", "bitwise")]
    assert {line["arm"] for line in checks if line["verdict"] != "pass"} == {"hot-c4"}
    references = {(line["row"], line["arm"]) for line in parity if line["check"] == "self"}
    assert references == {("toy", "resident"), ("big", "streamed")}
