"""From recorded routing to the experts to pin, and how far to trust the choice.

A layer's experts are ranked by the number of tokens that select them, equals by lower id, as the
published tool does; so the same routing gives the same list. Two questions decide whether a list
is worth anything, and `stability` answers both with the same measure, the share of the P most used
experts that two parts of the recording agree on:

    alternate   every other token against the rest: the same text twice. What is missing to 1 is
                noise, and more tokens of the same text reduce it.
    halves      the first half against the second: another subject. What is missing beyond the
                noise is change of subject, and no length of the same text helps against it.

How many tokens are enough, from 22,628 tokens of held-out text through pydoc-moe (64 experts,
top-8; mean of 20 windows; P = 24, where chance gives 0.38):

    selections per expert     4     8    16    32    64   128   256   512
    alternate               0.66  0.69  0.76  0.82  0.86  0.87  0.91  0.93
    halves                  0.56  0.61  0.65  0.73  0.71  0.66  0.68  0.65

From 32 selections per expert on the subject matters more than the noise. That is T K / N >= 32:
256 tokens of that model, 512 of one with 128 experts and top-8, 1640 with 512 and top-10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tec.errors import TecError
from tec.pin_list import PinList, most_used
from tec.routing_trace import RoutingTrace

ENOUGH = 32
"""Selections per expert from which on more of the same text changes little (see above)."""
FEWEST = 8
"""Selections per expert below which the choice is mostly noise."""
DEFAULT_SHARE = 3 / 8
"""Of all experts, that are pinned where nobody says how many: half of the published default
capacity, which is 3/4."""

Counts = NDArray[np.int64]
"""Selections of each expert [MoE layers, n_expert]."""


@dataclass(frozen=True)
class Stability:
    """How far parts of a recording agree on the most used experts, mean over layers."""

    slots: int
    """P, the number of most used experts that are compared."""
    alternate: float
    halves: float
    chance: float
    """What unrelated choices would agree on: P / N."""


def count_uses(trace: RoutingTrace) -> Counts:
    """Return how many tokens select each expert of each layer."""
    layers = np.arange(trace.n_layers)[:, None] * trace.n_expert
    flat = (trace.selections + layers).ravel()
    counts = np.bincount(flat, minlength=trace.n_layers * trace.n_expert)
    return counts.reshape(trace.n_layers, trace.n_expert).astype(np.int64)


def selections_per_expert(trace: RoutingTrace) -> float:
    """Return the mean number of tokens that select an expert of a layer: T K / N."""
    return trace.n_tokens * trace.top_k / trace.n_expert


def stability(trace: RoutingTrace, slots: int) -> Stability:
    """Return how far parts of a trace of at least two tokens agree on the `slots` most used."""
    middle = trace.n_tokens // 2
    return Stability(
        slots=slots,
        alternate=_agreement(trace, np.s_[::2], np.s_[1::2], slots),
        halves=_agreement(trace, np.s_[:middle], np.s_[middle:], slots),
        chance=slots / trace.n_expert,
    )


def choose_pins(
    trace: RoutingTrace, layers: tuple[int, ...], n_layer: int, limit: int | None = None
) -> PinList:
    """Return the experts of each layer by their uses, the unused left out.

    Args:
        trace: the routing that the choice is made from.
        layers: the model layer of each of its layers.
        n_layer: layers of the model.
        limit: the most experts of a layer; None for all.
    """
    pins = most_used(trace, layers, n_layer)
    return PinList(pins.n_expert, tuple(experts[:limit] for experts in pins.layers))


def check_length(trace: RoutingTrace) -> str | None:
    """Say so if a trace is short for a choice of pins.

    Returns:
        A warning, or None.

    Raises:
        TecError: it is too short for any choice.
    """
    found = selections_per_expert(trace)
    if found >= ENOUGH:
        return None
    least, enough = (tokens_for(trace, wanted) for wanted in (FEWEST, ENOUGH))
    what = (
        f"the prompt is short: its {trace.n_tokens} tokens select each of {trace.n_expert} experts "
        f"{found:.1f} times on average"
    )
    if found < FEWEST:
        raise TecError(
            what.replace("short", "too short", 1),
            hint=f"take {enough} tokens or more ({least} are the least)",
        )
    return f"{what}; {enough} tokens leave less to chance"


def tokens_for(trace: RoutingTrace, wanted: int) -> int:
    """Return the tokens with which an expert is selected `wanted` times on average."""
    return -(-wanted * trace.n_expert // trace.top_k)


def _agreement(trace: RoutingTrace, one: slice, other: slice, slots: int) -> float:
    first, second = (
        _among(count_uses(RoutingTrace(trace.selections[part], trace.n_expert)), slots)
        for part in (one, other)
    )
    return float((first & second).sum(axis=1).mean() / slots)


def _among(uses: Counts, slots: int) -> NDArray[np.bool_]:
    """Mark the `slots` most used experts of each layer; a layer may have used fewer."""
    order = np.argsort(-uses, axis=1, kind="stable")
    chosen = np.zeros(uses.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order[:, :slots], True, axis=1)
    return chosen & (uses > 0)
