"""Replays on a graphics card that is not there, whose tokens take what a known rule says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fake_results import CARD
from tec.gguf_file import ModelInfo
from tec.policies import CachePolicy
from tec.quantities import GIB, MIB
from tec.records import BuildInfo, Process, Record, RunKey, append_record
from tec.system import System
from tec.table import write_tables
from tec.tables import study_tables

N_EXPERT, N_LAYER, N_STEP = 16, 2, 64
RESIDENT_NS, HIT_NS = 4_000_000, 200_000
"""Of a token; the second is what the cached graph costs beyond the first when nothing is missed."""
EXPERT_BYTES = 5_000_000
COPY, FILL = 50e9, 40e9
"""Bytes per second, measured and really reached by misses."""
MISS_NS: dict[CachePolicy, int] = {"hot": 150_000, "hybrid": 80_000}
"""What a miss takes that the CPU computes, or shares."""
FEWEST = 0.8
"""Belady's misses as a share of LRU's."""
STOCK_TPS = {"ncmoe": 60.0, "ngl": 40.0, "fit": 50.0}

SYSTEM = System(
    os="Linux", kernel="6", machine="x86_64", cpu="CPU", cores=8, threads=8, ram_bytes=64 * GIB,
    ram_speed=None, governor=None, cuda_driver="13.0", gpus=(CARD,),
)  # fmt: skip
BUILD = BuildInfo(
    target="sm_90", commit="c" * 40, digest="d" * 64, series_hash="e" * 64, build_type="Release",
    compiler="GNU 13", cuda="NVIDIA 13.0", cmake_args=(),
)  # fmt: skip


def replay_records(
    row: str = "toy",
    slots: Sequence[int] = (4, 8, 16),
    rounds: int = 2,
    resident: bool = True,
    policies: Sequence[CachePolicy] = (),
) -> list[Record]:
    """Return a row's records: resident, cached and stock arms, the latter faster with more room.

    With `policies` there are arms of these too: `hot` misses more, and what a policy misses takes
    the time of `MISS_NS`.
    """
    return [*_records(row, slots, rounds, resident), *_of_policies(row, slots, rounds, policies)]


def _of_policies(
    row: str, slots: Sequence[int], rounds: int, policies: Sequence[CachePolicy]
) -> Iterator[Record]:
    for number in range(rounds):
        for count in slots:
            for policy in policies:
                fewer = _misses(count, number)
                misses = [(2 if policy == "hot" else 1) * few for few in fewer]
                times = [RESIDENT_NS + HIT_NS + MISS_NS[policy] * few for few in misses]
                name = f"{policy}-c{count}"
                record = _record(row, name, number, times, misses, count, 5 + count)
                status = {**record.result["status"], "policy": policy}
                computed = {"status": status, "computed": sum(misses), "bytes_moved": 0}
                more = {**computed, "belady": _belady(fewer)}
                yield record.model_copy(update={"result": {**record.result, **more}})


def _records(row: str, slots: Sequence[int], rounds: int, resident: bool) -> Iterator[Record]:
    none = [0] * N_STEP
    for number in range(rounds):
        if resident:
            for arm in ("resident", "resident-aa"):
                yield _record(row, arm, number, _times(none, 0, number), none, None, 40)
        stock = [int(1e9 / 25)] * N_STEP
        yield _record(row, "ncmoe-all", number, stock, none, None, 10)
        for count in slots:
            misses = _misses(count, number)
            yield _record(
                row, f"cached-c{count}", number, _times(misses, HIT_NS, number), misses, count,
                5 + count,
            )  # fmt: skip
            for kind, tps in STOCK_TPS.items():
                speed = tps * (1 + 3 * (count / N_EXPERT) ** 4)
                stock = [int(1e9 / speed)] * N_STEP
                yield _record(row, f"{kind}-c{count}", number, stock, none, None, 5 + count)


def _misses(slots: int, number: int) -> list[int]:
    """Return misses per token, which the first tokens have more of."""
    mean = 4.0 * N_LAYER * (1 - slots / N_EXPERT)
    drawn = np.random.default_rng((slots, number)).poisson(mean, N_STEP)
    drawn[:8] *= 2
    return [int(count) for count in drawn]


def _times(misses: Sequence[int], hit_ns: int, number: int) -> list[int]:
    fill = EXPERT_BYTES / FILL * 1e9
    noise = np.random.default_rng((len(misses), hit_ns, number)).integers(-20_000, 20_000, N_STEP)
    return [
        int(RESIDENT_NS + hit_ns + fill * count + some)
        for count, some in zip(misses, noise, strict=True)
    ]


def _record(
    row: str,
    arm: str,
    number: int,
    times: Sequence[int],
    misses: Sequence[int],
    slots: int | None,
    limit_gib: int,
) -> Record:
    asked = 4 * N_LAYER * 2
    hits = [max(0, asked - count) if slots else 0 for count in misses]
    option = {"ngl": "--gpu-layers", "fit": "--fit-target"}.get(arm.split("-")[0], "--n-cpu-moe")
    prompt = {
        "id": "p", "tokens": [1] * N_STEP, "token_ns": list(times), "logits_hash": ["a"] * N_STEP,
        "logits_margin": [0.5] * N_STEP, "hits": hits, "misses": list(misses),
    }  # fmt: skip
    result: dict[str, Any] = {
        "forced": True,
        "threads": 8,
        "n_gen": N_STEP,
        "prompts": [prompt],
        "decode_ns": sum(times),
        "decode_tokens": N_STEP,
        "prompt_ns": 0,
        "prompt_tokens": N_STEP,
        "hits": sum(hits),
        "misses": sum(misses),
        "bytes_moved": sum(misses) * EXPERT_BYTES,
        "layers": [
            {"layer": n, "hits": sum(hits), "misses": sum(misses), "expert_bytes": EXPERT_BYTES}
            for n in range(N_LAYER)
        ],
        "belady": _belady(misses) if slots else None,
        "copy": {"bytes_per_second": COPY},
        "vram_limit_bytes": limit_gib * GIB,
        "memory": {"devices": [{"name": "CUDA0", "total_bytes": 80 * GIB, "free_bytes": MIB}]},
        "status": {"engaged": slots is not None, "reason": None, "capacity": slots or 0},
        "trace_statistics": _trace_statistics(),
    }
    settings = arm.removesuffix("-aa").encode().hex()[-12:].rjust(12, "0")
    return Record(
        study="fake", row=row, arm=arm, protocol="replay", test="replay", round=number, order=0,
        expert_cache="off" if slots is None else str(slots),
        started_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number),
        command=("bench", option, "3", "--vram-limit", str(limit_gib * 1024)), environment={},
        key=RunKey(settings=settings, build="b" * 12, model="a" * 12, system="0" * 12),
        system=SYSTEM, build=BUILD, model=_model(row),
        process=Process(exit_code=0, wall=1.0, peak_rss=1), result=result,
    )  # fmt: skip


def _model(row: str) -> ModelInfo:
    return ModelInfo(
        row=row, variant="replica", path="m.gguf", bytes=30 * GIB, sha256="a" * 64,
        arch="qwen3moe", quant="Q8_0", n_layer=N_LAYER, n_moe_layers=N_LAYER, n_expert=N_EXPERT,
        n_expert_used=8, n_params=1000,
    )  # fmt: skip


def _belady(misses: Sequence[int]) -> dict[str, int]:
    fewest = int(FEWEST * sum(misses))
    return {"misses": fewest, "bytes": fewest * EXPERT_BYTES}


def _trace_statistics() -> dict[str, Any]:
    return {
        "trace": "trace-64x2x4of16-p-1.npy",
        "generator": {"profile": "p", "source": "assumed", "seed": 1},
        "tokens": N_STEP,
        "next_token": 0.5,
        "within_8": 0.8,
        "lru": [{"share": 0.5, "slots": 8, "hit_rate": 0.9}],
    }


def write_replays(
    folder: Path, rows: Sequence[str], without_resident: Sequence[str] = (), **what: Any
) -> Path:
    """Write records and tables of replays into a study's folder; nothing was checked for parity."""
    runs = []
    for row in rows:
        runs.append(replay_records(row, resident=row not in without_resident, **what))
        for record in runs[-1]:
            append_record(folder / "runs" / f"{row}.replay.jsonl", record)
    policies = bool(what.get("policies"))
    write_tables(study_tables(runs, [], replays=True, policies=policies), folder / "tables")
    return folder
