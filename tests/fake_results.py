"""A finished study's folder: measured with the fake tools, tabulated by the real code."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fake_study import apart_in, make_session, make_steps, make_study
from locality_results import write_locality
from tec import steps
from tec.config import Variant
from tec.files import write_atomically
from tec.main_table import main_table
from tec.measure import prompts_plan, random_plan
from tec.outcome import Failure
from tec.parity import parity_plan
from tec.paths import ROOT
from tec.records import Protocol, Record, append_record, read_records
from tec.routing_summary import RoutingSummary
from tec.rows_table import rows_table
from tec.session import Step
from tec.summary import summarise
from tec.system import Gpu
from tec.table import write_tables
from tec.tables import capacity_table, overhead_table, parity_table
from tec.verdicts import judge

ROW = "toy"
PLANS: dict[Protocol, Callable[[steps.Steps], list[Step]]] = {
    "prompts": prompts_plan,
    "random": random_plan,
    "parity": parity_plan,
}
ROUTING = RoutingSummary(
    tokens=96,
    overlap_8=0.5,
    overlap_8_uniform=0.25,
    median_reuse=3,
    next_token=0.125,
    next_token_independent=0.1,
    effective_experts=12.5,
)
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
    folder: Path,
    rows: Sequence[str] = (ROW,),
    gpu: bool = False,
    *,
    miniatures: Sequence[str] = (),
    failed: Sequence[str] = (),
    locality: bool = True,
    **changes: Any,
) -> Path:
    """Write tables and records of `rows` into `folder`, as if on a graphics card or without one.

    Args:
        folder: of the study.
        rows: rows in full.
        gpu: whether there was a graphics card.
        miniatures: rows as miniatures: on real prompts only.
        failed: those of both whose model was not to be had.
        locality: whether the full rows have the locality study.
        changes: replace the keys of the study.
    """
    measured = _measured(json.dumps(changes))
    records = [_as(record, row, gpu) for row in rows for record in measured]
    small = [record for record in measured if record.protocol != "random"]
    records += [_as(record, row, gpu, "miniature") for row in miniatures for record in small]
    records = [record for record in records if record.row not in failed]
    for record in records:
        append_record(folder / "runs" / f"{record.row}.{record.protocol}.jsonl", record)
    failures = {row: _failure(row, "full" if row in rows else "miniature") for row in failed}
    for row, failure in failures.items():
        for protocol in ("prompts", "parity"):
            path = folder / "runs" / f"{row}.{protocol}.jsonl"
            write_atomically(path, json.dumps({"failure": failure.model_dump()}) + "\n")
    order = [*rows, *miniatures]
    _write_tables(folder, records, failures, order)
    if locality:
        write_locality(folder, [row for row in rows if row not in failed])
    return folder


def _write_tables(
    folder: Path, records: Sequence[Record], failures: Mapping[str, Failure], order: Sequence[str]
) -> None:
    arms = summarise(record for record in records if record.protocol != "parity")
    parity: dict[str, list[Record]] = {}
    for record in records:
        if record.protocol == "parity":
            parity.setdefault(record.row, []).append(record)
    verdicts = {row: judge(found) for row, found in parity.items()}
    models = {record.row: record.model for record in records}
    tables = (
        main_table(arms, list(failures.values()), order),
        capacity_table(arms),
        overhead_table(arms),
        parity_table(verdicts.get(row) or failures[row] for row in order),
        rows_table(models, verdicts.values(), failures.values(), order),
    )
    write_tables(tables, folder / "tables")


def _failure(row: str, variant: Variant) -> Failure:
    return Failure(row=row, variant=variant, stage="model", what="no space for the file")


def write_model(folder: Path) -> None:
    """Copy what the paper reads about the shipped model."""
    folder.mkdir(parents=True)
    for name in ("corpus-manifest", "evaluation", "hashes", "train"):
        shutil.copy(ROOT / "models" / "pydoc-moe" / f"{name}.json", folder)


@cache
def _measured(changes: str) -> tuple[Record, ...]:
    """Run the fake study with changes, given as JSON; once for each."""
    with tempfile.TemporaryDirectory() as name, apart_in(Path(name)):
        folder = Path(name)
        maker = make_steps(folder, make_study(folder, **json.loads(changes)))
        return tuple(record for protocol in PLANS for record in _measure(folder, maker, protocol))


def _measure(folder: Path, maker: steps.Steps, protocol: Protocol) -> list[Record]:
    make_session(folder, maker, protocol).run(PLANS[protocol](maker), wait=0)
    return read_records(folder / f"{ROW}.{protocol}.jsonl")


def _as(record: Record, row: str, gpu: bool, variant: Variant = "full") -> Record:
    """Return the record as if it were of another row and, with `gpu`, of a graphics card."""
    routing = ROUTING if variant == "miniature" else None
    model = {"row": row, "variant": variant, "routing": routing}
    changes: dict[str, object] = {
        "row": row,
        "model": record.model.model_copy(update=model),
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
