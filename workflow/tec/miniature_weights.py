"""Generated weights of miniatures: one distribution for each role a tensor can have.

A tensor's name, which llama.cpp gives, tells its role; shapes are ggml's, fastest dimension first.
Weight matrices keep the scale of what they multiply, so that no architecture needs numbers of its
own. What makes routing reuse experts is in the embeddings: they make some experts more popular than
others, and give tokens that follow each other in text experts in common (`tec.miniature_groups`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Groups = npt.NDArray[np.int64]
"""The group of every token of the vocabulary."""

EMBEDDINGS = "token_embd.weight"

# Of an embedding's variance, what all tokens share, what a group of tokens shares, and the rest.
# The first makes routing skewed: some experts are wanted by most tokens. The second makes it last:
# tokens of a group have experts in common, and neighbours in a text are often of one group. The
# more the first has, the more of the reuse is independent of what was said before.
_ALL = 0.1
_GROUP = 0.8
_OWN = 1 - _ALL - _GROUP

TIED = 0.25
"""Size of embeddings that are the output matrix as well: small, or each token predicts itself."""

_GAINS = (
    (r"^output\.weight$", 3.0),
    (r"attn_output|ssm_out", 0.7),
    (r"ffn_down", 2.0),
)
"""Pattern -> gain of a matrix, else 1. Attention and recurrence add less than what they read, or
their averages over the context would be all that routers see; experts add more."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that a model has."""

    name: str
    shape: tuple[int, ...]
    """Fastest dimension first."""

    @property
    def fan_in(self) -> int:
        """Return how many numbers are summed for one output."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)


def stored_as(tensor: Tensor) -> np.dtype[Any]:
    """Return the type before quantisation: what the quantiser leaves alone keeps 32 bits."""
    return np.dtype(np.float16) if _distribution(tensor) is None else np.dtype(np.float32)


def generate(tensor: Tensor, seed: int) -> Array:
    """Return the weights of a tensor other than the embeddings, of the type `stored_as` says.

    Args:
        tensor: name and shape.
        seed: the row's; the same seed and tensor give the same numbers.

    Returns:
        C order, so the shape is reversed: slowest dimension first.
    """
    rng = _random(tensor, seed)
    distribution = _distribution(tensor)
    if distribution is None:
        return _matrix(rng, tensor)
    values = np.asarray(distribution(rng, tensor), dtype=np.float32)
    return values.reshape(tensor.shape[::-1])


def embed(tensor: Tensor, seed: int, groups: Groups, tied: bool) -> Array:
    """Return token embeddings whose parts have the shares of variance above.

    Args:
        tensor: name and shape.
        seed: the row's.
        groups: the group of every token [n_tokens].
        tied: the token embeddings are also the output matrix.

    Returns:
        As `generate`: [n_tokens, width].
    """
    rng = _random(tensor, seed)
    width, n_tokens = tensor.shape
    gain = TIED if tied else width**0.5
    everyone = rng.standard_normal(width, dtype=np.float32)
    directions = rng.standard_normal((groups.max() + 1, width), dtype=np.float32)
    own = rng.standard_normal((n_tokens, width), dtype=np.float32)
    mixed = _ALL**0.5 * everyone + _GROUP**0.5 * directions[groups] + _OWN**0.5 * own
    return np.asarray(mixed * (gain * width**-0.5), dtype=np.float16)


def _random(tensor: Tensor, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed} {tensor.name}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "big")))


def matrix_gain(tensor: Tensor) -> float:
    """Return what a matrix multiplies the size of its input by; a gain of 1 keeps it."""
    return next((gain for pattern, gain in _GAINS if re.search(pattern, tensor.name)), 1.0)


def _matrix(rng: np.random.Generator, tensor: Tensor) -> Array:
    """Return uniform numbers of variance gain^2 / fan-in, as fast as random bits come."""
    bits = rng.integers(-(2**15), 2**15, size=tensor.size, dtype=np.int16)
    scale = np.float32(matrix_gain(tensor) * (3.0 / tensor.fan_in) ** 0.5 / 2**15)
    return np.asarray(bits * scale, dtype=np.float16).reshape(tensor.shape[::-1])


Distribution = Callable[[np.random.Generator, Tensor], npt.NDArray[np.float64]]


def _normal(mean: float, deviation: float) -> Distribution:
    return lambda rng, tensor: rng.normal(mean, deviation, tensor.size)


def _router(rng: np.random.Generator, tensor: Tensor) -> npt.NDArray[np.float64]:
    return rng.normal(0, 1.5 * tensor.fan_in**-0.5, tensor.size)


def _router_scale(rng: np.random.Generator, tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return the scale of a router's input, which the graph divides by the root of its width."""
    return rng.normal(1, 0.1, tensor.fan_in) * math.sqrt(tensor.fan_in)


def _decay(rng: np.random.Generator, tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return A, as converters store it: -exp(A_log), with A_log from Mamba's initialisation."""
    return -rng.uniform(1, 16, tensor.size)


def _time_step(rng: np.random.Generator, tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return biases whose softplus is log-uniform in [0.001, 0.1], as Mamba initialises them."""
    step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), tensor.fan_in))
    return np.asarray(step + np.log(-np.expm1(-step)))


def _partial_rotation(_: np.random.Generator, tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return frequency divisors: the first quarter rotates, the others hardly ever do."""
    divisors = np.full(tensor.fan_in, 1e30)
    divisors[: tensor.fan_in // 4] = 1.0
    return divisors


_SMALL: tuple[tuple[str, Distribution], ...] = (
    (r"^rope_freqs\.weight$", _partial_rotation),
    (r"\.ssm_a$", _decay),
    (r"\.ssm_dt\.bias$", _time_step),
    (r"\.ssm_d$", _normal(1, 0.1)),
    (r"\.ssm_conv1d\.weight$", _normal(0, 0.5)),
    (r"\.ffn_gate_inp\.scale$", _router_scale),
    (r"\.ffn_gate_inp(_shexp)?\.weight$", _router),
    # Small beside the scores of the experts selected, or the bias alone would select.
    (r"\.exp_probs_b\.bias$", _normal(0, 0.01)),
    (r"\.attn_sinks\.weight$", _normal(0, 1)),
    (r"(norm[\w]*\.weight|\.scale|layer_output_scale\.weight)$", _normal(1, 0.1)),
    (r"\.bias$", _normal(0, 0.1)),
)
"""Pattern -> distribution of what stays float32; the first that is found counts."""


def _distribution(tensor: Tensor) -> Distribution | None:
    """Return how a tensor that is never quantised is drawn; None for the others."""
    return next((drawn for pattern, drawn in _SMALL if re.search(pattern, tensor.name)), None)
