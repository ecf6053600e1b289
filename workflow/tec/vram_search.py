"""The most layers that fit into a GPU's memory, found by loading them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

VERSION = 1
"""Of the search, `tec.placement` included; to be raised when it finds other limits or options."""

Loads = Callable[[int], bool]
"""Load so many layers and say whether they fit; called once for each number."""


@dataclass(frozen=True)
class Found:
    """The largest number that fits, and what shows it."""

    value: int | None
    """None if nothing fits."""
    refused: int | None
    """The next number, which was tried and does not fit; None if the value is the highest."""


def most_that_fit(estimate: int, highest: int, loads: Loads) -> Found:
    """Return the largest number from 0 to `highest` that loads, and the next one, which does not.

    The distance from the estimate doubles until a number that loads and one that does not are
    known, which are then brought together. What is returned was tried, both sides of it: where
    loading is not monotone, it is a place at which one more does not load.

    Args:
        estimate: where to begin; a good one takes two loads.
        highest: the largest number there is.
        loads: tries a number.
    """
    fits, refused = -1, highest + 1
    begin = number = min(max(estimate, 0), highest)
    while refused - fits > 1:
        if loads(number):
            fits = number
        else:
            refused = number
        if refused == highest + 1:  # only numbers that load so far
            number = min(fits + max(1, fits - begin), highest)
        elif fits == -1:  # only numbers that do not
            number = max(refused - max(1, begin - refused), 0)
        else:
            number = (fits + refused) // 2
    return Found(value=None if fits < 0 else fits, refused=None if refused > highest else refused)
