"""The main table: a line per row, with the best baseline beside the fastest TEC arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tec.gguf_file import ModelInfo
from tec.models import FEWEST_EXPERTS
from tec.outcome import Failure
from tec.quantities import GIB
from tec.stats import paired_ratio
from tec.summary import ArmSummary, fastest
from tec.table import Column, Table, Value, digits, percent, short, times


def main_table(
    arms: Sequence[ArmSummary], failures: Sequence[Failure] = (), order: Iterable[str] = ()
) -> Table:
    """Per row: the best baseline against the fastest TEC arm, on real prompts.

    An arm with a slot for every expert is taken only where there is no other: it is the whole
    model on the device, which the cache is there to avoid. A row that failed has a line too.

    Args:
        arms: of all rows.
        failures: of the rows that failed; of several of a row the first counts.
        order: names of the rows as they are to follow each other; the order of the arms if empty.
    """
    measured: dict[str, list[ArmSummary]] = {row: [] for row in order}
    for arm in arms:
        measured.setdefault(arm.row, []).append(arm)
    reasons = {failure.row: failure for failure in reversed(failures)}
    rows = [_main_row(row, measured.get(row, []), reasons.get(row)) for row in measured | reasons]
    return Table(
        name="main",
        caption="Decoding real prompts: the best baseline against the fastest TEC arm with fewer "
        "slots than experts, where there is one.",
        keys=(
            *("row", "arch", "quant", "size_gib", "baseline_arm", "baseline_tps"),
            *("tec_arm", "tec_tps", "speedup", "speedup_lo", "speedup_hi", "hit_rate"),
            *("evidence", "rounds", "variant", "outcome", "reason", "note"),
        ),
        columns=(
            Column("row", "row"),
            Column("variant", "form"),
            Column("arch", "arch"),
            Column("quant", "quant"),
            Column("size_gib", "GiB", digits(3)),
            Column("baseline_arm", "baseline"),
            Column("baseline_tps", "tok/s", digits(4), timed=True),
            Column("tec_arm", "TEC"),
            Column("tec_tps", "tok/s", digits(4), timed=True),
            Column("speedup", "speed-up", times, timed=True),
            Column("hit_rate", "hit %", percent),
            *(column for column in _REMARKS if any(row[column.key] for row in rows)),
        ),
        rows=tuple(rows),
    )


_REMARKS = (Column("note", "note"), Column("reason", "failed", short(80)))
"""Columns that are printed only where a row has something in them."""


def _main_row(row: str, arms: Sequence[ArmSummary], failure: Failure | None) -> dict[str, Value]:
    """Return a row's line; of a row that failed, what was measured all the same."""
    model = arms[0].model if arms else None
    arms = [arm for arm in arms if arm.protocol == "prompts"]
    baseline = fastest(arms, "baseline")
    part = [arm for arm in arms if arm.capacity_share != 1]
    tec = fastest(part, "tec") or fastest(arms, "tec")
    ratio = None
    if baseline and tec and tec.evidence == "gpu":
        ratio = paired_ratio(tec.tg, baseline.tg)
    return {
        "row": row,
        "arch": model.arch if model else None,
        "quant": model.quant if model else None,
        "size_gib": model.bytes / GIB if model else None,
        "baseline_arm": baseline.arm if baseline else None,
        "baseline_tps": baseline.tg_tps if baseline else None,
        "tec_arm": tec.arm if tec else None,
        "tec_tps": tec.tg_tps if tec else None,
        "speedup": ratio.value if ratio else None,
        "speedup_lo": ratio.lo if ratio else None,
        "speedup_hi": ratio.hi if ratio else None,
        "hit_rate": tec.hit_rate if tec else None,
        "evidence": arms[0].evidence if arms else None,
        "rounds": len(arms[0].tg) if arms else None,
        "variant": _variant(model, failure),
        "outcome": "failed" if failure else "ok",
        "reason": failure.reason if failure else None,
        "note": _note(model),
    }


def _variant(model: ModelInfo | None, failure: Failure | None) -> str | None:
    if model:
        return model.variant
    return failure.variant if failure else None


def _note(model: ModelInfo | None) -> str | None:
    """Say where the model is one that TEC is not made for."""
    few = model is not None and model.n_expert < FEWEST_EXPERTS
    return "preconditions do not hold" if few else None
