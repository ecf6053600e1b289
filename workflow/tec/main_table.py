"""The main table: a line per row, with the best baseline beside the fastest TEC arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tec.gguf_file import ModelInfo
from tec.models import has_few_experts
from tec.outcome import Failure
from tec.quantities import GIB
from tec.stats import paired_ratio
from tec.summary import ArmSummary, best_baseline, fastest
from tec.table import Column, Table, Value, digits, percent, short, times


def main_table(
    arms: Sequence[ArmSummary], failures: Sequence[Failure] = (), order: Iterable[str] = ()
) -> Table:
    """Per row: the best baseline against the fastest TEC arm, on real prompts or along a trace.

    A baseline has no more VRAM than the TEC arm, where that is limited (`_headline`). An arm with a
    slot for every expert is taken only where there is no other: it is the whole model on the
    device, which the cache is there to avoid. A row that failed has a line too.

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
        caption=_caption(rows),
        keys=(
            *("row", "arch", "quant", "size_gib", "baseline_arm", "baseline_tps"),
            *("tec_arm", "tec_tps", "speedup", "speedup_lo", "speedup_hi", "hit_rate"),
            *("evidence", "rounds", "variant", "outcome", "reason", "note"),
            *("protocol", "vram_limit_gib"),
        ),
        columns=(
            Column("row", "row"),
            Column("variant", "form"),
            Column("arch", "arch"),
            Column("quant", "quant"),
            Column("size_gib", "GiB", digits(3)),
            *(column for column in _LIMITS if any(row[column.key] for row in rows)),
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


_PROTOCOLS = ("prompts", "replay")
"""What a row's line is about, the first that it has; a study has one of them."""
_HEADLINE_SHARE = 0.5

_LIMITS = (Column("vram_limit_gib", "VRAM GiB", digits(3)),)
_REMARKS = (Column("note", "note"), Column("reason", "failed", short(80)))
"""Columns that are printed only where a row has something in them."""


def _caption(rows: Sequence[Mapping[str, Value]]) -> str:
    if any(row["protocol"] == "replay" for row in rows):
        return (
            "Decoding along a drawn routing trace, every arm within the same VRAM: the best "
            "baseline against TEC with slots for about half of the experts. The hit rate comes "
            "from a generated trace (table traces)."
        )
    return (
        "Decoding real prompts: the best baseline against the fastest TEC arm with fewer slots "
        "than experts, where there is one."
    )


def _main_row(row: str, arms: Sequence[ArmSummary], failure: Failure | None) -> dict[str, Value]:
    """Return a row's line; of a row that failed, what was measured all the same."""
    model = arms[0].model if arms else None
    protocol = next((name for name in _PROTOCOLS if any(a.protocol == name for a in arms)), None)
    arms = [arm for arm in arms if arm.protocol == protocol]
    tec = _headline(arms)
    baseline = best_baseline(tec, arms) if tec else fastest(arms, "baseline")
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
        "protocol": protocol,
        "vram_limit_gib": tec.limit_bytes / GIB if tec and tec.limit_bytes else None,
    }


def _headline(arms: Sequence[ArmSummary]) -> ArmSummary | None:
    """Return the TEC arm of a row's line.

    Where every arm has a limit of VRAM the fastest would only be the one with the most memory: the
    one nearest to a slot for half of the experts is taken. An arm whose misses the CPU computes is
    never taken: its outputs are not those of the resident model to the bit, and a speed-up beside
    others would hide that. Such arms have the table `policies`.
    """
    arms = [arm for arm in arms if not arm.computes_misses]
    cached = [arm for arm in arms if arm.role == "tec"]
    if limited := [arm for arm in cached if arm.limit_bytes is not None]:
        return min(limited, key=lambda arm: abs((arm.capacity_share or 0) - _HEADLINE_SHARE))
    part = [arm for arm in arms if arm.capacity_share != 1]
    return fastest(part, "tec") or fastest(arms, "tec")


def _variant(model: ModelInfo | None, failure: Failure | None) -> str | None:
    if model:
        return model.variant
    return failure.variant if failure else None


def _note(model: ModelInfo | None) -> str | None:
    """Say where the model is one that TEC is not made for."""
    few = model is not None and has_few_experts(model)
    return "preconditions do not hold" if few else None
