"""Raw records, condensed to the lines of a history."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.history import HistoryRecord, Values
from tec.llama_bench import LlamaBench
from tec.paths import ROOT
from tec.policies import BY_TIME
from tec.quantities import GIB
from tec.records import PROBE, Check, Outcome, Protocol, Record, Verdict
from tec.session import digest_of
from tec.stats import decode_ns
from tec.system import System
from tec.verdicts import judge, went_past

_WORST: tuple[Outcome, ...] = ("fail", "pass", "not_run")


def condense(records: Sequence[Record], commits: Mapping[str, str | None]) -> list[HistoryRecord]:
    """Return the lines of a history for one file of raw records.

    Every launch that measured has a line; probes, arms that found no room, and launches that only
    recorded the routing have none. Of parity runs there is one line an arm, with its verdicts.

    Args:
        records: that ran interleaved in one job: a session.
        commits: build -> commit of this project, where it is known.

    Raises:
        TecError: a throughput is zero, infinite or no number; names the launch.
    """
    measured = [record for record in records if record.test != PROBE and record.fits]
    if not measured:
        return []
    session = session_of(measured)
    parity = [record for record in measured if record.protocol == "parity"]
    found = [(r, _VALUES[r.protocol](r)) for r in measured if r.protocol in _VALUES]
    return [
        *(_line(r, values, session, commits) for r, values in found if _says(values)),
        *(_verdict_lines(parity, session, commits) if parity else []),
    ]


def condense_alone(record: Record) -> HistoryRecord:
    """Return the line of a raw record whose session is not known, by build and day.

    Raises:
        TecError: see `condense`; or parity runs, which say nothing one by one.
    """
    if record.protocol not in _VALUES:
        raise TecError(
            f"a {record.protocol} run says nothing by itself",
            f"row {record.row}, arm {record.arm}, round {record.round + 1}",
            "take it out of the history, and append the file it comes from: tec history append",
        )
    day = record.started_at.date().isoformat()
    session = digest_of([record.row, record.protocol, *_run_key(record)[1:], day])
    return _line(record, _VALUES[record.protocol](record), session, {})


def session_of(records: Sequence[Record]) -> str:
    """Return what names the job in which launches ran interleaved, whichever builds they are of."""
    first = min(records, key=lambda record: record.started_at)
    parts = [first.row, first.protocol, first.key.system, first.started_at.isoformat()]
    return digest_of(parts)


def project_commit() -> str | None:
    """Return this project's commit, with `-dirty` if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def machine_of(system: System) -> dict[str, str]:
    """Return what the fingerprint covers, in words, so that a change of it can be named."""
    gpus = [
        f"{g.name}, {g.vram_bytes} B, PCIe {g.pcie_gen_max} x{g.pcie_width_max}"
        for g in system.gpus
    ]
    return {
        "os": system.os,
        "machine": system.machine,
        "cpu": system.cpu,
        "cores": str(system.cores),
        "threads": str(system.threads),
        "ram_gib": str(round(system.ram_bytes / GIB)),
        "ram_speed": str(system.ram_speed),
        "gpus": "; ".join(gpus) or "none",
        "driver": "; ".join(str(g.driver) for g in system.gpus) or "none",
    }


def _line(
    record: Record, values: Values, session: str, commits: Mapping[str, str | None]
) -> HistoryRecord:
    launch = [
        *(record.row, record.arm, record.protocol, record.test, str(record.round)),
        *(record.started_at.isoformat(), *_run_key(record)),
    ]
    return HistoryRecord(
        id=digest_of(launch, 16),
        row=record.row,
        arm=record.arm,
        protocol=record.protocol,
        system=record.key.system,
        test=record.test,
        round=record.round,
        order=record.order,
        session=session,
        started_at=record.started_at,
        study=record.study,
        evidence=record.evidence,
        commit=commits.get(record.key.build),
        build=record.key.build,
        series_hash=record.build.series_hash,
        llama_commit=record.build.commit,
        target=record.build.target,
        settings=record.key.settings,
        model=record.key.model,
        machine=machine_of(record.system),
        values=values,
    )


def _run_key(record: Record) -> tuple[str, str, str, str]:
    key = record.key
    return key.settings, key.build, key.model, key.system


def _verdict_lines(
    records: Sequence[Record], session: str, commits: Mapping[str, str | None]
) -> list[HistoryRecord]:
    """Return a line for each arm of a row's parity runs."""
    found: dict[str, dict[Check, Outcome]] = {}
    for verdict in judge(records):
        worst = found.setdefault(verdict.arm, {})
        worst[verdict.check] = _worse(worst.get(verdict.check), verdict)
    first = {record.arm: record for record in reversed(records)}
    return [
        _line(first[arm], Values(parity=checks), session, commits) for arm, checks in found.items()
    ]


def _worse(before: Outcome | None, verdict: Verdict) -> Outcome:
    """Return the worse of two outcomes of one check; what goes past the cache decides nothing."""
    if went_past(verdict) and before is not None:
        return before
    return min((before or "not_run", verdict.verdict), key=_WORST.index)


def _from_expert_bench(record: Record) -> Values:
    run = ExpertBench.model_validate(record.result)
    timed = record.protocol in ("prompts", "replay")
    cached = run.capacity is not None and run.policy not in BY_TIME
    return Values(
        tg_tps=_tps(run.decode_tokens, run.decode_ns, record) if timed else None,
        step_tps=_step_tps(record) if timed else None,
        pp_tps=_tps(run.prompt_tokens, run.prompt_ns, record) if timed and _reads(run) else None,
        hits=run.hits if cached else None,
        misses=run.misses if cached else None,
        bytes_moved=run.bytes_moved if cached else None,
        vram_bytes=run.vram_bytes if record.evidence == "gpu" else None,
        routing=_routing(run, record) if cached else None,
        tokens=digest_of([[prompt.id, prompt.tokens] for prompt in run.prompts]),
    )


def _routing(run: ExpertBench, record: Record) -> str:
    """Return a digest of the hits and misses by step and layer, whatever else a build records."""
    steps = [[list(prompt.hits), list(prompt.misses)] for prompt in run.prompts]
    layers = record.result.get("layers") or []
    counted = [[layer[name] for name in ("layer", "hits", "misses")] for layer in layers]
    return digest_of([steps, counted])


def _says(values: Values) -> bool:
    """Say whether anything was measured that can be compared."""
    return bool(values.model_dump(exclude={"tokens"}, exclude_none=True))


def _reads(run: ExpertBench) -> bool:
    """Say whether prompts were processed apart from decoding."""
    return bool(run.prompt_tokens and run.prompt_ns)


def _from_llama_bench(record: Record) -> Values:
    run = LlamaBench.model_validate(record.result)
    speed = _checked(run.avg_ts, record)
    cached = run.capacity is not None and bool(run.n_gen) and run.policy not in BY_TIME
    return Values(
        tg_tps=speed if run.n_gen else None,
        pp_tps=speed if run.n_prompt else None,
        hits=run.expert_cache_hits if cached else None,
        misses=run.expert_cache_misses if cached else None,
    )


_VALUES: Mapping[Protocol, Callable[[Record], Values]] = {
    "prompts": _from_expert_bench,
    "replay": _from_expert_bench,
    "locality": _from_expert_bench,
    "random": _from_llama_bench,
}


def _tps(tokens: int, nanoseconds: int, record: Record) -> float:
    return _checked(tokens / nanoseconds * 1e9 if nanoseconds else math.inf, record)


def _step_tps(record: Record) -> float | None:
    """Return the steps per second that the median decode step would make."""
    steps = decode_ns(record.result)
    return _tps(1, int(np.median(steps)), record) if len(steps) else None


def _checked(tps: float, record: Record) -> float:
    """Return a throughput; a TecError if none can have been measured."""
    if math.isfinite(tps) and tps > 0:
        return tps
    raise TecError(
        f"{tps} tok/s is no throughput",
        f"row {record.row}, arm {record.arm}, {record.protocol} {record.test}, "
        f"round {record.round + 1}, started {record.started_at.isoformat()}",
        "the launch failed without saying so: measure this row again, and append that",
    )
