"""`tec locality`: the tables of the locality study, from its traces and records.

Per row the measurement leaves `traces/<row>.<input>.npy` and `runs/<row>.locality.jsonl`. The hits
that the programs counted must be those that the traces predict; if they are not, there is no table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tec.files import write_atomically
from tec.gguf_file import ModelInfo
from tec.locality import POLICIES, WINDOWS, Locality, analyse
from tec.locality_check import check_input
from tec.outcome import Failure, read_records_or_failure
from tec.records import Record
from tec.table import Column, Table, Value, digits, percent, to_csv, write_tables
from tec.trace import shown_capacities

_HINT = "measure again: tec measure locality"
_PER_DOUBLING = 4
"""Windows from 64 tokens on, evenly spaced by their logarithm."""


@dataclass(frozen=True)
class InputStudy:
    """One row on one input: what its trace says, and what the programs counted."""

    model: ModelInfo
    name: str
    """Of the input: text, repetitive, random."""
    locality: Locality
    counted: Mapping[int, float]
    """Capacity -> hit rate of LRU as counted."""

    def line(self, **values: Value) -> dict[str, Value]:
        """Return a line of a table."""
        return {"row": self.model.row, "trace": self.name, **values, "variant": self.model.variant}


def read_studies(results: Path, row: str) -> list[InputStudy]:
    """Return what was measured for a row, an entry per input; none if the row failed.

    Raises:
        TecError: a file is missing or damaged, a trace is not that of its record, or the counted
            hits are not those predicted; names row, input, capacity and token.
    """
    records = read_records_or_failure(results / "runs" / f"{row}.locality.jsonl")
    if isinstance(records, Failure):
        return []
    inputs = dict.fromkeys(record.test for record in records)
    return [_read_study(results / "traces" / f"{row}.{name}.npy", name, records) for name in inputs]


def _read_study(path: Path, name: str, records: Sequence[Record]) -> InputStudy:
    checked = check_input(path, name, records, _HINT)
    return InputStudy(checked.model, name, analyse(checked.trace), checked.counted)


def locality_table(studies: Sequence[InputStudy]) -> Table:
    """Hit rate of every policy at every capacity; for people at some, side by side."""
    rows = [
        study.line(
            policy=policy,
            capacity=capacity,
            hit_rate=study.locality.hit_rate(policy, capacity),
            counted_hit_rate=study.counted.get(capacity) if policy == "lru" else None,
            n_selections=study.locality.n_selections,
        )
        for study in studies
        for policy in POLICIES
        for capacity in study.locality.capacities
    ]
    return Table(
        name="locality",
        caption=(
            "Hit rates in percent that the recorded routing gives each policy, all starting with "
            "the first C experts; counted are the hits of the programs' LRU."
        ),
        keys=(
            *("row", "trace", "policy", "capacity", "hit_rate"),
            *("counted_hit_rate", "n_selections", "variant"),
        ),
        columns=(
            Column("row", "row"),
            Column("trace", "input"),
            Column("capacity", "C"),
            Column("share", "C/N %", percent),
            Column("counted", "counted", percent),
            Column("lru", "LRU", percent),
            Column("lfu", "LFU", percent),
            Column("hot", "hot", percent),
            Column("belady", "Belady", percent),
        ),
        rows=tuple(rows),
        printed=tuple(line for study in studies for line in _printed(study)),
    )


def _printed(study: InputStudy) -> list[dict[str, Value]]:
    found = study.locality
    return [
        study.line(
            capacity=capacity,
            share=capacity / found.n_expert,
            counted=study.counted.get(capacity),
            **{policy: found.hit_rate(policy, capacity) for policy in POLICIES},
        )
        for capacity in shown_capacities(found.top_k, found.n_expert)
    ]


def reuse_table(studies: Sequence[InputStudy]) -> Table:
    """How soon experts are selected again, a line per row and input."""
    return Table(
        name="reuse",
        caption=(
            "Reuse of experts: overlap of a token's selection with the last W tokens' in percent, "
            "beside what uniformly random routing would give; distances in tokens."
        ),
        keys=(
            *("row", "trace", "n_tokens", "n_selections", "overlap_1", "overlap_8", "overlap_64"),
            *("uniform_8", "median_reuse", "next_token", "within_8", "never_before", "variant"),
        ),
        columns=(
            Column("row", "row"),
            Column("trace", "input"),
            Column("n_tokens", "tokens"),
            Column("overlap_1", "W = 1", percent),
            Column("overlap_8", "W = 8", percent),
            Column("uniform_8", "uniform", percent),
            Column("overlap_64", "W = 64", percent),
            Column("median_reuse", "median distance", digits(1)),
            Column("never_before", "never before", percent),
        ),
        rows=tuple(_reuse_line(study) for study in studies),
    )


def _reuse_line(study: InputStudy) -> dict[str, Value]:
    found = study.locality
    overlap, reuse = found.overlap(), found.reuse()
    last = found.n_tokens - 1
    return study.line(
        n_tokens=found.n_tokens,
        n_selections=found.n_selections,
        **{f"overlap_{w}": float(overlap[w - 1]) if w <= last else None for w in (1, 8, 64)},
        uniform_8=float(found.uniform_overlap()[7]),
        median_reuse=found.median_reuse,
        next_token=float(reuse[min(1, last)]),
        within_8=float(reuse[min(8, last)]),
        never_before=found.first_uses,
    )


def overlap_table(studies: Sequence[InputStudy]) -> Table:
    """What the figures of overlap and reuse are drawn from; nobody reads it line by line."""
    keys = ("row", "trace", "window", "overlap", "uniform", "reused", "variant")
    rows = tuple(line for study in studies for line in _overlap_lines(study))
    return Table(name="overlap", caption="", keys=keys, columns=(), rows=rows)


def _overlap_lines(study: InputStudy) -> list[dict[str, Value]]:
    found = study.locality
    last = found.n_tokens - 1
    doublings = np.arange(_PER_DOUBLING * last.bit_length()) / _PER_DOUBLING
    longer = (WINDOWS[-1] * 2**doublings).astype(np.int64)
    windows = np.union1d(WINDOWS, longer)
    windows = np.append(windows[windows < last], last)
    reused = found.reuse()[windows]
    columns = (windows, found.overlap(windows), found.uniform_overlap(windows), reused)
    return [
        study.line(
            window=int(window), overlap=float(overlap), uniform=float(uniform), reused=float(within)
        )
        for window, overlap, uniform, within in zip(*columns, strict=True)
    ]


def write_locality_tables(results: Path, rows: Sequence[str]) -> None:
    """Write `locality`, `reuse` (CSV, Markdown, LaTeX) and `overlap` (CSV) into `tables/`."""
    studies = [study for row in rows for study in read_studies(results, row)]
    folder = results / "tables"
    write_tables((locality_table(studies), reuse_table(studies)), folder)
    write_atomically(folder / "overlap.csv", to_csv(overlap_table(studies)))


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec locality`."""
    parser = sub.add_parser(
        "locality", help="check counted hits against the traces; tables of hit rates and reuse"
    )
    parser.add_argument("results", type=Path, help="the study's folder, such as results/demo")
    parser.add_argument("--row", dest="rows", action="append", required=True, metavar="ROW")
    parser.set_defaults(run=lambda options: write_locality_tables(options.results, options.rows))
