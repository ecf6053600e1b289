"""Traces for tests: drawn by hypothesis, and one with locality."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tec.routing_trace import RoutingTrace


@st.composite
def traces(
    draw: st.DrawFn, n_expert: int = 9, tokens: int = 40, top_k: int = 3, layers: int = 2
) -> RoutingTrace:
    """Draw traces up to the given sizes; some experts are drawn more often than others."""
    experts = draw(st.integers(1, n_expert))
    k = draw(st.integers(1, min(top_k, experts)))
    favourite = st.integers(0, max(0, experts // 3))
    expert = st.one_of(favourite, st.integers(0, experts - 1))
    token = st.lists(expert, min_size=k, max_size=k, unique=True)
    n_layers = draw(st.integers(1, layers))
    step = st.lists(token, min_size=n_layers, max_size=n_layers)
    steps = draw(st.lists(step, min_size=1, max_size=tokens))
    return RoutingTrace(np.array(steps, dtype=np.int32), experts)


def local_trace(
    tokens: int = 200, layers: int = 3, n_expert: int = 16, top_k: int = 4, seed: int = 1
) -> RoutingTrace:
    """Return a trace of which neighbouring tokens like the same experts."""
    random = np.random.default_rng(seed)
    liking = np.repeat(random.gumbel(size=(tokens // 10 + 1, layers, n_expert)), 10, axis=0)
    scores = 2 * liking[:tokens] + random.gumbel(size=(tokens, layers, n_expert))
    selections = np.argsort(-scores, axis=2)[:, :, :top_k]
    return RoutingTrace(selections.astype(np.int32), n_expert)
