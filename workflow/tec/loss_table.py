"""The table of losses: what keeps every cached arm of a replay from its bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from tec.errors import TecError
from tec.loss import Estimate, Line, Loss, Tokens, divide, fit_arms
from tec.records import PROBE, Record
from tec.stats import Floats, decode_ns, decode_steps, steady_slice
from tec.summary import ArmSummary, fastest, grouped
from tec.table import Column, Table, Value, digits, percent

ALL = "all"
"""Name of a row's line for its cached arms together."""
_MS = 1e-6
_US = 1e-3


@dataclass(frozen=True)
class _Row:
    """What the lines of a row have in common."""

    arms: Mapping[str, Tokens]
    resident_ns: Floats | None
    bandwidth: float | None
    line: Line | None
    n_layers: int


def loss_table(arms: Sequence[ArmSummary], records: Iterable[Record]) -> Table:
    """Return a line per cached arm of a replay, and one for those of a row together.

    Times are means over rounds and all decode steps, so that the parts of a loss sum to it
    (`tec.loss`); the loss is divided by the row's line, whose coefficients stand in the line `all`
    beside those of each capacity. Without a resident arm there is no bound and no loss. Arms whose
    misses the CPU computes have none either: what they take is not the time of copies.

    Args:
        arms: the summaries of the records.
        records: of all protocols.

    Raises:
        TecError: processes of a row did not decode the same number of tokens.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.protocol == "replay" and record.test != PROBE and record.fits:
            found.setdefault((record.row, record.arm), []).append(record)
    lines: list[dict[str, Value]] = []
    for group in grouped(arm for arm in arms if arm.protocol == "replay"):
        if cached := [a for a in group if a.role == "tec" and not a.computes_misses]:
            row = _read_row(group, cached, found)
            lines += [_line(arm, row) for arm in cached]
            lines.append(_together(cached, row))
    return Table(
        name="loss",
        caption=(
            "Time per token above the bound, and what it goes to: the cached graph where nothing "
            "is missed, copies slower than the measured bandwidth, the first steps of a process, "
            "the rest. The cost of a layer without a miss and the bandwidth of a miss are fitted "
            "to the tokens of the steady state, per capacity and over all."
        ),
        keys=(
            *("row", "arm", "protocol", "capacity", "capacity_share", "ms_per_token"),
            *("resident_ms", "bound_ms", "loss_ms", "hit_ms", "fill_ms", "cold_ms", "rest_ms"),
            *("hit_share", "fill_share", "cold_share", "rest_share", "misses_per_token"),
            *("steady_resident_ms", "all_hit_ms"),
            *("hit_us_layer", "hit_us_layer_lo", "hit_us_layer_hi"),
            *("miss_us", "miss_us_lo", "miss_us_hi", "copy_us", "fill_gbs", "copy_gbs"),
            *("fill_copy_share", "n_layers", "rounds", "variant", "evidence"),
        ),
        columns=(
            Column("row", "row"),
            Column("arm", "arm"),
            Column("ms_per_token", "ms/token", digits(3), timed=True),
            Column("bound_ms", "bound", digits(3), timed=True),
            Column("loss_ms", "above it", digits(3), timed=True),
            Column("hit_share", "no miss %", percent, timed=True),
            Column("fill_share", "slower copies %", percent, timed=True),
            Column("cold_share", "first steps %", percent, timed=True),
            Column("rest_share", "rest %", percent, timed=True),
            Column("hit_us_layer", "a layer, no miss: \N{MICRO SIGN}s", digits(2), timed=True),
            Column("miss_us", "a miss: \N{MICRO SIGN}s", digits(4), timed=True),
            Column("fill_gbs", "GB/s", digits(3), timed=True),
            Column("copy_gbs", "measured GB/s", digits(3), timed=True),
        ),
        rows=tuple(lines),
    )


def _read_row(
    group: Sequence[ArmSummary],
    cached: Sequence[ArmSummary],
    found: Mapping[tuple[str, str], Sequence[Record]],
) -> _Row:
    tokens = {arm.arm: _tokens(arm, found[arm.row, arm.arm]) for arm in cached}
    resident = fastest(group, "resident")
    base = _times(found[resident.row, resident.arm]).mean(axis=0) if resident else None
    _check_steps(cached[0].row, [*tokens.values()], base)
    copied = [arm.bandwidth for arm in group if arm.bandwidth]
    return _Row(
        arms=tokens,
        resident_ns=base,
        bandwidth=median(copied) if copied else None,
        line=fit_arms(list(tokens.values()), base),
        n_layers=cached[0].model.n_moe_layers,
    )


def _check_steps(row: str, arms: Sequence[Tokens], resident_ns: Floats | None) -> None:
    """Raise a TecError unless all arms decoded the same number of tokens."""
    steps = {arm.ns.shape[1] for arm in arms} | {len(r) for r in (resident_ns,) if r is not None}
    if len(steps) > 1:
        raise TecError(
            f"the arms decoded {' and '.join(map(str, sorted(steps)))} tokens along one trace",
            f"row {row}",
            "measure the row again: tec measure replay",
        )


def _tokens(arm: ArmSummary, records: Sequence[Record]) -> Tokens:
    """Return an arm's tokens; a miss counts as the mean of the missed experts' bytes."""
    misses = np.array([decode_steps(r.result, "misses") for r in records], dtype=np.float64)
    return Tokens(_times(records), misses * _bytes_per_miss(arm))


def _bytes_per_miss(arm: ArmSummary) -> float:
    return (arm.bytes_per_token or 0) / arm.misses_per_token if arm.misses_per_token else 0.0


def _times(records: Sequence[Record]) -> Floats:
    """Return the time of every decode step [n_process, n_step] in ns."""
    return np.stack([decode_ns(record.result) for record in records])


def _line(arm: ArmSummary, row: _Row) -> dict[str, Value]:
    tokens = row.arms[arm.arm]
    loss = _loss(tokens, row)
    total = float(tokens.mean_ns.mean())
    return {
        **_names(arm, arm.arm),
        "capacity": arm.capacity,
        "capacity_share": arm.capacity_share,
        "ms_per_token": total * _MS,
        "resident_ms": None if row.resident_ns is None else float(row.resident_ns.mean()) * _MS,
        "bound_ms": (total - loss.total) * _MS if loss else None,
        **_parts(loss),
        "misses_per_token": arm.misses_per_token,
        **_coefficients(fit_arms([tokens], row.resident_ns), row, _bytes_per_miss(arm)),
    }


def _together(cached: Sequence[ArmSummary], row: _Row) -> dict[str, Value]:
    """Return the line of the row's fit; a miss has the bytes that they have on average."""
    blank = ("capacity", "capacity_share", "ms_per_token", "resident_ms", "bound_ms")
    misses = sum(arm.misses_per_token or 0 for arm in cached)
    moved = sum(arm.bytes_per_token or 0 for arm in cached)
    return {
        **_names(cached[0], ALL),
        **dict.fromkeys((*blank, "misses_per_token")),
        **_parts(None),
        **_coefficients(row.line, row, moved / misses if misses else 0.0),
    }


def _names(arm: ArmSummary, name: str) -> dict[str, Value]:
    return {
        "row": arm.row,
        "arm": name,
        "protocol": arm.protocol,
        "rounds": len(arm.tg),
        "variant": arm.model.variant,
        "evidence": arm.evidence,
        "n_layers": arm.model.n_moe_layers,
    }


def _loss(tokens: Tokens, row: _Row) -> Loss | None:
    if row.resident_ns is None or row.bandwidth is None or row.line is None:
        return None
    return divide(tokens, row.resident_ns, row.bandwidth, row.line)


def _parts(loss: Loss | None) -> dict[str, Value]:
    """Return the loss per token, its parts in milliseconds, and these as shares of it."""
    parts = ("hit", "fill", "cold", "rest")
    return {
        "loss_ms": loss.total * _MS if loss else None,
        **{f"{part}_ms": getattr(loss, part) * _MS if loss else None for part in parts},
        **{
            f"{part}_share": getattr(loss, part) / loss.total if loss and loss.total else None
            for part in parts
        },
    }


def _coefficients(line: Line | None, row: _Row, miss_bytes: float) -> dict[str, Value]:
    """Return what a fit says of a layer that misses nothing and of a miss, beside a plain copy.

    Without a resident arm the line's intercept is the whole time of a token that misses nothing.
    """
    known = row.resident_ns
    resident = None if known is None else float(known[steady_slice(len(known))].mean())
    hit = line.intercept if line else None
    layer = hit.scaled(_US / row.n_layers) if hit and resident is not None else None
    miss = line.slope.scaled(miss_bytes * _US) if line and line.slope else None
    copy = row.bandwidth
    fill = 1e9 / line.slope.value if line and line.slope else None
    return {
        "steady_resident_ms": None if resident is None else resident * _MS,
        "all_hit_ms": (hit.value + (resident or 0)) * _MS if hit else None,
        **_estimate("hit_us_layer", layer),
        **_estimate("miss_us", miss),
        "copy_us": miss_bytes / copy * 1e6 if copy and miss_bytes else None,
        "fill_gbs": fill / 1e9 if fill else None,
        "copy_gbs": copy / 1e9 if copy else None,
        "fill_copy_share": fill / copy if fill and copy else None,
    }


def _estimate(name: str, found: Estimate | None) -> dict[str, Value]:
    return {
        name: found.value if found else None,
        f"{name}_lo": found.lo if found else None,
        f"{name}_hi": found.hi if found else None,
    }
