"""The order in which the arms of a measurement run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def interleaved(arms: Sequence[str], rounds: int, seed: str) -> Iterator[tuple[int, str]]:
    """Yield (round, arm): every round has every arm once, in an order rotated from round to round.

    Args:
        arms: names of the arms.
        rounds: how often each arm runs.
        seed: decides the order of round 0; equal seeds give equal orders.
    """
    order = sorted(arms)
    random.Random(seed).shuffle(order)  # noqa: S311 (an order, not a secret)
    for number in range(rounds):
        turn = number % len(order)
        for arm in order[turn:] + order[:turn]:
            yield number, arm
