"""How long a use should count for the policy hot: `python benchmarks/hot_memory.py [TRACE ...]`.

The slots hold the experts with the highest scores, chosen again after every interval. Then scores
are multiplied by a factor: 0 is the published policy, which knows the last interval only. What is
chosen is in its slot at once here. Without traces a generated one (profile qwen3-30b-a3b, 128
experts, 8 used) is followed; `tec trace` and `llama-router-trace` record others.

The columns: trace, slots, tokens between choices, factor, hit rate after the first quarter of the
tokens, copies per layer and token.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from tec.routing_trace import RoutingTrace, read_trace
from tec.trace_generator import generate

SHARES = (0.125, 0.25, 0.5, 0.75)
RULES = ((60, 0.0), (16, 0.0), (60, 0.5), (16, 0.5))


def follow(trace: RoutingTrace, n_slots: int, interval: int, factor: float) -> tuple[float, float]:
    """Return the hit rate and the copies per layer and token.

    Args:
        trace: what was selected.
        n_slots: per layer.
        interval: tokens between two choices.
        factor: what is left of a score at each choice.
    """
    selections = trace.selections.astype(np.int64)
    scores = np.zeros((trace.n_layers, trace.n_expert))
    resident = np.zeros_like(scores, dtype=bool)
    resident[:, :n_slots] = True
    hits = np.zeros(trace.n_tokens)
    copies = 0
    for token, selected in enumerate(selections):
        if token > 0 and token % interval == 0:
            claims = scores + 0.1 * resident  # of equals those in slots stay
            chosen = np.argsort(-claims, axis=1, kind="stable")[:, :n_slots]
            before, resident = resident, np.zeros_like(resident)
            np.put_along_axis(resident, chosen, True, axis=1)
            copies += int((resident & ~before).sum())
            scores = np.floor(scores * factor)
        hits[token] = np.take_along_axis(resident, selected, axis=1).mean()
        uses = np.take_along_axis(scores, selected, axis=1)
        np.put_along_axis(scores, selected, uses + 1, axis=1)
    return float(hits[trace.n_tokens // 4 :].mean()), copies / trace.n_layers / trace.n_tokens


def main() -> int:
    """Print a line for each trace, number of slots and rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("traces", nargs="*", type=Path, help=".npy")
    options = parser.parse_args()
    traces = {path.name: read_trace(path) for path in options.traces}
    if not traces:
        traces = {"generated": generate("qwen3-30b-a3b", 512, 48, 128, 8, 1)}
    for name, trace in traces.items():
        for n_slots in [int(share * trace.n_expert) for share in SHARES]:
            for interval, factor in RULES:
                rate, copies = follow(trace, n_slots, interval, factor)
                print(f"{name} {n_slots:4} {interval:3} {factor:.1f} {rate:.3f} {copies:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
