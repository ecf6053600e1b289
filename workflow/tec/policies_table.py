"""The table of policies: what each is worth with so many slots, beside the stock engine's best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from tec.quantities import GIB
from tec.records import PROBE, Outcome, Record, Verdict
from tec.stats import Interval, paired_ratio
from tec.summary import ArmSummary, belady_tps, best_baseline, fastest, grouped
from tec.table import Column, Table, Value, digits, percent, times

STOCK, BELADY, RESIDENT = "stock", "belady", "resident"
"""Lines beside those of the cache's own policies."""
ORDER = (STOCK, "lru", "hot", "hybrid", BELADY, RESIDENT)
_BITWISE, _NOT_BITWISE = "bitwise", "no"

Bits = Set[tuple[str, str, Outcome]]
"""Row, arm and outcome of comparisons of bits."""

_CAPTION = (
    "Policies of the cache along one routing trace, every line of a capacity within the same VRAM. "
    "Exact is bitwise where every logit of every step that was compared is that of the reference. "
    "With hot and hybrid the CPU computes misses in another order of sums; these are held to "
    "tokens, perplexity and divergence. Belady is no run: resident time and that of copying the "
    "fewest misses that any choice of victims has on the tokens that were decoded, at the measured "
    "bandwidth. It bounds policies that copy their misses; of the others only the hits."
)


def policies_table(
    arms: Iterable[ArmSummary],
    records: Iterable[Record],
    verdicts: Iterable[Sequence[Verdict]],
) -> Table:
    """Return a line for every policy at every capacity of a replay, and one for the ceiling.

    Belady's line is the bound of DESIGN section 4 with Belady's misses (`belady_tps`). A ratio to
    the stock engine is that of paired rounds, on a graphics card only.

    Args:
        arms: the summaries of the records.
        records: of all protocols; they say what trace was followed.
        verdicts: of every row that was judged.
    """
    traces = {r.row: _trace(r.result) for r in records if r.protocol == "replay" and _followed(r)}
    bits = {
        (verdict.row, verdict.arm, verdict.verdict)
        for row in verdicts
        for verdict in row
        if verdict.check == "bitwise"
    }
    groups = grouped(arm for arm in arms if arm.protocol == "replay")
    return Table(
        name="policies",
        caption=_CAPTION,
        keys=(
            *("row", "trace", "capacity", "capacity_share", "policy", "tps", "lo", "hi"),
            *("hit_rate", "share_of_resident", "against_stock", "exact", "evidence"),
            *("against_lo", "against_hi", "arm", "vram_limit_gib", "misses_per_token", "rounds"),
            *("variant", "choice"),
        ),
        columns=(
            Column("row", "row"),
            Column("capacity_share", "C/N %", percent),
            Column("vram_limit_gib", "VRAM GiB", digits(3)),
            Column("policy", "policy"),
            Column("tps", "tok/s", digits(4), timed=True),
            Column("hit_rate", "hit %", percent),
            Column("share_of_resident", "of resident %", percent, timed=True),
            Column("against_stock", "to stock", times, timed=True),
            Column("exact", "exact"),
        ),
        rows=tuple(
            {**line, "trace": traces.get(group[0].row)}
            for group in groups
            for line in _lines(group, bits)
        ),
    )


def _followed(record: Record) -> bool:
    return record.test != PROBE and "trace_statistics" in record.result


def _trace(result: Mapping[str, Any]) -> str:
    """Return the name of the trace's file, which says how it was drawn."""
    return str(result["trace_statistics"]["trace"]).removesuffix(".npy")


def _lines(group: Sequence[ArmSummary], bits: Bits) -> Iterator[dict[str, Value]]:
    """Yield the lines of one row: by capacity, in the order of `ORDER`; the ceiling last."""
    cached = [arm for arm in group if arm.role == "tec" and arm.capacity is not None]
    for capacity in sorted({arm.capacity for arm in cached if arm.capacity is not None}):
        at_it = [arm for arm in cached if arm.capacity == capacity]
        stock = best_baseline(at_it[0], group)
        place = at_it[0]
        if stock:
            yield _measured(stock, STOCK, place, group, None)
        for arm in sorted(at_it, key=lambda arm: ORDER.index(arm.policy or "")):
            yield {
                **_measured(arm, str(arm.policy), place, group, stock),
                "exact": _exact(arm, bits),
            }
        if (tps := belady_tps(place, group)) is not None:
            yield _bound(place, tps, group)
    if resident := fastest(group, "resident"):
        yield _measured(resident, RESIDENT, None, group, None)


def _measured(
    arm: ArmSummary,
    policy: str,
    place: ArmSummary | None,
    group: Sequence[ArmSummary],
    stock: ArmSummary | None,
) -> dict[str, Value]:
    gpu = stock is not None and arm.evidence == "gpu"
    ratio = paired_ratio(arm.tg, stock.tg) if stock and gpu else None
    return {
        **_place(place, policy, arm),
        "tps": arm.tg_tps,
        "lo": min(arm.tg.values()),
        "hi": max(arm.tg.values()),
        "hit_rate": arm.hit_rate,
        "share_of_resident": _share(arm.tg_tps, group),
        **_ratio(ratio),
        "arm": arm.arm,
        "misses_per_token": arm.misses_per_token,
        "rounds": len(arm.tg),
        "choice": arm.choice,
    }


def _bound(place: ArmSummary, tps: float, group: Sequence[ArmSummary]) -> dict[str, Value]:
    """Return Belady's line; its hit rate is of the same selections as the arm's."""
    misses = place.belady_misses_per_token
    selections = place.model.n_moe_layers * place.model.n_expert_used
    return {
        **_place(place, BELADY, place),
        "tps": tps,
        "lo": None,
        "hi": None,
        "hit_rate": None if misses is None else 1 - misses / selections,
        "share_of_resident": _share(tps, group),
        **_ratio(None),
        "arm": None,
        "misses_per_token": misses,
        "rounds": None,
        "choice": None,
    }


def _place(place: ArmSummary | None, policy: str, arm: ArmSummary) -> dict[str, Value]:
    """Return what says which line it is; the ceiling has no capacity."""
    limit = (place or arm).limit_bytes
    return {
        "row": arm.row,
        "capacity": place.capacity if place else None,
        "capacity_share": place.capacity_share if place else None,
        "policy": policy,
        "vram_limit_gib": limit / GIB if limit else None,
        "exact": None,
        "variant": arm.model.variant,
        "evidence": arm.evidence,
    }


def _share(tps: float, group: Sequence[ArmSummary]) -> float | None:
    resident = fastest(group, "resident")
    return tps / resident.tg_tps if resident else None


def _ratio(ratio: Interval | None) -> dict[str, Value]:
    return {
        "against_stock": ratio.value if ratio else None,
        "against_lo": ratio.lo if ratio else None,
        "against_hi": ratio.hi if ratio else None,
    }


def _exact(arm: ArmSummary, bits: Bits) -> str | None:
    """Return whether bits were equal wherever they were compared; None where they never were."""
    if arm.computes_misses or (arm.row, arm.arm, "fail") in bits:
        return _NOT_BITWISE
    return _BITWISE if (arm.row, arm.arm, "pass") in bits else None
