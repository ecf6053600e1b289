"""A finished study's folder: measured with the fake tools, tabulated by the real code."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fake_study import make_session, make_steps, make_study
from tec import machine_lock, steps
from tec.measure import prompts_plan, random_plan
from tec.parity import parity_plan
from tec.paths import ROOT
from tec.records import Protocol, Record, append_record, read_records
from tec.session import Step
from tec.summary import summarise
from tec.system import Gpu
from tec.table import write_tables
from tec.tables import capacity_table, main_table, overhead_table, parity_table
from tec.verdicts import judge

ROW = "toy"
PLANS: dict[Protocol, Callable[[steps.Steps], list[Step]]] = {
    "prompts": prompts_plan,
    "random": random_plan,
    "parity": parity_plan,
}
CARD = Gpu(
    name="card",
    vram_bytes=2**34,
    compute_capability="9.0",
    pcie_gen=5,
    pcie_gen_max=5,
    pcie_width=16,
    pcie_width_max=16,
    driver="1",
)


def write_results(
    folder: Path, rows: Sequence[str] = (ROW,), gpu: bool = False, **changes: Any
) -> Path:
    """Write tables and records of `rows` into `folder`, as if on a graphics card or without one.

    `changes` replace the keys of the study.
    """
    measured = _measured(json.dumps(changes))
    records = [_as(record, row, gpu) for row in rows for record in measured]
    for record in records:
        append_record(folder / "runs" / f"{record.row}.{record.protocol}.jsonl", record)
    arms = summarise(record for record in records if record.protocol != "parity")
    verdicts = [
        verdict
        for row in rows
        for verdict in judge([r for r in records if (r.row, r.protocol) == (row, "parity")])
    ]
    tables = (main_table(arms), capacity_table(arms), overhead_table(arms), parity_table(verdicts))
    write_tables(tables, folder / "tables")
    return folder


def write_model(folder: Path) -> None:
    """Copy what the paper reads about the shipped model."""
    folder.mkdir(parents=True)
    for name in ("corpus-manifest", "evaluation", "hashes", "train"):
        shutil.copy(ROOT / "models" / "pydoc-moe" / f"{name}.json", folder)


@cache
def _measured(changes: str) -> tuple[Record, ...]:
    """Run the fake study with changes, given as JSON; once for each."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr(machine_lock, "lock_path", lambda: folder / "lock")
        patch.setattr(steps, "CACHE", folder / "cache")
        maker = make_steps(folder, make_study(folder, **json.loads(changes)))
        return tuple(record for protocol in PLANS for record in _measure(folder, maker, protocol))


def _measure(folder: Path, maker: steps.Steps, protocol: Protocol) -> list[Record]:
    make_session(folder, maker, protocol).run(PLANS[protocol](maker), wait=0)
    return read_records(folder / f"{ROW}.{protocol}.jsonl")


def _as(record: Record, row: str, gpu: bool) -> Record:
    """Return the record as if it were of another row and, with `gpu`, of a graphics card."""
    changes: dict[str, object] = {
        "row": row,
        "model": record.model.model_copy(update={"row": row}),
        "result": {"threads": 1, **record.result, "layers": _layers(record)},
    }
    if gpu:
        changes["system"] = record.system.model_copy(update={"gpus": (CARD,)})
        changes["build"] = record.build.model_copy(update={"target": "sm_90"})
    return record.model_copy(update=changes)


def _layers(record: Record) -> list[dict[str, int]]:
    """Return the record's hits and misses divided between layers; the fake tool only has sums."""
    if not record.result.get("status", {}).get("engaged"):
        return []
    n_layer = record.model.n_moe_layers
    sums = {what: record.result[what] // n_layer for what in ("hits", "misses")}
    return [{"layer": layer, **sums} for layer in range(n_layer)]
