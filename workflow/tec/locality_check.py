"""The hits that the programs counted against those that the trace predicts.

The binary's policy is LRU without pins; a prediction at every token and capacity that holds exactly
says that the cache evicts what it is said to evict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.files import sha256_file
from tec.gguf_file import ModelInfo
from tec.locality import stack_distances
from tec.records import Record
from tec.routing_trace import RoutingTrace, read_trace


@dataclass(frozen=True)
class CheckedInput:
    """One input of a row: its trace, and the hits counted on it, which the trace predicts."""

    model: ModelInfo
    trace: RoutingTrace
    counted: Mapping[int, float]
    """Capacity -> hit rate of LRU as counted."""


def check_input(path: Path, name: str, records: Sequence[Record], hint: str) -> CheckedInput:
    """Read an input's trace and check the counts on it.

    Args:
        path: the trace.
        name: of the input: text, repetitive, random.
        records: of the row, of this input and others.
        hint: what to do where trace and records do not belong together.

    Raises:
        TecError: the trace is not that of its record, or the counted hits are not those predicted;
            names row, input, capacity and token.
    """
    records = [record for record in records if record.test == name]
    reference = next((record for record in records if "trace_sha256" in record.result), None)
    if reference is None:
        raise TecError(
            f"no record of the process that wrote the trace of the input '{name}'", path, hint
        )
    trace = _read_trace(path, reference, hint)
    return CheckedInput(reference.model, trace, check_counts(trace, records))


def _read_trace(path: Path, record: Record, hint: str) -> RoutingTrace:
    """Read the trace that the record's process wrote."""
    model = record.model
    trace = read_trace(path, model.n_expert)
    if sha256_file(path) != record.result["trace_sha256"]:
        raise TecError("the trace is not the one of the record", path, hint)
    if (trace.n_layers, trace.top_k) != (model.n_moe_layers, model.n_expert_used):
        raise TecError(
            f"the trace has {trace.n_layers} layers and {trace.top_k} experts per token, the model "
            f"{model.n_moe_layers} and {model.n_expert_used}",
            path,
        )
    return trace


def check_counts(trace: RoutingTrace, records: Iterable[Record]) -> dict[int, float]:
    """Return the counted hit rate by capacity, if each equals the prediction token by token.

    Raises:
        TecError: it does not; names row, input, capacity and the first token that differs.
    """
    distances = stack_distances(trace, "lru")
    counted: dict[int, float] = {}
    for record in records:
        bench = ExpertBench.model_validate(record.result)
        capacity = bench.capacity
        if capacity is None:
            continue
        predicted = (distances < capacity).sum(axis=(1, 2))
        found = np.array([hits for prompt in bench.prompts for hits in prompt.hits])
        where = f"{record.row}, input {record.test}, C = {capacity}"
        if len(found) != trace.n_tokens:
            raise TecError(f"counted over {len(found)} of {trace.n_tokens} tokens", where)
        if (found != predicted).any():
            token = int(np.argmax(found != predicted))
            raise TecError(
                f"at token {token} the trace predicts {predicted[token]} LRU hits, the program "
                f"counted {found[token]}",
                where,
                "the cache or its model is wrong; neither's hit rates can be trusted",
            )
        if (bench.hits, bench.hits + bench.misses) != (predicted.sum(), trace.selections.size):
            raise TecError(
                f"the trace predicts {predicted.sum()} LRU hits of {trace.selections.size}, the "
                f"program counted {bench.hits} of {bench.hits + bench.misses}",
                where,
            )
        counted[capacity] = bench.hits / trace.selections.size
    return counted
