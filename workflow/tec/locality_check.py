"""The hits that the programs counted against those that the trace predicts.

The binary's policy is LRU without pins; a prediction at every token and capacity that holds exactly
says that the cache evicts what it is said to evict.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.locality import stack_distances
from tec.records import Record
from tec.routing_trace import RoutingTrace


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
