"""The locality study of a finished study's folder: traces, and counts by the slow reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routing import local_trace
from tec.calibration_table import FOLDER, write_calibration_table
from tec.files import sha256_file
from tec.locality_table import write_locality_tables
from tec.records import Record, append_record, read_records
from tec.routing_trace import RoutingTrace, write_trace
from unit.test_calibration import write_list
from unit.test_expert_cache_property import Reference

INPUTS = ("text", "random")


def write_locality(folder: Path, rows: Sequence[str]) -> None:
    """Write traces, records and tables of `rows`, whose records of real prompts are there."""
    for row in rows:
        prompts = read_records(folder / "runs" / f"{row}.prompts.jsonl")
        for seed, name in enumerate(INPUTS):
            model = prompts[0].model
            shape = (model.n_moe_layers, model.n_expert, model.n_expert_used)
            trace = local_trace(80, *shape, seed=seed)
            path = folder / "traces" / f"{row}.{name}.npy"
            write_trace(path, trace)
            for record in prompts:
                if record.round == 0 and not record.arm.endswith("-aa"):
                    append_record(
                        folder / "runs" / f"{row}.locality.jsonl",
                        _counted(record, name, trace, path),
                    )
    write_locality_tables(folder, rows)
    for row in rows:
        write_calibration(folder, row)
    write_calibration_table(folder, rows)


def write_calibration(folder: Path, row: str) -> None:
    """Write what calibrating a row leaves: the list, its record, and the routing behind it."""
    model = read_records(folder / "runs" / f"{row}.locality.jsonl")[0].model
    trace = local_trace(120, model.n_moe_layers, model.n_expert, model.n_expert_used, seed=7)
    write_trace(folder / FOLDER / f"{row}.npy", trace)
    write_list(folder / FOLDER / f"{row}.pins.txt", trace, model.sha256)


def _counted(record: Record, name: str, trace: RoutingTrace, path: Path) -> Record:
    """Return a record as if the trace's tokens had been decoded."""
    asked = trace.n_layers * trace.top_k
    hits = [0] * trace.n_tokens
    capacity = record.result["status"].get("capacity")
    if capacity:
        caches = [Reference(trace.n_expert, capacity, []) for _ in range(trace.n_layers)]
        for t, token in enumerate(trace.selections.tolist()):
            for cache, ids in zip(caches, token, strict=True):
                cache.step(ids)
            hits[t] = sum(cache.hits for cache in caches) - sum(hits)
    result: dict[str, Any] = {
        **record.result,
        "hits": sum(hits),
        "misses": asked * trace.n_tokens - sum(hits),
        "prompts": [
            {
                "id": name,
                "tokens": [1] * trace.n_tokens,
                "token_ns": [1] * trace.n_tokens,
                "logits_hash": ["0"] * trace.n_tokens,
                "logits_margin": [1.0] * trace.n_tokens,
                "hits": hits,
                "misses": [asked - n for n in hits],
            }
        ],
    }
    if record.expert_cache == "off":
        result["trace_sha256"] = sha256_file(path)
    return record.model_copy(update={"protocol": "locality", "test": name, "result": result})
