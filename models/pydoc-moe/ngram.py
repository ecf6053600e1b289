"""The baseline: an interpolated modified Kneser-Ney 5-gram model over the same tokens.

S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling"
(1999): three discounts per order from the counts of counts, continuation counts below the highest
order, the unigram interpolated with the uniform distribution. Five tokens of 12 bits fill 60 bits
of one integer, so every table is a sorted array and a look-up a binary search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Keys = np.ndarray[Any, np.dtype[np.uint64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
TOKEN_BITS = 12
ORDER = 5
N_VOCAB = 1 << TOKEN_BITS


def packed(tokens: np.ndarray[Any, Any], order: int) -> Keys:
    """Tokens [N] -> the N - order + 1 n-grams, oldest token in the highest bits."""
    count = len(tokens) - order + 1
    keys = np.zeros(count, dtype=np.uint64)
    for offset in range(order):
        keys = (keys << np.uint64(TOKEN_BITS)) | tokens[offset : offset + count].astype(np.uint64)
    return keys


def found(table: Keys, keys: Keys) -> tuple[Counts, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Positions of ``keys`` in a sorted table, and which of them are really there."""
    positions = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return positions, table[positions] == keys


@dataclass(frozen=True)
class Level:
    """One order: its n-grams with (continuation) counts, and its contexts."""

    grams: Keys  # sorted
    counts: Counts
    contexts: Keys  # sorted
    totals: Counts  # sum of counts after each context
    backoff: Floats  # probability mass given to the lower order after each context
    discounts: Floats  # [4], by min(count, 3); [0] is 0

    def refined(self, keys: Keys, lower: Floats) -> Floats:
        """Interpolate the lower order's probabilities [N] of the n-grams ``keys`` [N]."""
        position, known = found(self.contexts, keys >> np.uint64(TOKEN_BITS))
        gram, seen = found(self.grams, keys)
        counts = np.where(seen, self.counts[gram], 0)
        kept = np.maximum(counts - self.discounts[np.minimum(counts, 3)], 0.0)
        mixed = kept / self.totals[position] + self.backoff[position] * lower
        return np.where(known, mixed, lower)


def discounts_of(counts: Counts) -> Floats:
    """Modified Kneser-Ney discounts for counts of 1, 2 and 3 or more -> [0, D1, D2, D3]."""
    n = [int((counts == times).sum()) for times in range(1, 5)]
    if min(n) == 0:
        raise ValueError(f"counts of counts {n}: the text is too short for this order")
    y = n[0] / (n[0] + 2 * n[1])
    return np.array([0.0, *(k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3))])


def level_of(grams: Keys, counts: Counts) -> Level:
    """Build one order from its sorted n-grams and their counts."""
    discounts = discounts_of(counts)
    contexts, starts = np.unique(grams >> np.uint64(TOKEN_BITS), return_index=True)
    totals = np.add.reduceat(counts, starts)
    removed = np.add.reduceat(discounts[np.minimum(counts, 3)], starts)
    return Level(grams, counts, contexts, totals, removed / totals, discounts)


class KneserNey:
    """Interpolated modified Kneser-Ney model of order 5."""

    def __init__(self, tokens: np.ndarray[Any, Any]) -> None:
        """Count tokens [N], each below 4096."""
        grams, counts = np.unique(packed(tokens, ORDER), return_counts=True)
        self.levels: list[Level] = []
        for order in range(ORDER, 0, -1):
            self.levels.insert(0, level_of(grams, counts))
            # continuation counts: how many different tokens precede each shorter n-gram
            mask = np.uint64((1 << (TOKEN_BITS * (order - 1))) - 1)
            grams, counts = np.unique(grams & mask, return_counts=True)

    def log_probabilities(self, tokens: np.ndarray[Any, Any]) -> Floats:
        """Natural log of P(token | the 4 before it) for tokens[4:] -> [N - 4]."""
        keys = packed(tokens, ORDER)
        probability = np.full(len(keys), 1.0 / N_VOCAB)
        for order, level in enumerate(self.levels, start=1):
            mask = np.uint64((1 << (TOKEN_BITS * order)) - 1)
            probability = level.refined(keys & mask, probability)
        logs: Floats = np.log(probability)
        return logs
