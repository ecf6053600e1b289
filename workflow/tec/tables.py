"""The tables of a study, derived from its raw records and verdicts alone.

Each has the columns other tools read (DESIGN section 6), more of them at the end. A ratio measured
on the CPU back end is never a speed-up: those cells stay empty.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from tec.baselines_table import baselines_table
from tec.expert_bench import ExpertBench
from tec.headline_table import headline_table
from tec.loss_table import loss_table
from tec.main_table import main_table
from tec.outcome import Failure, read_records_or_failure, read_verdicts_or_failure
from tec.policies import ON_CPU
from tec.policies_table import policies_table
from tec.quantities import GIB, MIB
from tec.records import PROBE, Record, Verdict
from tec.rows_table import rows_table
from tec.stats import COLD_STEPS, Interval, paired_ratio
from tec.summary import (
    ArmSummary,
    best_baseline,
    bound_tps,
    fastest,
    grouped,
    noise,
    summarise,
)
from tec.table import Column, Table, Value, digits, percent, write_tables
from tec.traces_table import LRU, traces_table

TABLES = {
    "main": "row,arch,quant,size_gib,baseline_arm,baseline_tps,tec_arm,tec_tps,speedup,"
    "speedup_lo,speedup_hi,hit_rate,evidence,rounds,variant,outcome,reason,note",
    "capacity": "row,arm,protocol,capacity,capacity_share,vram_gib,tg_tps,pp_tps,hit_rate,"
    "resident_tps,bound_tps,evidence",
    "parity": "row,arm,check,verdict,detail,evidence,batch",
    "overhead": "row,arm,protocol,ratio_to_off,lo,hi,aa_lo,aa_hi,evidence",
    "rows": "row,title,variant,outcome,arch,n_expert,n_expert_used",
}
"""Table -> the columns that other tools read."""
REPLAY_TABLES = {
    "baselines": "row,protocol,vram_limit_gib,arm,flag,value,refused,tg_tps,outcome,evidence",
    "headline": "row,arm,protocol,capacity,capacity_share,n_expert,vram_gib,vram_limit_gib,"
    "baseline_arm,baseline_tps,speedup,speedup_lo,speedup_hi,hit_rate",
    "loss": "row,arm,protocol,capacity,capacity_share,ms_per_token,resident_ms,bound_ms,loss_ms,"
    "hit_ms,fill_ms,cold_ms,rest_ms",
    "traces": "row,profile,source,seed,tokens,next_token,within_8," + ",".join(LRU),
}
"""The same for the rows that have the protocol `replay`."""
POLICY_TABLES = {
    "policies": "row,trace,capacity,capacity_share,policy,tps,lo,hi,hit_rate,share_of_resident,"
    "against_stock,exact,evidence"
}
"""The same for the rows with that protocol where arms differ in the cache's policy."""
LOCALITY_TABLES = {
    "locality": "row,trace,policy,capacity,hit_rate",
    "reuse": "row,trace,overlap_8,uniform_8,median_reuse",
    "overlap": "row,trace,window,overlap",
}
"""The same for the rows that have the protocol `locality`; the last one is for figures alone."""
CALIBRATION_TABLES = {"calibration": "row,text,policy,capacity,hit_rate"}
"""The same of their calibration, which `tec calibration` makes."""


def capacity_table(arms: Sequence[ArmSummary]) -> Table:
    """Every arm under every protocol: throughput and hit rate against capacity."""
    return Table(
        name="capacity",
        caption="Throughput and hit rate against capacity (slots per layer)." + _drawn(arms),
        keys=(
            *("row", "arm", "protocol", "capacity", "capacity_share", "vram_gib"),
            *("tg_tps", "pp_tps", "hit_rate", "resident_tps", "bound_tps", "evidence"),
            *("n_expert", "tg_tps_lo", "tg_tps_hi", "cold_tps", "steady_tps", "rounds"),
            *("cold_steps", "variant", "vram_limit_gib", "resident_share", "bound_share"),
            *("misses_per_token", "mib_per_token", "bandwidth_gbs", "baseline_arm", "baseline_tps"),
            *("speedup", "speedup_lo", "speedup_hi", "aa_arm", "aa_lo", "aa_hi", "policy"),
        ),
        columns=(
            Column("row", "row"),
            Column("protocol", "input"),
            Column("arm", "arm"),
            Column("capacity", "C"),
            Column("capacity_share", "C/N %", percent),
            Column("vram_gib", "VRAM GiB", digits(3)),
            Column("tg_tps", "decode tok/s", digits(4), timed=True),
            Column("cold_tps", "cold", digits(4), timed=True),
            Column("steady_tps", "steady", digits(4), timed=True),
            Column("pp_tps", "prompt tok/s", digits(4), timed=True),
            Column("hit_rate", "hit %", percent),
            Column("resident_tps", "resident", digits(4), timed=True),
            Column("bound_tps", "bound", digits(4), timed=True),
        ),
        rows=tuple(_capacity_row(arm, group) for group in grouped(arms) for arm in group),
    )


def _drawn(arms: Iterable[ArmSummary]) -> str:
    if not any(arm.protocol == "replay" for arm in arms):
        return ""
    return " With the input replay the hit rate comes from a generated trace (table traces)."


def _capacity_row(arm: ArmSummary, group: Sequence[ArmSummary]) -> dict[str, Value]:
    resident, bound = fastest(group, "resident"), bound_tps(arm, group)
    return {
        "row": arm.row,
        "arm": arm.arm,
        "protocol": arm.protocol,
        "capacity": arm.capacity,
        "capacity_share": arm.capacity_share,
        "vram_gib": None if arm.vram_bytes is None else arm.vram_bytes / GIB,
        "tg_tps": arm.tg_tps,
        "pp_tps": arm.pp_tps,
        "hit_rate": arm.hit_rate,
        "resident_tps": resident.tg_tps if resident else None,
        "bound_tps": bound,
        "evidence": arm.evidence,
        "n_expert": arm.model.n_expert,
        "tg_tps_lo": min(arm.tg.values()),
        "tg_tps_hi": max(arm.tg.values()),
        "cold_tps": arm.cold_tps,
        "steady_tps": arm.steady_tps,
        "rounds": len(arm.tg),
        "cold_steps": None if arm.cold_tps is None else COLD_STEPS,
        "variant": arm.model.variant,
        "vram_limit_gib": None if arm.limit_bytes is None else arm.limit_bytes / GIB,
        "resident_share": arm.tg_tps / resident.tg_tps if resident else None,
        "bound_share": arm.tg_tps / bound if bound else None,
        "misses_per_token": arm.misses_per_token,
        "mib_per_token": None if arm.bytes_per_token is None else arm.bytes_per_token / MIB,
        "bandwidth_gbs": None if arm.bandwidth is None else arm.bandwidth / 1e9,
        **_against_baseline(arm, group),
        "policy": arm.policy,
    }


def _against_baseline(arm: ArmSummary, group: Sequence[ArmSummary]) -> dict[str, Value]:
    """Return the best stock arm within a cached arm's VRAM and the ratio to it, on a GPU only.

    Beside it the A/A noise of a stock arm at limits, which may be another one.
    """
    limited = arm.role == "tec" and arm.limit_bytes is not None
    baseline = best_baseline(arm, group) if limited else None
    gpu = baseline is not None and arm.evidence == "gpu"
    ratio = paired_ratio(arm.tg, baseline.tg) if baseline and gpu else None
    stock = [other for other in group if other.role == "baseline"] if ratio else []
    twins = next(((a.arm, found) for a in stock if (found := noise(a, group))), None)
    return {
        "baseline_arm": baseline.arm if baseline else None,
        "baseline_tps": baseline.tg_tps if baseline else None,
        "speedup": ratio.value if ratio else None,
        "speedup_lo": ratio.lo if ratio else None,
        "speedup_hi": ratio.hi if ratio else None,
        "aa_arm": twins[0] if twins else None,
        "aa_lo": twins[1].lo if twins else None,
        "aa_hi": twins[1].hi if twins else None,
    }


def overhead_table(arms: Sequence[ArmSummary]) -> Table:
    """The cost of the mechanism: cached arms as ratios to `_reference`, beside A/A noise."""
    rows = [row for group in grouped(arms) for row in _overhead_rows(group)]
    return Table(
        name="overhead",
        caption=(
            "Decoding with the cache as a ratio to the cache off or, where VRAM is limited, to the "
            "resident arm; geometric mean of paired rounds with its 95 % bootstrap interval; A/A "
            "is the same for two identical arms."
        ),
        keys=(
            *("row", "arm", "protocol", "ratio_to_off", "lo", "hi", "aa_lo", "aa_hi"),
            *("evidence", "rounds", "off_arm", "variant"),
        ),
        columns=(
            Column("row", "row"),
            Column("protocol", "input"),
            Column("arm", "arm"),
            Column("off_arm", "to"),
            Column("ratio_to_off", "ratio", digits(3), timed=True),
            Column("lo", "from", digits(3), timed=True),
            Column("hi", "to", digits(3), timed=True),
            Column("aa_lo", "A/A from", digits(3), timed=True),
            Column("aa_hi", "A/A to", digits(3), timed=True),
            Column("rounds", "rounds"),
        ),
        rows=tuple(rows),
    )


def _overhead_rows(arms: Sequence[ArmSummary]) -> list[dict[str, Value]]:
    off = _reference(arms)
    if off is None:
        return []
    twins = noise(off, arms)
    return [_overhead_row(arm, off, twins) for arm in arms if arm.role == "tec"]


def _reference(arms: Sequence[ArmSummary]) -> ArmSummary | None:
    """Return what cached arms are compared with: the cache off or, at limits, the resident arm."""
    if any(arm.limit_bytes is not None for arm in arms):
        return fastest(arms, "resident")
    baselines = [arm for arm in arms if arm.role == "baseline"]
    return next((arm for arm in baselines if arm.arm == "off"), baselines[0] if baselines else None)


def _overhead_row(arm: ArmSummary, off: ArmSummary, twins: Interval | None) -> dict[str, Value]:
    ratio = paired_ratio(arm.tg, off.tg)
    return {
        "row": arm.row,
        "arm": arm.arm,
        "protocol": arm.protocol,
        "ratio_to_off": ratio.value,
        "lo": ratio.lo,
        "hi": ratio.hi,
        "aa_lo": twins.lo if twins else None,
        "aa_hi": twins.hi if twins else None,
        "evidence": arm.evidence,
        "rounds": ratio.n,
        "off_arm": off.arm,
        "variant": arm.model.variant,
    }


def parity_table(rows: Iterable[Sequence[Verdict] | Failure]) -> Table:
    """Every check's verdict, row by row; of a row that failed, that it was not checked."""
    keys = ("row", "arm", "check", "verdict", "detail", "evidence", "batch")
    shown = ("row", "arm", "batch", "check", "verdict", "detail")
    lines: list[dict[str, Value]] = []
    for row in rows:
        if isinstance(row, Failure):
            lines.append(_not_run(row))
        else:
            lines += [verdict.model_dump(include=set(keys)) for verdict in row]
    return Table(
        name="parity",
        caption=(
            "Parity: equality of outputs between the cached arms and the reference, which is the "
            "cache off or, of a replica, the stock engine with every expert on the GPU, resident "
            "or streamed."
        ),
        keys=keys,
        columns=tuple(Column(key, key) for key in shown),
        rows=tuple(lines),
    )


def _not_run(failure: Failure) -> dict[str, Value]:
    return {
        "row": failure.row,
        "arm": None,
        "check": "self",
        "verdict": "not_run",
        "detail": failure.reason,
        "evidence": None,
        "batch": None,
    }


def study_tables(
    runs: Sequence[Sequence[Record] | Failure],
    verdicts: Sequence[Sequence[Verdict] | Failure],
    replays: bool,
    policies: bool = False,
) -> list[Table]:
    """Return the tables of `TABLES` and, where asked for, of `REPLAY_TABLES` and `POLICY_TABLES`.

    Args:
        runs: each file's records, or the failure in their place; rows keep this order.
        verdicts: the same of the verdicts.
        replays: whether the study has the protocol replay.
        policies: whether its arms differ in the cache's policy.
    """
    records = [record for file in runs if not isinstance(file, Failure) for record in file]
    arms = summarise(records)
    failures = [file for file in (*runs, *verdicts) if isinstance(file, Failure)]
    order = [file.row if isinstance(file, Failure) else file[0].row for file in runs if file]
    models = {record.row: record.model for record in reversed(records)}
    judged = [file for file in verdicts if not isinstance(file, Failure)]
    capacity = capacity_table(arms)
    tables = [
        main_table(arms, failures, order),
        capacity,
        overhead_table(arms),
        parity_table(verdicts),
        rows_table(models, judged, failures, order),
    ]
    if replays:
        tables += [
            headline_table(capacity.rows, arms, judged),
            loss_table(arms, records),
            baselines_table(records),
            traces_table(records),
        ]
    return [*tables, policies_table(arms, records, judged)] if policies else tables


def has_policies(runs: Iterable[Iterable[Record]]) -> bool:
    """Say whether a replay has arms whose misses the CPU computes, beside the others."""
    return any(
        record.protocol == "replay"
        and record.test != PROBE
        and record.fits
        and ExpertBench.model_validate(record.result).policy in ON_CPU
        for records in runs
        for record in records
    )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec tables`."""
    parser = sub.add_parser("tables", help="make a study's tables from its records and verdicts")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="files of records")
    parser.add_argument("--verdicts", type=Path, nargs="+", required=True)
    parser.add_argument("--baselines", action="store_true", help="of the protocol replay too")
    parser.add_argument("--policies", action="store_true", help="of the cache's policies too")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder")
    parser.set_defaults(run=_tables)


def _tables(options: argparse.Namespace) -> None:
    runs = [read_records_or_failure(path) for path in options.runs]
    verdicts = [read_verdicts_or_failure(path) for path in options.verdicts]
    tables = study_tables(runs, verdicts, options.baselines, options.policies)
    write_tables(tables, options.out)
