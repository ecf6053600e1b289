"""The policies whose misses the CPU computes: the built tools on the shipped model, by the steps.

The shipped model is trained, so that tokens, perplexity and divergence mean something.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fake_study import make_session
from tec import replay_steps
from tec.build import Manifest
from tec.config import FileSource, Study, load_row
from tec.expert_bench import ExpertBench
from tec.gguf_file import ModelInfo, read_geometry
from tec.parity import parity_plan
from tec.paths import ROOT
from tec.policies import ON_CPU
from tec.policies_table import policies_table
from tec.records import Check, Verdict, read_records
from tec.replay_steps import Placed, ReplaySteps
from tec.steps import Steps
from tec.summary import summarise
from tec.verdicts import enforce, judge, on_cpu

pytestmark = pytest.mark.usefixtures("apart")

ROW = load_row("pydoc-moe")
SLOTS = 16
NO_LIMIT = 0
CLOSE = 0.4
"""Margins between the two best logits that a difference in the last bits may turn over."""


@pytest.fixture(params=ON_CPU)
def policy(request: pytest.FixtureRequest, binaries: dict[str, Path]) -> str:
    """A policy that the built tools have."""
    name = str(request.param)
    shown = subprocess.run(
        [binaries["llama-expert-bench"], "--help"], capture_output=True, text=True, check=False
    )
    if f",{name}" not in shown.stdout + shown.stderr:
        pytest.skip(f"the build has no policy {name}")
    return name


@pytest.fixture
def steps(tmp_path: Path, build_manifest: Manifest, policy: str) -> Steps:
    """The study's steps: the cache off, with copies, and with the policy."""
    plain = {"options": {"no-repack": True}}
    few = {"n_gen": 12, "rounds": 2, "prompts": 2, "batches": [1, 2], "chunks": 1}
    cached = {"expert_cache": SLOTS, **plain}
    study = Study.model_validate(
        {
            "name": "fake",
            "rows": [ROW.name],
            "target": "cpu",
            "arms": {
                "off": plain,
                "cached": cached,
                policy: {**cached, "expert_cache_policy": policy},
            },
            "capacities": {"shares": [0.25]},
            "protocols": {
                "prompts": {"n_gen": 8, "rounds": 1, "threads": 1, "ctx": 1024},
                "replay": {"tokens": 96, "n_gen": 80, "rounds": 1, "threads": 1, "ctx": 96},
            },
            "parity": {**few, "text": "configs/prompts/pydoc-heldout.txt"},
        }
    )
    assert isinstance(ROW.source, FileSource)
    path = ROW.source.path
    size = (ROOT / path).stat().st_size
    known = {"row": ROW.name, "path": str(path), "bytes": size, "sha256": ROW.source.sha256}
    model = ModelInfo.model_validate({**read_geometry(ROOT / path).model_dump(), **known})
    return Steps(study, ROW, model, build_manifest)


def test_a_policy_of_the_cpu_is_held_to_tokens_perplexity_and_divergence(
    tmp_path: Path, steps: Steps, policy: str
) -> None:
    session = make_session(tmp_path, steps, "parity")
    session.run(parity_plan(steps), wait=0)
    records = read_records(session.kept)
    verdicts = judge(records)
    enforce(verdicts)

    def of(arm: str, check: Check) -> list[Verdict]:
        return [v for v in verdicts if (v.arm, v.check) == (arm, check)]

    assert [v.verdict for v in of("cached", "bitwise")] == ["pass", "pass"]
    assert all(on_cpu(v) or v.verdict == "pass" for v in of(policy, "bitwise"))
    assert policy != "hot" or all(map(on_cpu, of(policy, "bitwise")))
    assert [v.verdict for check in ("ppl", "kl") for v in of(policy, check)] == ["pass", "pass"]
    for verdict in of(policy, "greedy"):
        assert verdict.verdict == "pass" or _margin(verdict) < CLOSE, verdict.detail


def _margin(verdict: Verdict) -> float:
    """Return how far apart the two best logits were where tokens differ first."""
    return float(verdict.detail.split("logits are ")[1].split()[0])


def test_speeds_along_a_trace_are_functional_and_hits_below_beladys(
    tmp_path: Path, steps: Steps, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a card there is no limit of VRAM: what a replay records, and the table of it."""
    monkeypatch.setattr(replay_steps, "input_folder", lambda *_: tmp_path)
    replay = ReplaySteps(steps)
    session = make_session(tmp_path, steps, "replay")
    words = {arm: tuple(steps.arms[arm].arguments()) for arm in steps.arms}
    plan = [replay.decode(arm, 0, Placed(given, NO_LIMIT)) for arm, given in words.items()]
    session.run(plan, wait=0)
    records = read_records(session.kept)
    runs = {record.arm: ExpertBench.model_validate(record.result) for record in records}
    cached, own = runs["cached"], runs[policy]
    assert own.policy == policy
    assert own.belady == cached.belady
    assert cached.belady is not None
    assert cached.belady.misses <= min(cached.misses, own.misses)
    assert own.hits + own.misses == cached.hits + cached.misses
    lines = {line["policy"]: line for line in policies_table(summarise(records), records, []).rows}
    assert set(lines) == {"stock", "lru", policy}  # no card, no bound
    assert {line["evidence"] for line in lines.values()} == {"functional"}
    assert {line["against_stock"] for line in lines.values()} == {None}
    assert lines[policy]["exact"] == "no"
