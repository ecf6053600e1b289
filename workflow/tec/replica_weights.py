"""Generated weights of replicas: the roles of miniatures, drawn in the form they are stored in.

A matrix is drawn in pieces, each from a seed of its own, so that any number of threads makes the
same file and no two experts have bytes in common. What stays float32 (norms, biases, routers and
the like) is drawn as in miniatures (`tec.miniature_weights`).

Token embeddings are plain noise here, without the groups that make a miniature's routing uneven:
the routing of a replica is given by a trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from tec.miniature_weights import EMBEDDINGS, TIED, generate, matrix_gain, stored_as
from tec.replica_blocks import Raw
from tec.replica_plan import Weights

VERSION = 1
"""Of the files that are made of plans: header, blocks and weights; to be raised when a plan gives
other bytes (tests/unit/test_versions.py)."""

PIECE = 2**20
"""Bytes that are drawn from one seed, about. They stay in a core's cache while they are made."""


def deviation(tensor: Weights, tied: bool) -> float:
    """Return the standard deviation of a matrix's weights.

    A gain of 1 keeps the scale of what is multiplied: each output is a sum of `fan_in` products.
    """
    if tensor.name == EMBEDDINGS:
        return float(TIED * tensor.fan_in**-0.5) if tied else 1.0
    return float(matrix_gain(tensor) * tensor.fan_in**-0.5)


def is_small(tensor: Weights) -> bool:
    """Say whether a tensor keeps 32 bits and is drawn whole."""
    return stored_as(tensor) == np.float32


def pieces(tensor: Weights) -> Iterator[tuple[int, int]]:
    """Yield where each piece of a tensor begins and how many bytes it has."""
    total, size = tensor.n_bytes, tensor.blocks.size
    step = total if is_small(tensor) else max(1, PIECE // size) * size
    for begin in range(0, total, step):
        yield begin, min(step, total - begin)


def draw(tensor: Weights, begin: int, n_bytes: int, seed: int, tied: bool) -> memoryview:
    """Return one of a tensor's pieces.

    Args:
        tensor: the tensor.
        begin: where the piece begins in it, in bytes.
        n_bytes: how long it is.
        seed: the replica's.
        tied: the token embeddings are also the output matrix.
    """
    if is_small(tensor):
        return generate(tensor, seed).astype("<f4").ravel().view(np.uint8).data
    digest = hashlib.sha256(f"{seed} {tensor.name} {begin}".encode()).digest()
    rng = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "big")))
    words = rng.integers(2**64, size=-(-n_bytes // 8), dtype=np.uint64)
    raw: Raw = words.view(np.uint8)[:n_bytes]
    tensor.blocks.fill(raw, deviation(tensor, tied))
    return raw.data
