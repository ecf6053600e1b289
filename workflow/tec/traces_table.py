"""The table of generated traces: where the hit rates of the protocol replay come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tec.records import PROBE, Record
from tec.table import Column, Table, Value, percent
from tec.trace_statistics import SHARES

LRU = tuple(f"lru_{share:g}" for share in SHARES)
"""Columns of the LRU hit rates, by the capacity as a share of all experts."""

_PRINTED = (0.25, 0.5, 0.75)
_REUSE = ("tokens", "next_token", "within_8")


def traces_table(records: Iterable[Record]) -> Table:
    """Return a line per row with the protocol replay: what its trace was drawn by, and what it has.

    Records hold the statistics of the trace that they followed; one of a row is enough.
    """
    known = {
        record.row: statistics
        for record in records
        if record.protocol == "replay" and record.test != PROBE
        if (statistics := record.result.get("trace_statistics"))
    }
    return Table(
        name="traces",
        caption=(
            "The traces that replays follow. They are generated: what a source says was published "
            "or measured is matched, the rest of the profile is assumed. Reuse and LRU hit rates, "
            "in percent, are those of the trace."
        ),
        keys=("row", "profile", "source", "seed", *_REUSE, *LRU),
        columns=(
            Column("row", "row"),
            Column("profile", "profile"),
            Column("seed", "seed"),
            Column("tokens", "tokens"),
            Column("next_token", "next token", percent),
            Column("within_8", "within 8", percent),
            *(Column(f"lru_{s:g}", f"LRU, C/N = {s:g}", percent) for s in _PRINTED),
            Column("source", "source"),
        ),
        rows=tuple(_line(row, statistics) for row, statistics in known.items()),
    )


def _line(row: str, statistics: Mapping[str, Any]) -> dict[str, Value]:
    rates = {f"lru_{point['share']:g}": point["hit_rate"] for point in statistics["lru"]}
    return {
        "row": row,
        **{key: statistics["generator"][key] for key in ("profile", "source", "seed")},
        **{key: statistics[key] for key in _REUSE},
        **{key: rates.get(key) for key in LRU},
    }
