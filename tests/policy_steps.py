"""A small study of one policy on the shipped model, which is trained: its text means something."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fake_study import make_session
from shipped_decode import CLOSE
from tec.build import Manifest
from tec.config import FileSource, Study, load_row
from tec.gguf_file import ModelInfo, read_geometry
from tec.parity import parity_plan
from tec.paths import ROOT
from tec.records import Check, Verdict, read_records
from tec.steps import Steps
from tec.verdicts import enforce, judge, on_cpu

ROW = load_row("pydoc-moe")
SLOTS = 16

Options = Mapping[str, str | int | bool]


def policy_steps(build: Manifest, policy: str, off: Options, on: Options) -> Steps:
    """Return the steps of three arms: the cache off, with copies, and with the policy.

    Args:
        build: whose tools are run.
        policy: one whose misses the CPU computes.
        off: options of the arm with the cache off.
        on: those of the others.
    """
    cached = {"expert_cache": SLOTS, "options": on}
    few = {"n_gen": 12, "rounds": 2, "prompts": 2, "batches": [1, 2], "chunks": 1}
    values = {
        "name": "fake",
        "rows": [ROW.name],
        "target": build.target,
        "arms": {
            "off": {"options": off},
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
    return Steps(Study.model_validate(values), ROW, _model(), build)


def _model() -> ModelInfo:
    assert isinstance(ROW.source, FileSource)
    path = ROW.source.path
    size = (ROOT / path).stat().st_size
    known = {"row": ROW.name, "path": str(path), "bytes": size, "sha256": ROW.source.sha256}
    return ModelInfo.model_validate({**read_geometry(ROOT / path).model_dump(), **known})


def assert_held(folder: Path, steps: Steps, policy: str) -> None:
    """Assert that the policy's outputs are the reference's, but for the order of sums."""
    session = make_session(folder, steps, "parity")
    session.run(parity_plan(steps), wait=0)
    verdicts = judge(read_records(session.kept))
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
