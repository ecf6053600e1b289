"""The table of a study at limits of VRAM that is read first: a few capacities of every row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tec.baselines_table import deciding_option
from tec.policies import ON_CPU
from tec.records import Verdict
from tec.summary import ArmSummary
from tec.table import Column, Table, Value, digits, percent, times

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the experts that have a slot; the measured capacity nearest to each is shown."""

_TAKEN = (
    *("row", "arm", "protocol", "capacity", "capacity_share", "n_expert", "vram_gib"),
    *("vram_limit_gib", "baseline_arm", "baseline_tps", "speedup", "speedup_lo", "speedup_hi"),
    *("hit_rate", "resident_tps", "resident_share", "bound_share", "evidence", "rounds", "variant"),
)
"""Columns that are the capacity table's."""


def headline_table(
    capacities: Iterable[Mapping[str, Value]],
    arms: Iterable[ArmSummary],
    verdicts: Iterable[Sequence[Verdict]],
) -> Table:
    """Return the lines of the capacity table for cached arms near `SHARES`, row by row.

    They are those of arms that copy what they miss; the others have the table `policies`.

    Beside them the option that made the best stock arm what it is, and the numbers of sequences
    decoded together at which a bitwise check passed (`batches_equal`) or failed
    (`batches_unequal`).

    Args:
        capacities: the lines of the capacity table.
        arms: the same arms, for their command lines.
        verdicts: of every row that was judged.
    """
    commands = {(arm.row, arm.arm): arm.command for arm in arms if arm.protocol == "replay"}
    judged = [verdict for row in verdicts for verdict in row if verdict.check == "bitwise"]
    rows: dict[str, list[Mapping[str, Value]]] = {}
    for line in capacities:
        copies = line["capacity_share"] is not None and line["policy"] not in ON_CPU
        if line["protocol"] == "replay" and copies:
            rows.setdefault(str(line["row"]), []).append(line)
    lines = [_line(line, commands, judged) for row in rows.values() for line in _nearest(row)]
    return Table(
        name="headline",
        caption=(
            "Decoding along a generated trace, weights generated too: TEC and the stock engine's "
            "best within the same VRAM. The speed-up is the geometric mean of paired rounds with "
            "its 95 % bootstrap interval; resident is the whole model in VRAM, the bound its time "
            "and that of copying what is missed. Bits are equal where every logit of every step is."
        ),
        keys=(
            *_TAKEN,
            *("tec_tps", "baseline_option", "batches_equal", "batches_unequal"),
        ),
        columns=(
            Column("row", "row"),
            Column("capacity_share", "C/N %", percent),
            Column("vram_limit_gib", "VRAM GiB", digits(3)),
            Column("baseline_option", "best stock arm"),
            Column("baseline_tps", "tok/s", digits(4), timed=True),
            Column("tec_tps", "TEC tok/s", digits(4), timed=True),
            Column("speedup", "speed-up", timed=True),
            Column("hit_rate", "hit %", percent),
            Column("resident_share", "of resident %", percent, timed=True),
            Column("bound_share", "of the bound %", percent, timed=True),
            Column("batches_equal", "bits equal at batch"),
        ),
        rows=tuple(lines),
        printed=tuple({**line, "speedup": _speedup(line)} for line in lines),
    )


def _nearest(lines: Sequence[Mapping[str, Value]]) -> list[Mapping[str, Value]]:
    """Return the lines nearest to the wanted shares, each once, by capacity."""
    chosen = {
        str(best["arm"]): best
        for share in SHARES
        for best in [min(lines, key=lambda line: abs(float(line["capacity_share"] or 0) - share))]
    }
    return list(chosen.values())


def _line(
    line: Mapping[str, Value],
    commands: Mapping[tuple[str, str], Sequence[str]],
    judged: Sequence[Verdict],
) -> dict[str, Value]:
    row, baseline = str(line["row"]), line["baseline_arm"]
    own = [verdict for verdict in judged if (verdict.row, verdict.arm) == (row, line["arm"])]
    option = deciding_option(commands[row, str(baseline)]) if baseline else None
    return {
        **{key: line[key] for key in _TAKEN},
        "tec_tps": line["tg_tps"],
        "baseline_option": " ".join(map(str, option)) if option else None,
        "batches_equal": _batches(own, "pass"),
        "batches_unequal": _batches(own, "fail"),
    }


def _batches(judged: Iterable[Verdict], verdict: str) -> str | None:
    found = sorted({v.batch for v in judged if v.verdict == verdict and v.batch is not None})
    return " ".join(map(str, found)) or None


def _speedup(line: Mapping[str, Value]) -> str | None:
    """Return the speed-up with its interval, as people read it."""
    value, lo, hi = (line[f"speedup{end}"] for end in ("", "_lo", "_hi"))
    if value is None:
        return None
    interval = "" if lo is None or hi is None else f" [{float(lo):.2f}, {float(hi):.2f}]"
    return f"{times(value)}{interval}"
