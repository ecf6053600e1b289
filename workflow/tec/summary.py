"""Raw records of one row, arm and protocol, summed up for the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.gguf_file import ModelInfo
from tec.llama_bench import LlamaBench
from tec.policies import ON_CPU, CachePolicy
from tec.records import PROBE, Evidence, Protocol, Record
from tec.stats import Interval, cold_tps, paired_ratio, steady_tps

Role = Literal["baseline", "aa", "tec", "resident"]

RESIDENT = "resident"
"""Name of the arm that holds the whole model in VRAM: the ceiling, not a baseline."""


def is_resident(arm: str) -> bool:
    """Say whether an arm is the resident one or its A/A twin: that it does not fit is no wonder."""
    return arm.removesuffix("-aa") == RESIDENT


@dataclass(frozen=True)
class ArmSummary:
    """One arm under one protocol; throughput in tokens per second by round."""

    row: str
    arm: str
    protocol: Protocol
    role: Role
    model: ModelInfo
    evidence: Evidence
    tg: Mapping[int, float]
    pp: Mapping[int, float]
    hit_rate: float | None
    """Hits / (hits + misses) over all rounds; None with the cache off."""
    policy: CachePolicy | None = None
    """In force; None with the cache off."""
    choice: str | None = None
    """What hybrid does with misses by its costs: copy, cpu or split; of the first process."""
    capacity: int | None = None
    """Slots per layer in force; None with the cache off."""
    vram_bytes: int | None = None
    cold_tps: float | None = None
    steady_tps: float | None = None
    limit_bytes: int | None = None
    """VRAM that the arm could have; None without a limit."""
    misses_per_token: float | None = None
    bytes_per_token: float | None = None
    """Of experts copied into slots."""
    belady_misses_per_token: float | None = None
    """What Belady's policy misses with as many slots; None without a trace."""
    belady_bytes_per_token: float | None = None
    """Of these misses."""
    bandwidth: float | None = None
    """Bytes per second from pinned host memory to the device, median of the arm's processes."""
    command: tuple[str, ...] = ()
    """Of the first process."""
    settings: str = ""
    """Hash of what is run; that of an arm and its A/A twin is the same."""

    @property
    def tg_tps(self) -> float:
        """Decode throughput, median over rounds."""
        return median(self.tg.values())

    @property
    def pp_tps(self) -> float | None:
        """Prompt throughput, median over rounds; None where no prompt was processed."""
        return median(self.pp.values()) if self.pp else None

    @property
    def computes_misses(self) -> bool:
        """Whether the CPU computes misses, so that outputs are not those of the resident model."""
        return self.policy in ON_CPU

    @property
    def capacity_share(self) -> float | None:
        """Slots per layer as a share of the layer's experts."""
        return None if self.capacity is None else self.capacity / self.model.n_expert


def summarise(records: Iterable[Record]) -> list[ArmSummary]:
    """Return one summary per row, arm and protocol that measures throughput.

    Rows and protocols come in the order of the records; arms without a cache come first, then by
    capacity.

    Raises:
        TecError: an arm other than the resident one was measured and did not fit.
    """
    groups: dict[tuple[str, Protocol], dict[str, list[Record]]] = {}
    for record in records:
        if record.protocol not in _PROTOCOLS or record.test == PROBE:
            continue
        if record.fits:
            arms = groups.setdefault((record.row, record.protocol), {})
            arms.setdefault(record.arm, []).append(record)
        elif not is_resident(record.arm):
            raise TecError(
                f"arm {record.arm} did not fit when it was measured: {record.result['error']}",
                f"study {record.study}, row {record.row}, {record.protocol}",
                f"move results/{record.study}/kept/{record.row}.{record.protocol}.*.jsonl away, "
                "raise protocols.replay.margin_mib, and measure again",
            )
    return [summary for arms in groups.values() for summary in _summarise_arms(arms)]


def _summarise_arms(arms: Mapping[str, Sequence[Record]]) -> list[ArmSummary]:
    """Sum up the arms of one row and protocol."""
    roles = _roles({name: records[0] for name, records in arms.items()})
    summaries = [
        _PROTOCOLS[records[0].protocol](records, roles[name]) for name, records in arms.items()
    ]
    return sorted(summaries, key=lambda arm: (arm.capacity or 0, len(arm.arm), arm.arm))


def _roles(arms: Mapping[str, Record]) -> dict[str, Role]:
    """Return what each arm is for; two arms with the same settings are an A/A pair.

    Of such a pair the arm with the shorter name is the one that is compared with others.
    """
    roles: dict[str, Role] = {}
    seen: set[str] = set()
    for name in sorted(arms, key=len):
        settings = arms[name].key.settings
        if settings in seen:
            roles[name] = "aa"
        elif name == RESIDENT:
            roles[name] = "resident"
        else:
            roles[name] = "baseline" if arms[name].expert_cache == "off" else "tec"
        seen.add(settings)
    return roles


def _from_expert_bench(records: Sequence[Record], role: Role) -> ArmSummary:
    first = records[0]
    runs = {record.round: ExpertBench.model_validate(record.result) for record in records}
    last = runs[first.round]
    copied = [run.host_copy.bytes_per_second for run in runs.values() if run.host_copy]
    tokens = sum(run.decode_tokens for run in runs.values())
    cached = last.capacity is not None
    least = last.belady
    return ArmSummary(
        row=first.row,
        arm=first.arm,
        protocol=first.protocol,
        role=role,
        model=first.model,
        evidence=first.evidence,
        tg={number: run.tg_tps for number, run in runs.items()},
        pp={number: tps for number, run in runs.items() if (tps := run.pp_tps) is not None},
        hit_rate=_share(
            sum(run.hits for run in runs.values()), sum(run.misses for run in runs.values())
        ),
        policy=last.policy,
        choice=last.status.hybrid.choice if last.status.hybrid else None,
        capacity=last.capacity,
        vram_bytes=last.vram_bytes if first.evidence == "gpu" else None,
        cold_tps=median(cold_tps(record.result) for record in records),
        steady_tps=median(steady_tps(record.result) for record in records),
        limit_bytes=last.vram_limit_bytes,
        misses_per_token=sum(run.misses for run in runs.values()) / tokens if cached else None,
        bytes_per_token=sum(run.bytes_moved for run in runs.values()) / tokens if cached else None,
        belady_misses_per_token=least.misses / last.decode_tokens if least else None,
        belady_bytes_per_token=least.bytes / last.decode_tokens if least else None,
        bandwidth=median(copied) if copied else None,
        command=first.command,
        settings=first.key.settings,
    )


def _from_llama_bench(records: Sequence[Record], role: Role) -> ArmSummary:
    first = records[0]
    runs = [(record.round, LlamaBench.model_validate(record.result)) for record in records]
    decodes = [run for _, run in runs if run.n_gen]
    return ArmSummary(
        row=first.row,
        arm=first.arm,
        protocol=first.protocol,
        role=role,
        model=first.model,
        evidence=first.evidence,
        tg={number: run.avg_ts for number, run in runs if run.n_gen},
        pp={number: run.avg_ts for number, run in runs if run.n_prompt},
        hit_rate=_share(
            sum(run.expert_cache_hits for run in decodes),
            sum(run.expert_cache_misses for run in decodes),
        ),
        policy=decodes[0].policy,
        capacity=decodes[0].capacity,
        settings=first.key.settings,
    )


_PROTOCOLS: dict[Protocol, Callable[[Sequence[Record], Role], ArmSummary]] = {
    "prompts": _from_expert_bench,
    "random": _from_llama_bench,
    "replay": _from_expert_bench,
}


def _share(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def grouped(arms: Iterable[ArmSummary]) -> list[list[ArmSummary]]:
    """Return the arms of each row and protocol together."""
    groups: dict[tuple[str, str], list[ArmSummary]] = {}
    for arm in arms:
        groups.setdefault((arm.row, arm.protocol), []).append(arm)
    return list(groups.values())


def fastest(arms: Iterable[ArmSummary], role: Role) -> ArmSummary | None:
    """Return the arm of a role that decodes fastest by its median."""
    chosen = [arm for arm in arms if arm.role == role]
    return max(chosen, key=lambda arm: arm.tg_tps, default=None)


def noise(arm: ArmSummary, group: Iterable[ArmSummary]) -> Interval | None:
    """Return the ratio of an arm's A/A twin, which has the same settings, to it; None without."""
    twins = (a for a in group if a.role == "aa" and a.settings == arm.settings)
    twin = next(twins, None)
    return paired_ratio(twin.tg, arm.tg) if twin else None


def within(arms: Iterable[ArmSummary], limit_bytes: int | None) -> list[ArmSummary]:
    """Return the arms that had no more VRAM than so much; all where nothing was limited."""
    return [
        arm
        for arm in arms
        if limit_bytes is None or (arm.limit_bytes is not None and arm.limit_bytes <= limit_bytes)
    ]


def best_baseline(tec: ArmSummary, group: Iterable[ArmSummary]) -> ArmSummary | None:
    """Return the fastest arm of the stock engine that had no more VRAM than a cached arm.

    The resident arm is none of them: where the limit holds the whole model, the searched arms have
    all of it on the GPU too.
    """
    return fastest(within(group, tec.limit_bytes), "baseline")


def bound_tps(arm: ArmSummary, group: Sequence[ArmSummary]) -> float | None:
    """Return the most tokens per second of an arm that fetches what it misses, by DESIGN section 4.

    Time per token >= time per token of the resident model + bytes of missed experts / bandwidth
    from host memory to the device, where nothing overlaps. An arm whose misses the CPU computes has
    no such bound.

    Args:
        arm: a cached arm.
        group: the arms of its row and protocol; the bandwidth is the median of theirs.
    """
    return None if arm.computes_misses else _fetching_tps(arm.bytes_per_token, group)


def belady_tps(arm: ArmSummary, group: Sequence[ArmSummary]) -> float | None:
    """Return the same bound with Belady's misses, the fewest that there can be with as many slots.

    It holds for the tokens of the trace that were decoded, and for arms that copy what they miss:
    no choice of victims makes them faster. It does not hold where the CPU computes misses. That is
    bound by Belady in its hits, and not in its speed.

    Args:
        arm: any arm with so many slots.
        group: as above.
    """
    return _fetching_tps(arm.belady_bytes_per_token, group)


def _fetching_tps(bytes_per_token: float | None, group: Sequence[ArmSummary]) -> float | None:
    """Return the tokens per second of the resident time and that of copying so many bytes."""
    resident = fastest(group, "resident")
    bandwidths = [other.bandwidth for other in group if other.bandwidth]
    if resident is None or not bandwidths or bytes_per_token is None:
        return None
    return 1 / (1 / resident.tg_tps + bytes_per_token / median(bandwidths))
