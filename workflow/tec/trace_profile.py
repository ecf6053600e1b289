"""How often routing comes back to an expert: what generated traces are made to match.

A layer's experts, ordered by their last use, form the LRU stack; the places of those that a token
selects, counted from 0, decide the hits of every LRU cache (`tec.locality_kernels`). A profile says
how large a share of the selections lies in the first so many places: the LRU hit rate at that
capacity. Between the given points its complement, the miss rate, falls exponentially.

Places are given as shares of all experts, so that a profile fits other numbers of experts too. The
experts of the token before have the first K places, in no order that means anything: their share,
`next_token`, is spread evenly over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tec.errors import TecError
from tec.nearest import suggestion

Shares = NDArray[np.float64]

VERSION = 1
"""Of the profiles and what follows from them; to be raised when other places are as likely."""


@dataclass(frozen=True)
class Profile:
    """Reuse of one model's routing."""

    n_expert: int
    """Experts and experts per token of the model that it was seen on."""
    top_k: int
    next_token: float
    """Share of the selections that the token before made too."""
    hit_rates: tuple[tuple[float, float], ...]
    """Capacity as a share of all experts -> LRU hit rate; ascending."""
    source: str


PROFILES = {
    "qwen3-30b-a3b": Profile(
        *(128, 8, 0.45),
        ((0.125, 0.65), (0.215, 0.805), (0.40, 0.93), (0.75, 0.985)),
        "Qwen3-30B-A3B: 45 % repeat on the next token, 80 % within 8, median reuse 2 tokens, LRU "
        "hits 90.0-95.3 % with 40 % of the experts; what lies between is interpolated",
    ),
    "qwen3.5-35b-a3b": Profile(
        *(256, 8, 0.50),
        ((0.10, 0.86), (0.25, 0.94), (0.50, 0.975), (0.75, 0.99)),
        "Qwen3.5-35B-A3B: 84 % overlap with the last 8 tokens (published with TEC); the rest is "
        "assumed",
    ),
    "qwen3.8-flash-next": Profile(
        *(512, 10, 0.35),
        ((0.125, 0.67), (0.25, 0.83), (0.50, 0.92), (0.75, 0.97)),
        "Qwen3.8-Flash-Next: LRU hits about 67, 81-85 and 92 % with 64, 128 and 256 of 512 "
        "experts; the repeats on the next token are assumed",
    ),
}
DEFAULT = "qwen3-30b-a3b"


def profile_for(n_expert: int, top_k: int) -> str:
    """Return the name of the profile seen on such a model, or of the default one."""
    fitting = (name for name, p in PROFILES.items() if (p.n_expert, p.top_k) == (n_expert, top_k))
    return next(fitting, DEFAULT)


def load_profile(name: str) -> Profile:
    """Return a profile by its name.

    Raises:
        TecError: there is none.
    """
    if name not in PROFILES:
        raise TecError(f"unknown profile '{name}'", "--profile", suggestion(name, PROFILES))
    return PROFILES[name]


def inclusion(profile: Profile, n_expert: int, top_k: int) -> Shares:
    """Return how likely each place of the stack is selected by a token; the sum is `top_k`.

    Args:
        profile: the reuse that is wanted.
        n_expert: experts per layer.
        top_k: different experts that a token selects.

    Raises:
        TecError: no such numbers of experts.
    """
    if not 1 <= top_k <= n_expert:
        raise TecError(f"{top_k} of {n_expert} experts selected per token make no sense")
    shares = np.diff(_cumulated(profile, n_expert, top_k), prepend=0.0) * top_k
    return _spilled(_spilled(shares)[::-1])[::-1]


def _spilled(shares: Shares) -> Shares:
    """Return the shares with what one has above 1 given to the next.

    A token selects an expert once. Where it selects many of few experts, a profile seen on many can
    ask for more; its hit rates are then met at larger capacities only.
    """
    kept, excess = np.empty_like(shares), 0.0
    for place, share in enumerate(shares):
        kept[place] = min(1.0, share + excess)
        excess += share - kept[place]
    return kept


def _cumulated(profile: Profile, n_expert: int, top_k: int) -> Shares:
    """Return the LRU hit rate with 1, 2, ..., `n_expert` slots."""
    first = max(profile.next_token, top_k / n_expert)
    points: list[tuple[float, float]] = [(top_k, first)]
    for share, rate in profile.hit_rates:
        if share * n_expert > top_k and rate > points[-1][1]:
            points.append((share * n_expert, rate))
    places = np.arange(1, n_expert + 1)
    rates = np.where(places <= top_k, first * places / top_k, 0.0)
    for (begin, low), (end, high) in pairwise(points):
        inside = (places > begin) & (places <= end)
        missed = np.log([1 - low, 1 - high])
        rates[inside] = 1 - np.exp(np.interp(places[inside], [begin, end], missed))
    begin, low = points[-1]
    beyond = places > begin
    rates[beyond] = np.interp(places[beyond], [begin, n_expert], [low, 1.0])
    return rates
