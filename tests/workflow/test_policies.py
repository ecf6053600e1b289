"""The policies whose misses the CPU computes, as the built tools have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_study import make_session
from policy_steps import assert_held, policy_steps
from tec import replay_steps
from tec.build import Manifest
from tec.expert_bench import ExpertBench
from tec.policies import ON_CPU
from tec.policies_table import policies_table
from tec.records import read_records
from tec.replay_steps import Placed, ReplaySteps
from tec.steps import Steps
from tec.summary import summarise

pytestmark = pytest.mark.usefixtures("apart")

NO_LIMIT = 0
PLAIN = {"no-repack": True}
RATES = {"expert-cache-rates": "1,10,1,10"}  # of misses of one token, too, the CPU computes some


@pytest.fixture(params=ON_CPU)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def steps(build_manifest: Manifest, policy: str) -> Steps:
    return policy_steps(build_manifest, policy, off=PLAIN, on={**PLAIN, **RATES})


def test_a_policy_of_the_cpu_is_held_to_tokens_perplexity_and_divergence(
    tmp_path: Path, steps: Steps, policy: str
) -> None:
    assert_held(tmp_path, steps, policy)


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
