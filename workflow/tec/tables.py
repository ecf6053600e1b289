"""The tables of a study, derived from its raw records and verdicts alone.

Each has the columns other tools read (DESIGN section 6), more of them at the end. A ratio measured
on the CPU back end is never a speed-up: those cells stay empty.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from tec.quantities import GIB
from tec.records import Verdict, read_records, read_verdicts
from tec.stats import COLD_STEPS, Interval, paired_ratio
from tec.summary import ArmSummary, Role, summarise
from tec.table import Column, Table, Value, digits, percent, times, write_tables

TABLES = {
    "main": "row,arch,quant,size_gib,baseline_arm,baseline_tps,tec_arm,tec_tps,speedup,"
    "speedup_lo,speedup_hi,hit_rate,evidence",
    "capacity": "row,arm,protocol,capacity,capacity_share,vram_gib,tg_tps,pp_tps,hit_rate,"
    "resident_tps,bound_tps,evidence",
    "parity": "row,arm,check,verdict,detail",
    "overhead": "row,arm,protocol,ratio_to_off,lo,hi,aa_lo,aa_hi,evidence",
}
"""Table -> the columns that other tools read."""


def main_table(arms: Sequence[ArmSummary]) -> Table:
    """Per row: the best baseline against the fastest TEC arm, on real prompts.

    An arm with a slot for every expert is taken only where there is no other: it is the whole
    model on the device, which the cache is there to avoid.
    """
    groups = _grouped(arm for arm in arms if arm.protocol == "prompts")
    return Table(
        name="main",
        caption="Decoding real prompts: the best baseline against the fastest TEC arm with fewer "
        "slots than experts, where there is one.",
        keys=(
            *("row", "arch", "quant", "size_gib", "baseline_arm", "baseline_tps"),
            *("tec_arm", "tec_tps", "speedup", "speedup_lo", "speedup_hi", "hit_rate"),
            *("evidence", "rounds"),
        ),
        columns=(
            Column("row", "row"),
            Column("arch", "arch"),
            Column("quant", "quant"),
            Column("size_gib", "GiB", digits(3)),
            Column("baseline_arm", "baseline"),
            Column("baseline_tps", "tok/s", digits(4), timed=True),
            Column("tec_arm", "TEC"),
            Column("tec_tps", "tok/s", digits(4), timed=True),
            Column("speedup", "speed-up", times, timed=True),
            Column("hit_rate", "hit %", percent),
        ),
        rows=tuple(row for group in groups if (row := _main_row(group)) is not None),
    )


def _main_row(arms: Sequence[ArmSummary]) -> dict[str, Value] | None:
    baseline = _fastest(arms, "baseline")
    part = [arm for arm in arms if arm.capacity_share != 1]
    tec = _fastest(part, "tec") or _fastest(arms, "tec")
    if baseline is None or tec is None:
        return None
    ratio = paired_ratio(tec.tg, baseline.tg) if tec.evidence == "gpu" else None
    return {
        "row": tec.row,
        "arch": tec.model.arch,
        "quant": tec.model.quant,
        "size_gib": tec.model.bytes / GIB,
        "baseline_arm": baseline.arm,
        "baseline_tps": baseline.tg_tps,
        "tec_arm": tec.arm,
        "tec_tps": tec.tg_tps,
        "speedup": ratio.value if ratio else None,
        "speedup_lo": ratio.lo if ratio else None,
        "speedup_hi": ratio.hi if ratio else None,
        "hit_rate": tec.hit_rate,
        "evidence": tec.evidence,
        "rounds": len(tec.tg),
    }


def capacity_table(arms: Sequence[ArmSummary]) -> Table:
    """Every arm under every protocol: throughput and hit rate against capacity."""
    return Table(
        name="capacity",
        caption="Throughput and hit rate against capacity (slots per layer).",
        keys=(
            *("row", "arm", "protocol", "capacity", "capacity_share", "vram_gib"),
            *("tg_tps", "pp_tps", "hit_rate", "resident_tps", "bound_tps", "evidence"),
            *("n_expert", "tg_tps_lo", "tg_tps_hi", "cold_tps", "steady_tps", "rounds"),
            "cold_steps",
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
        rows=tuple(_capacity_row(arm, group) for group in _grouped(arms) for arm in group),
    )


def _capacity_row(arm: ArmSummary, group: Sequence[ArmSummary]) -> dict[str, Value]:
    resident = _fastest(group, "resident")
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
        "bound_tps": None,  # needs the measured host-to-device bandwidth of a card
        "evidence": arm.evidence,
        "n_expert": arm.model.n_expert,
        "tg_tps_lo": min(arm.tg.values()),
        "tg_tps_hi": max(arm.tg.values()),
        "cold_tps": arm.cold_tps,
        "steady_tps": arm.steady_tps,
        "rounds": len(arm.tg),
        "cold_steps": None if arm.cold_tps is None else COLD_STEPS,
    }


def overhead_table(arms: Sequence[ArmSummary]) -> Table:
    """The cost of the mechanism: every cached arm as a ratio to the cache off, beside A/A noise."""
    rows = [row for group in _grouped(arms) for row in _overhead_rows(group)]
    return Table(
        name="overhead",
        caption=(
            "Decoding with the cache as a ratio to the cache off, geometric mean of paired rounds "
            "with its 95 % bootstrap interval; A/A is the same for two identical arms."
        ),
        keys=(
            *("row", "arm", "protocol", "ratio_to_off", "lo", "hi", "aa_lo", "aa_hi"),
            *("evidence", "rounds", "off_arm"),
        ),
        columns=(
            Column("row", "row"),
            Column("protocol", "input"),
            Column("arm", "arm"),
            Column("ratio_to_off", "ratio to off", digits(3), timed=True),
            Column("lo", "from", digits(3), timed=True),
            Column("hi", "to", digits(3), timed=True),
            Column("aa_lo", "A/A from", digits(3), timed=True),
            Column("aa_hi", "A/A to", digits(3), timed=True),
            Column("rounds", "rounds"),
        ),
        rows=tuple(rows),
    )


def _overhead_rows(arms: Sequence[ArmSummary]) -> list[dict[str, Value]]:
    baselines = [arm for arm in arms if arm.role == "baseline"]
    off = next((arm for arm in baselines if arm.arm == "off"), baselines[0] if baselines else None)
    if off is None:
        return []
    twin = next((arm for arm in arms if arm.role == "aa" and arm.capacity is None), None)
    noise = paired_ratio(twin.tg, off.tg) if twin else None
    cached = [arm for arm in arms if arm.role == "tec"]
    return [_overhead_row(arm, off, noise) for arm in cached]


def _overhead_row(arm: ArmSummary, off: ArmSummary, noise: Interval | None) -> dict[str, Value]:
    ratio = paired_ratio(arm.tg, off.tg)
    return {
        "row": arm.row,
        "arm": arm.arm,
        "protocol": arm.protocol,
        "ratio_to_off": ratio.value,
        "lo": ratio.lo,
        "hi": ratio.hi,
        "aa_lo": noise.lo if noise else None,
        "aa_hi": noise.hi if noise else None,
        "evidence": arm.evidence,
        "rounds": ratio.n,
        "off_arm": off.arm,
    }


def parity_table(verdicts: Sequence[Verdict]) -> Table:
    """Every check's verdict."""
    keys = ("row", "arm", "check", "verdict", "detail", "evidence")
    return Table(
        name="parity",
        caption="Parity: equality of outputs between the cached arms and the cache off.",
        keys=keys,
        columns=tuple(Column(key, key) for key in keys[:-1]),
        rows=tuple(verdict.model_dump(include=set(keys)) for verdict in verdicts),
    )


def _grouped(arms: Iterable[ArmSummary]) -> list[list[ArmSummary]]:
    """Return the arms of each row and protocol together."""
    groups: dict[tuple[str, str], list[ArmSummary]] = {}
    for arm in arms:
        groups.setdefault((arm.row, arm.protocol), []).append(arm)
    return list(groups.values())


def _fastest(arms: Iterable[ArmSummary], role: Role) -> ArmSummary | None:
    """Return the arm of a role that decodes fastest by its median."""
    chosen = [arm for arm in arms if arm.role == role]
    return max(chosen, key=lambda arm: arm.tg_tps, default=None)


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec tables`."""
    parser = sub.add_parser("tables", help="make a study's tables from its records and verdicts")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="files of records")
    parser.add_argument("--verdicts", type=Path, nargs="+", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder")
    parser.set_defaults(run=_tables)


def _tables(options: argparse.Namespace) -> None:
    arms = summarise(record for path in options.runs for record in read_records(path))
    verdicts = [verdict for path in options.verdicts for verdict in read_verdicts(path)]
    tables = (main_table(arms), capacity_table(arms), overhead_table(arms), parity_table(verdicts))
    write_tables(tables, options.out)
