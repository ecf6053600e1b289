"""How many background copies the policy hybrid needs: `python benchmarks/background_copies.py`.

A miss that the CPU computes leaves the slots as they are, unless its expert is copied too, for the
steps to come. This follows an LRU cache over a generated trace (profile qwen3-30b-a3b, 128 experts,
8 used) in which at most so many of a layer's misses of a step get a slot, those first that the
router weighs most. One slot holds zeros.

The columns: slots, copies at most, hit rate, misses and copies per layer and token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tec.trace_generator import generate

N_EXPERT, TOP_K = 128, 8
SLOTS = (16, 32, 64, 96)
MOST = (1, 2, 3, TOP_K)


def follow(layer: Sequence[Sequence[int]], n_slots: int, most: int) -> tuple[int, int]:
    """Return the misses and the copies of one layer's selections [tokens, K]."""
    recent = list(range(n_slots))  # the least recently used first
    n_misses = n_copies = 0
    for selected in layer:
        misses = [expert for expert in selected if expert not in recent]
        for expert in selected:
            if expert in recent:
                recent.append(recent.pop(recent.index(expert)))
        copied = misses[:most]
        recent = [*recent[len(copied) :], *copied]
        n_misses += len(misses)
        n_copies += len(copied)
    return n_misses, n_copies


def main() -> int:
    """Print a line for each number of slots and of copies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    arguments = (options.tokens, options.layers, N_EXPERT, TOP_K, 1)
    trace = generate("qwen3-30b-a3b", *arguments).selections
    steps = options.tokens * options.layers
    for n_slots in SLOTS:
        for most in MOST:
            layers = trace.transpose(1, 0, 2).tolist()
            counts = [follow(layer, n_slots - 1, most) for layer in layers]
            misses, copies = (sum(part) / steps for part in zip(*counts, strict=True))
            print(f"{n_slots:4} {most:2} {1 - misses / TOP_K:.3f} {misses:.2f} {copies:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
