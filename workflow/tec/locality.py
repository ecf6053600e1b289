"""Temporal locality of routing: overlap, reuse distances, and the hits of every capacity.

A step is one token's K selections in a layer; they are needed together. The policies:

    lru     the least recently used goes (TEC as built); within a step later is more recent
    lfu     the one with the fewest uses since the start goes, the less recent of equals
    hot     the slots hold the most used of the last interval, chosen again every interval
    belady  the one whose next use is farthest goes: the most hits there can be

`lru` and `lfu` bring every missed expert into a slot, at the cost of any other that the step does
not need. `hot` and `belady` need not: what misses may be computed elsewhere. Belady's choice
without that freedom (Belady, 1966) would not bound `hot`. With it, it does: whoever holds an expert
from one use to the next occupies a slot all that time, and of such spans, of which no more than C
may overlap, dropping the one that ends last keeps the most. A rebalance of `hot` brings in experts
after their miss, but only ones that were used more often in the interval than those they replace;
holding them from their first use in the interval on gives at least as many hits.

All four start with the experts 0 to C - 1 in slots, and all are stack algorithms, so that one pass
counts the hits of all capacities (`tec.locality_kernels`).

`hot` is after hot-K, the expert cache of ParmesanParty's fork of llama.cpp, of which is known here
that it counts over a rolling window of tokens and rebalances every 60 tokens. In this simulation
both are one interval, the scores are plain counts, and of equals those in slots stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tec import locality_kernels as kernels
from tec.errors import TecError
from tec.routing_summary import RoutingSummary
from tec.routing_trace import RoutingTrace

Policy = Literal["lru", "lfu", "hot", "belady"]

Windows = NDArray[np.int64]
"""Numbers of tokens."""
Shares = NDArray[np.float64]

_Counts = NDArray[np.int64]

POLICIES: tuple[Policy, ...] = get_args(Policy)
WINDOWS: Windows = np.arange(1, 65)
"""The windows of the overlap."""
REBALANCE = 60
"""Tokens between two choices of `hot` (the published setting of hot-K)."""


@dataclass(frozen=True)
class Locality:
    """What a trace says about caching."""

    n_tokens: int
    n_expert: int
    top_k: int
    repeats: _Counts
    """Selections by tokens since the expert's last use [layers, n_tokens]; at 0 the first uses."""
    again: _Counts
    """Selections that are no first use, by the token that makes them [layers, n_tokens]."""
    uses: _Counts
    """Selections of each expert [layers, n_expert]."""
    hits: dict[Policy, _Counts]
    """Hits with 0, 1, ..., n_expert slots [layers, n_expert + 1]."""

    @property
    def n_selections(self) -> int:
        """Tokens x MoE layers x K."""
        return int(self.repeats.sum())

    @property
    def capacities(self) -> range:
        """The capacities that serve a token: K to all experts."""
        return range(self.top_k, self.n_expert + 1)

    def hit_rate(self, policy: Policy, capacity: int) -> float:
        """Return the hits of all layers as a share of the selections."""
        return float(self.hits[policy][:, capacity].sum() / self.n_selections)

    def layer_hit_rates(self, policy: Policy) -> Shares:
        """Return the hit rates [layers, n_expert + 1] with 0, 1, ..., n_expert slots."""
        return self.hits[policy] / (self.n_tokens * self.top_k)

    def layer_overlap(self, windows: Windows = WINDOWS) -> Shares:
        """Return the overlap [layers, windows] with so many last tokens.

        The share of the experts selected at a token that at least one of the W tokens before it
        selected in the same layer, over all tokens that have W tokens before them; not a number
        where none has.
        """
        reached = windows[windows < self.n_tokens]
        within = self.repeats[:, 1:].cumsum(axis=1)[:, reached - 1]
        by_early_tokens = self.again.cumsum(axis=1)[:, reached - 1]
        overlap = np.full((len(self.repeats), len(windows)), np.nan)
        overlap[:, windows < self.n_tokens] = within - by_early_tokens
        return overlap / ((self.n_tokens - windows) * self.top_k)

    def overlap(self, windows: Windows = WINDOWS) -> Shares:
        """Return the overlap [windows] over all layers."""
        overlap: Shares = self.layer_overlap(windows).mean(axis=0)
        return overlap

    def uniform_overlap(self, windows: Windows = WINDOWS) -> Shares:
        """Return the overlap [windows] expected of uniformly random selections.

        An expert is absent from one token's selection with probability 1 - K / N, and from those of
        W independent tokens with (1 - K / N)^W; so the overlap is 1 - (1 - K / N)^W.
        """
        return 1 - np.power(1 - self.top_k / self.n_expert, windows)

    def reuse(self) -> Shares:
        """Return the share of selections [n_tokens] with their last use within 0, 1, ... tokens."""
        counts = self.repeats.sum(axis=0)
        counts[0] = 0
        shares: Shares = counts.cumsum() / self.n_selections
        return shares

    @property
    def next_token_independent(self) -> float:
        """The share of selections that the token before would make too, were tokens independent.

        Where a share p_e of the tokens select expert e in a layer, as counted in the trace, two
        independent ones have on average sum of p_e^2 of their K experts in common. What the trace
        has beyond this share is due to the order of its tokens, not to some experts being wanted
        more often than others. Mean over layers.
        """
        wanted = self.uses / self.n_tokens
        return float((wanted**2).sum(axis=1).mean() / self.top_k)

    @property
    def first_uses(self) -> float:
        """The share of selections whose expert the layer had never used before."""
        return float(self.repeats[:, 0].sum() / self.n_selections)

    @property
    def median_reuse(self) -> int | None:
        """The median distance in tokens, first uses apart; None where no expert is used twice."""
        shares = self.reuse()
        return int(np.searchsorted(shares, shares[-1] / 2)) if shares[-1] > 0 else None


def analyse(trace: RoutingTrace, rebalance: int = REBALANCE) -> Locality:
    """Return overlap, reuse and the hits of all policies at all capacities.

    `hot` chooses its experts again after every `rebalance` tokens.
    """
    shape = (trace.n_tokens, trace.top_k)
    reuse, distances = np.empty(shape, np.int32), np.empty(shape, np.int16)
    repeats = np.zeros((trace.n_layers, trace.n_tokens), np.int64)
    again = np.zeros((trace.n_layers, trace.n_tokens), np.int64)
    uses = np.zeros((trace.n_layers, trace.n_expert), np.int64)
    hits = {p: np.zeros((trace.n_layers, trace.n_expert + 1), np.int64) for p in POLICIES}
    for layer, ids in enumerate(_layers(trace)):
        kernels.reuse(ids, trace.n_expert, reuse)
        repeats[layer] = np.bincount(reuse.ravel(), minlength=trace.n_tokens)
        again[layer] = np.count_nonzero(reuse, axis=1)
        uses[layer] = np.bincount(ids.ravel(), minlength=trace.n_expert)
        for policy in POLICIES:
            _measure(policy, ids, trace.n_expert, rebalance, distances)
            counts = np.bincount(distances.ravel(), minlength=trace.n_expert)
            hits[policy][layer, 1:] = counts.cumsum()
    return Locality(trace.n_tokens, trace.n_expert, trace.top_k, repeats, again, uses, hits)


def stack_distances(
    trace: RoutingTrace, policy: Policy, rebalance: int = REBALANCE
) -> NDArray[np.int16]:
    """Return for every selection the most slots with which it is still a miss.

    Returns:
        Distances [tokens, layers, K]: a hit exactly where the distance is below the capacity.
    """
    distances = np.empty((trace.n_layers, trace.n_tokens, trace.top_k), np.int16)
    for layer, ids in enumerate(_layers(trace)):
        _measure(policy, ids, trace.n_expert, rebalance, distances[layer])
    return distances.transpose(1, 0, 2)


def summarise(trace: RoutingTrace) -> RoutingSummary:
    """Return a trace's statistics for the record of the model that it came from.

    Raises:
        TecError: the trace has no token with 8 tokens before it.
    """
    if trace.n_tokens <= 8:
        raise TecError(
            f"{trace.n_tokens} tokens are too few for the overlap with 8 tokens",
            hint="record a longer trace",
        )
    found = analyse(trace)
    share = found.uses / found.uses.sum(axis=1, keepdims=True)
    entropy = -np.sum(share * np.log(share, where=share > 0, out=np.zeros_like(share)), axis=1)
    return RoutingSummary(
        tokens=trace.n_tokens,
        overlap_8=float(found.overlap()[7]),
        overlap_8_uniform=float(found.uniform_overlap()[7]),
        median_reuse=found.median_reuse,
        next_token=float(found.reuse()[1]),
        next_token_independent=found.next_token_independent,
        effective_experts=max(1.0, float(np.exp(entropy).mean())),
    )


def _layers(trace: RoutingTrace) -> Iterator[kernels.Ids]:
    """Yield the selections of each layer [tokens, K]."""
    for layer in range(trace.n_layers):
        yield np.ascontiguousarray(trace.selections[:, layer], dtype=np.int32)


def _measure(
    policy: Policy, ids: kernels.Ids, n_expert: int, rebalance: int, out: kernels.Distances
) -> None:
    if policy == "lru":
        kernels.lru(ids, n_expert, out)
    elif policy == "lfu":
        kernels.lfu(ids, n_expert, out)
    elif policy == "hot":
        kernels.hot(ids, n_expert, rebalance, out)
    else:
        kernels.belady(ids, n_expert, out)
