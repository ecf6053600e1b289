"""Two builds, launch by launch in turn, so that what the machine does happens to both.

Every round has, of every arm, a launch of the new build and two of the old one: the second is the
A/A twin, from which the noise floor comes. Their order is drawn anew for every arm and round, which
is what the test of `tec.detection` rests on; chance, not balance, because neighbours on the machine
may have a rhythm (Chen & Revels, Robust benchmarking in noisy environments, 2016).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tec.build import Manifest
from tec.choice import Choice
from tec.config import Row, Study
from tec.errors import TecError
from tec.gguf_file import ModelInfo
from tec.history import HistoryRecord
from tec.launches import condense
from tec.machine_lock import machine_lock
from tec.measure import not_in_study
from tec.order import interleaved
from tec.paths import RESULTS
from tec.records import Protocol, Record, append_record
from tec.replay_steps import Placed, ReplaySteps
from tec.session import Progress, Session, Step, build_info, digest_of
from tec.steps import Steps

_Maker = Callable[[str, int], list[Step]]


@dataclass(frozen=True)
class Side:
    """One of the builds."""

    manifest: Manifest
    commit: str | None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the tools of this side alone; they belong to its build, not to the settings."""


@dataclass(frozen=True)
class Work:
    """What is run of one row."""

    study: Study
    row: Row
    model: ModelInfo
    protocol: Protocol
    choice: Choice
    rounds: int
    out: Path
    """Raw records are appended here, launch by launch."""
    log: Path


def run_interleaved(work: Work, old: Side, new: Side, wait: float) -> list[HistoryRecord]:
    """Run both builds in turn and return their launches, all of one session.

    Args:
        work: the row, its arms and how often they run.
        old: the build to compare with.
        new: the build that is judged.
        wait: seconds to wait for another measurement on this machine.

    Raises:
        TecError: see `tec.session.Session.run`; launches that ended are in `work.out`.
    """
    sides = {"new": new, "old": old, "twin": old}
    sessions = {name: _session(work, side) for name, side in sides.items()}
    plan = list(_plan(work, sessions["new"], sides, wait))
    records: list[Record] = []
    with machine_lock(f"{work.study.name} {work.row.name}, two builds", wait) as lock:
        progress = Progress(len(plan), len(plan))
        for order, (side, step) in enumerate(plan):
            record = sessions[side].run_step(step, order, lock)
            append_record(work.out, record)
            records.append(record)
            progress.show(work.row.name, f"{work.protocol} ({side})", record)
    by_build = {r.key.build: sides[name].commit for r, (name, _) in zip(records, plan, strict=True)}
    return condense(records, by_build)


def build_key(side: Side) -> str:
    """Return what the launches of a side have for their build."""
    return digest_of(build_info(side.manifest))


def arms_of(work: Work) -> list[str]:
    """Return the arms that are run: of several with the same definition the first."""
    n_expert, n_expert_used = work.model.n_expert, work.model.n_expert_used
    arms = work.choice.narrow(work.study.expand_arms(work.row.name, n_expert, n_expert_used))
    first = {arm.model_dump_json(): name for name, arm in reversed(arms.items())}
    return [name for name in arms if name in first.values()]


def _session(work: Work, side: Side) -> Session:
    return Session(
        study=work.study.name,
        protocol=work.protocol,
        build=build_info(side.manifest),
        model=work.model,
        kept=RESULTS / work.study.name / "kept" / f"{work.row.name}.{work.protocol}.jsonl",
        log=work.log,
    )


def _plan(
    work: Work, session: Session, sides: Mapping[str, Side], wait: float
) -> Iterator[tuple[str, Step]]:
    """Yield (side, process) in the order in which they run."""
    makers = _makers(work, session, sides, wait)
    rng = random.Random(str(datetime.now(UTC)))  # noqa: S311 (an order, not a secret)
    for number, arm in interleaved(arms_of(work), work.rounds, work.row.name):
        turn = [(name, step) for name in sides for step in makers[name](arm, number)]
        rng.shuffle(turn)
        for name, step in turn:
            environment = {**step.environment, **sides[name].environment}
            yield name, replace(step, environment=environment)


def _makers(
    work: Work, session: Session, sides: Mapping[str, Side], wait: float
) -> dict[str, _Maker]:
    """Return what makes each side's processes of an arm and round."""
    steps = {
        name: Steps(work.study, work.row, work.model, side.manifest, work.choice)
        for name, side in sides.items()
    }
    if work.protocol == "prompts":
        return {name: partial(_prompts, made) for name, made in steps.items()}
    if work.protocol == "random":
        return {name: partial(_random, made) for name, made in steps.items()}
    if work.protocol == "replay":
        from tec.replay import place  # draws traces; other protocols need not

        placed = place(steps["new"], session, wait)
        return {name: partial(_replay, ReplaySteps(made), placed) for name, made in steps.items()}
    raise TecError(
        f"protocol {work.protocol} measures no throughput",
        f"row {work.row.name}",
        "choose from prompts, random, replay",
    )


def _prompts(steps: Steps, arm: str, number: int) -> list[Step]:
    return [steps.decode_prompts(arm, number)]


def _random(steps: Steps, arm: str, number: int) -> list[Step]:
    protocol = steps.scope.protocols.random
    if protocol is None:
        raise not_in_study(steps, "random")
    return steps.random_tests(protocol, arm, number)


def _replay(replay: ReplaySteps, placed: Mapping[str, Placed], arm: str, number: int) -> list[Step]:
    return [replay.decode(arm, number, placed[arm])] if arm in placed else []
