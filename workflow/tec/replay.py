"""`tec measure replay`: what fits is found out first, then every arm that does is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tec.machine_lock import machine_lock
from tec.measure_key import measure_key
from tec.order import interleaved
from tec.placement import Placement
from tec.prober import Prober
from tec.replay_steps import ON_GPU, Placed, ReplaySteps
from tec.session import Session, Step
from tec.steps import Steps
from tec.summary import RESIDENT

STREAMED = "streamed"
"""The stock engine with every used expert copied to the GPU in every step: the reference of parity
where the whole model does not fit."""
_STREAMS = {"GGML_OP_OFFLOAD_MIN_BATCH": "1"}


def measure(steps: Steps, session: Session, wait: float) -> None:
    """Measure a row's arms, unless that is kept already.

    The file has the records of what was tried, test `probe`, and then those of the measurement.

    Args:
        steps: of a row whose scope has the protocol.
        session: says where the records go.
        wait: seconds to wait for another measurement on this machine.
    """
    replay = ReplaySteps(steps)
    if session.is_there():
        return
    with prober(steps, session, wait) as probes:
        placed = Placement(replay, probes).place()
    session.run(replay_plan(replay, placed), wait, evidence=probes.used)


def place(steps: Steps, session: Session, wait: float) -> dict[str, Placed]:
    """Return how each arm that fits is run; see `tec.placement`."""
    with prober(steps, session, wait) as probes:
        return Placement(ReplaySteps(steps), probes).place()


@contextmanager
def prober(steps: Steps, session: Session, wait: float) -> Iterator[Prober]:
    """Yield the prober of a row; it holds the machine."""
    machine = session.system.fingerprint
    key = measure_key("search", steps.manifest, steps.model.sha256, machine)
    path = session.kept.with_name(f"{steps.row.name}.search.{key}.jsonl")
    with machine_lock(f"{session.study} {steps.row.name} search", wait) as lock:
        yield Prober(replace(session, protocol="replay"), path, lock)  # also where parity asks


def replay_plan(replay: ReplaySteps, placed: dict[str, Placed]) -> list[Step]:
    """Return the processes of the measurement, arms interleaved."""
    name = replay.steps.row.name
    order = interleaved(list(placed), replay.steps.rounds(replay.protocol), f"{name} replay")
    return [replay.decode(arm, number, placed[arm]) for number, arm in order]


def parity_plan(steps: Steps, session: Session, wait: float) -> list[Step]:
    """Return the processes that the parity of a row with replays is judged from.

    Every cached arm that is measured is among them; one that sizes its slots by the memory has its
    limit here too, so that they are as many. The reference has every expert on the GPU: the
    resident arm, or else `STREAMED`. One sequence follows the trace; several together follow the
    router.

    Of a policy whose misses the CPU computes the first arm is enough: bits are not asked for, and
    generated weights have no tokens or text to ask for. Its verdicts say so.
    """
    replay = ReplaySteps(steps)
    placed = place(steps, session, wait)
    compared = {*steps.copying, *_first_of_policies(steps, placed)}
    cached = [name for name in placed if name in compared]
    sized = [name for name in cached if steps.arms[name].expert_cache == "auto"]
    limits = {name: placed[name].limit_mib for name in sized}
    rounds = range(steps.scope.parity.rounds)
    reference = RESIDENT if RESIDENT in placed else STREAMED
    arms = [*((reference, number) for number in rounds), *((name, 0) for name in cached)]
    return [
        step for arm, number in arms for step in _parity_steps(replay, arm, number, limits.get(arm))
    ]


def _first_of_policies(steps: Steps, placed: Iterable[str]) -> Iterable[str]:
    """Return the first placed arm of every policy whose misses the CPU computes."""
    first: dict[str | None, str] = {}
    for name in placed:
        if steps.arms[name].computes_misses:
            first.setdefault(steps.arms[name].expert_cache_policy, name)
    return first.values()


def _parity_steps(
    replay: ReplaySteps, arm: str, number: int, limit_mib: int | None
) -> Sequence[Step]:
    """Return the processes of one arm in one round."""
    streamed = (*ON_GPU, "--n-cpu-moe", "99", "--expert-cache", "off")
    words = streamed if arm == STREAMED else replay.words(arm)
    steps = [replay.whole(arm, number, words, limit_mib)]
    alone = arm in replay.steps.arms and replay.steps.arms[arm].computes_misses
    if not alone and any(batch > 1 for batch in replay.steps.scope.parity.batches):
        steps.append(replay.together(arm, number, words))
    if arm == STREAMED:
        steps = [replace(step, environment=_STREAMS) for step in steps]
    return steps
