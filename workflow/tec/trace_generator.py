"""Routing traces that are drawn: reuse as in trained models, without a model.

Each layer is drawn on its own. Its experts lie on an LRU stack; a token takes K different places of
it, each as often as the profile says (`tec.trace_profile`), and moves what it took to the top. So
the LRU hit rate of every capacity is the profile's, up to chance and the first uses. Which experts
are popular drifts as the stack turns over; there are no experts that stay popular for ever, as
little as in the trained model of which a fixed choice of the most used covered hardly more than
chance on other text.

K different places with given inclusion probabilities come from systematic sampling in random order
(Madow, 1949): the places are laid end to end in random order, each as long as its probability, and
those are taken in which u, u + 1, ..., u + K - 1 fall, u being uniform in [0, 1).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tec.errors import TecError
from tec.files import write_atomically
from tec.routing_trace import MAX_EXPERTS, RoutingTrace, write_trace
from tec.trace_profile import PROFILES, Shares, inclusion, load_profile, profile_for
from tec.trace_statistics import statistics

Stacks = NDArray[np.int32]
"""Experts by their last use, the latest first [layers, n_expert]."""

VERSION = 1
"""Of the way traces are drawn; to be raised when the same arguments give another trace."""

_DEFAULT_TOKENS = 1024


def generate(
    profile: str, n_tokens: int, n_layers: int, n_expert: int, top_k: int, seed: int
) -> RoutingTrace:
    """Return a trace that is drawn; the same arguments give the same trace.

    Args:
        profile: the reuse it has, by its name in `tec.trace_profile.PROFILES`.
        n_tokens: tokens.
        n_layers: MoE layers.
        n_expert: experts per layer.
        top_k: experts that a token selects in a layer.
        seed: of the random numbers.

    Raises:
        TecError: a number that makes no sense, or no such profile.
    """
    for name, number in (("tokens", n_tokens), ("layers", n_layers), ("seed + 1", seed + 1)):
        if number < 1:
            raise TecError(f"{name}: {number} is no number from 1")
    if n_expert > MAX_EXPERTS:
        raise TecError(f"a trace has at most {MAX_EXPERTS} experts per layer, not {n_expert}")
    shares = inclusion(load_profile(profile), n_expert, top_k)
    rng = np.random.default_rng(seed)
    stacks = np.argsort(rng.random((n_layers, n_expert)), axis=1).astype(np.int32)
    selections = np.empty((n_tokens, n_layers, top_k), np.int32)
    for token in range(n_tokens):
        taken = _take(rng, shares, n_layers, top_k)
        selections[token] = np.take_along_axis(stacks, taken, axis=1)
        stacks = _move_to_top(stacks, taken)
    return RoutingTrace(selections, n_expert)


def _take(rng: np.random.Generator, shares: Shares, n_layers: int, top_k: int) -> NDArray[np.intp]:
    """Return the places that a token takes [layers, K], in random order."""
    order = np.argsort(rng.random((n_layers, len(shares))), axis=1)
    ends = shares[order].cumsum(axis=1)
    ends[:, -1] = top_k  # exactly, so that K places are taken whatever the rounding
    passed = np.floor(ends + rng.random((n_layers, 1))).astype(np.int64)
    taken = np.diff(passed, axis=1, prepend=0) > 0
    return order[taken].reshape(n_layers, top_k)


def _move_to_top(stacks: Stacks, taken: NDArray[np.intp]) -> Stacks:
    """Return the stacks after a token; of its experts the last one counts as the latest."""
    left = np.ones(stacks.shape, np.bool_)
    np.put_along_axis(left, taken, values=False, axis=1)
    rest = stacks[left].reshape(len(stacks), -1)
    latest = np.take_along_axis(stacks, taken, axis=1)[:, ::-1]
    return np.concatenate([latest, rest], axis=1)


def statistics_file(path: Path) -> Path:
    """Return where the statistics of the generated trace at `path` are."""
    return path.with_suffix(".json")


def register(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec trace generate`."""
    parser = actions.add_parser("generate", help="draw a trace with the reuse of trained models")
    parser.add_argument("--row", help="take layers, experts and K from the row's shape")
    parser.add_argument("--layers", type=int, help="MoE layers (default: the row's)")
    parser.add_argument("--experts", type=int, help="experts per layer")
    parser.add_argument("--used", type=int, metavar="K", help="experts a token selects in a layer")
    parser.add_argument("--tokens", type=int, default=_DEFAULT_TOKENS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--profile", help=f"{', '.join(PROFILES)} (default: the one of such a model)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help=".npy; .json goes beside it")
    parser.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    if options.out.suffix != ".npy":
        raise TecError("a routing trace is a .npy file", options.out, "name it FILE.npy")
    n_layers, n_expert, top_k = _shape(options)
    profile = options.profile or profile_for(n_expert, top_k)
    trace = generate(profile, options.tokens, n_layers, n_expert, top_k, options.seed)
    found = statistics(trace)
    record = {
        "trace": options.out.name,
        "generator": {"profile": profile, "source": PROFILES[profile].source, "seed": options.seed},
        "numpy": np.__version__,
        **found,
    }
    write_trace(options.out, trace)
    write_atomically(statistics_file(options.out), json.dumps(record, indent=2) + "\n")
    print(
        f"{options.out}: {options.tokens} tokens, {n_layers} layers, {top_k} of {n_expert} "
        "experts; "
        f"{found['next_token']:.1%} repeat on the next token, {found['overlap_8']:.1%} within 8"
    )


def _shape(options: argparse.Namespace) -> tuple[int, int, int]:
    """Return layers, experts and experts per token."""
    row = _of_row(options.row) if options.row else (None, None, None)
    given = (options.layers, options.experts, options.used)
    n_layers, n_expert, top_k = (b if a is None else a for a, b in zip(given, row, strict=True))
    if n_layers is None or n_expert is None or top_k is None:
        raise TecError(
            "how many layers and experts the trace has is not given",
            hint="add --row ROW, or --layers, --experts and --used",
        )
    return n_layers, n_expert, top_k


def _of_row(name: str) -> tuple[int, int, int]:
    from tec.config import load_row  # the only part that reads configuration

    shape = load_row(name).shape
    if shape is None:
        raise TecError(f"row {name} has no shape", hint="give --layers, --experts, --used")
    return shape.n_moe_layers, shape.n_expert, shape.n_expert_used
