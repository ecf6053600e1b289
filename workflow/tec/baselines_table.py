"""The table of baselines: what the stock engine does with the VRAM of each capacity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from tec.expert_bench import ExpertBench
from tec.quantities import GIB, MIB
from tec.records import PROBE, Record
from tec.table import Column, Table, Value, digits

_FLAGS = ("--fit-target", "--n-cpu-moe", "--gpu-layers")
"""Options that decide what is on the GPU, the telling ones first."""


def baselines_table(records: Iterable[Record]) -> Table:
    """Return a line per arm of the stock engine: its limit, the options found, and its speed.

    `refused` is the value next to the one that was taken: it was tried and did not load.
    """
    arms: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.protocol == "replay" and record.expert_cache == "off":
            arms.setdefault((record.row, record.arm), []).append(record)
    lines = [line for found in arms.values() if (line := _line(found))]
    order = list(dict.fromkeys(row for row, _ in arms))
    return Table(
        name="baselines",
        caption=(
            "The stock engine at each limit of VRAM: the options that the search found, the next "
            "value, which does not load, and decoding speed along the trace."
        ),
        keys=(
            *("row", "protocol", "vram_limit_gib", "arm", "flag", "value", "refused"),
            *("tg_tps", "outcome", "evidence", "rounds"),
        ),
        columns=(
            Column("row", "row"),
            Column("vram_limit_gib", "VRAM GiB", digits(3)),
            Column("arm", "arm"),
            Column("flag", "option"),
            Column("value", "value"),
            Column("refused", "does not load"),
            Column("tg_tps", "decode tok/s", digits(4), timed=True),
            Column("outcome", "outcome"),
        ),
        rows=tuple(sorted(lines, key=lambda line: _place(line, order))),
    )


def _place(line: Mapping[str, Value], order: Sequence[str]) -> tuple[int, float]:
    return order.index(str(line["row"])), float(line["vram_limit_gib"] or 0)


def _line(records: Sequence[Record]) -> dict[str, Value] | None:
    """Return an arm's line; of one that did not fit, the last that was tried."""
    measured = [record for record in records if record.test != PROBE and record.fits]
    refused = [record for record in records if not record.fits]
    if not measured and not refused:
        return None
    shown = (measured or refused)[-1]
    limit = option(shown, "--vram-limit")
    if shown.arm == _CARD or limit is None:
        return None
    speeds = [ExpertBench.model_validate(record.result).tg_tps for record in measured]
    flag = next((name for name in _FLAGS if option(shown, name) is not None), None)
    return {
        "row": shown.row,
        "protocol": shown.protocol,
        "vram_limit_gib": limit * MIB / GIB,
        "arm": shown.arm,
        "flag": flag,
        "value": option(shown, flag) if flag and measured else None,
        "refused": _next(refused, flag, option(shown, flag) if measured and flag else None),
        "tg_tps": median(speeds) if speeds else None,
        "outcome": "ok" if measured else "does not fit",
        "evidence": shown.evidence,
        "rounds": len(measured),
    }


def deciding_option(command: Sequence[str]) -> tuple[str, int] | None:
    """Return the option of a stock arm's command line that decides what is on the GPU."""
    flag = next((name for name in _FLAGS if name in command), None)
    return (flag, int(command[command.index(flag) + 1])) if flag else None


_CARD = "card"
"""Arm of the probe that reads how much memory the card has free."""


def _next(refused: Sequence[Record], flag: str | None, value: int | None) -> int | None:
    """Return the refused value nearest to the one that was taken, which a smaller limit refuses."""
    if flag is None or value is None:
        return None
    tried = {option(record, flag) for record in refused}
    others = [found for found in tried if found is not None and found != value]
    return min(others, key=lambda found: abs(found - value), default=None)


def option(record: Record, name: str | None) -> int | None:
    """Return the number that a record's command line has for an option."""
    words = record.command
    return int(words[words.index(name) + 1]) if name in words else None
