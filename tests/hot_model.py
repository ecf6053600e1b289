"""The policy hot on recorded routing: which experts are in slots, and what that makes of each step.

After every interval the most used experts are chosen for the slots, of equals the one that was
before the other; a use counts half as much with each interval that has passed since. Within half
an interval all that are new are copied, a few with each token, layer by layer, the most used first,
in the places of the least used; what is copied with one token leaves its slot then and can be used
from the next on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Layer:
    """Experts by their claim to a slot; those in slots; uses, and what older ones count."""

    order: list[int]
    resident: set[int]
    uses: dict[int, int] = field(default_factory=dict)
    score: dict[int, int] = field(default_factory=dict)

    def choose(self, n_slots: int) -> list[tuple[int, int]]:
        """Return the experts to copy, each with the one whose place it takes."""
        for expert in self.order:
            self.score[expert] = self.score.get(expert, 0) // 2 + self.uses.get(expert, 0)
        self.uses.clear()
        self.order.sort(key=lambda expert: -self.score[expert])
        new = [expert for expert in self.order[:n_slots] if expert not in self.resident]
        old = [expert for expert in reversed(self.order[n_slots:]) if expert in self.resident]
        return list(zip(new, old, strict=True))


@dataclass(frozen=True)
class Simulated:
    """What a run counts."""

    hits: list[int]
    """Of all layers, by token."""
    copied: list[int]
    """Experts, by layer."""


def simulate(
    selections: NDArray[np.int32], n_expert: int, n_slots: int, interval: int
) -> Simulated:
    """Follow selections [tokens, layers, K] from slots with the experts 0, 1, ... on."""
    n_layers = selections.shape[1]
    layers = [Layer(list(range(n_expert)), set(range(n_slots))) for _ in range(n_layers)]
    chosen: list[tuple[int, int, int]] = []
    started = 0
    under_way: list[tuple[int, int]] = []
    result = Simulated([], [0] * n_layers)
    for token, by_layer in enumerate(selections.tolist()):
        for layer, expert in under_way:
            layers[layer].resident.add(expert)
        if token > 0 and token % interval == 0:
            chosen = [(i, *c) for i, layer in enumerate(layers) for c in layer.choose(n_slots)]
            started = 0
        share = -(-len(chosen) // max(1, interval // 2))
        begun = chosen[started : started + share]
        started += len(begun)
        for layer, _, old in begun:
            layers[layer].resident.remove(old)
            result.copied[layer] += 1
        under_way = [(layer, new) for layer, new, _ in begun]
        result.hits.append(0)
        for state, experts in zip(layers, by_layer, strict=True):
            result.hits[-1] += sum(expert in state.resident for expert in experts)
            for expert in experts:
                state.uses[expert] = state.uses.get(expert, 0) + 1
    return result
