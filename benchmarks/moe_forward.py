"""A `qwen3moe` model in NumPy, to see the hidden states that llama.cpp's tools do not record.

Follows src/models/qwen3moe.cpp and `build_moe_ffn`, in 32-bit floats with dequantised weights.
llama.cpp's CPU back end rounds activations to 8 bits before products with quantised weights and
keeps keys and values in 16 bits: scores differ a little, and near ties between experts fall
differently.

T tokens, L layers, D = n_embd, E = n_expert, K = n_expert_used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class States:
    """What a pass saw of the residual stream, and the routers' logits."""

    before_attention: Floats
    """[T, L, D]"""
    before_moe: Floats
    """[T, L, D], not normed."""
    logits: Floats
    """[T, L, E]"""


class Model:
    """Weights by their name in the file, [out, in] or [E, out, in]."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.weights: dict[str, Floats] = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            for tensor in reader.tensors
        }
        value = {name: field.contents() for name, field in reader.fields.items()}
        arch = "qwen3moe"
        self.n_layer = int(value[f"{arch}.block_count"])
        self.n_expert = int(value[f"{arch}.expert_count"])
        self.top_k = int(value[f"{arch}.expert_used_count"])
        self.n_ctx = int(value[f"{arch}.context_length"])
        self._head = int(value[f"{arch}.attention.key_length"])
        self._eps = float(value[f"{arch}.attention.layer_norm_rms_epsilon"])
        self._base = float(value[f"{arch}.rope.freq_base"])

    def run(self, tokens: NDArray[np.int64]) -> States:
        """Return the states of one context [T]."""
        x = self.weights["token_embd.weight"][tokens]
        before_attention, before_moe, logits = [], [], []
        for layer in range(self.n_layer):
            before_attention.append(x)
            x = x + self._attention(x, layer)
            before_moe.append(x)
            logits.append(self.router(x, layer))
            x = x + self._experts(x, logits[-1], layer)
        return States(np.stack(before_attention, 1), np.stack(before_moe, 1), np.stack(logits, 1))

    def router(self, x: Floats, layer: int) -> Floats:
        """Return the logits [..., E] of a layer's norm and router for residuals x [..., D]."""
        normed = self._normed(x, f"blk.{layer}.ffn_norm")
        return normed @ self._weight(layer, "ffn_gate_inp").T

    def _weight(self, layer: int, name: str) -> Floats:
        return self.weights[f"blk.{layer}.{name}.weight"]

    def _normed(self, x: Floats, name: str) -> Floats:
        scale = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + self._eps)
        result: Floats = x * scale * self.weights[f"{name}.weight"]
        return result

    def _attention(self, x: Floats, layer: int) -> Floats:
        """Causal attention with NEOX rotation and grouped heads, [T, D] -> [T, D]."""
        normed = self._normed(x, f"blk.{layer}.attn_norm")
        heads = {
            name: (normed @ self._weight(layer, f"attn_{name}").T).reshape(len(x), -1, self._head)
            for name in "qkv"
        }
        q, k = (
            self._rotated(self._normed(heads[name], f"blk.{layer}.attn_{name}_norm"))
            for name in "qk"
        )
        group = q.shape[1] // k.shape[1]
        k, v = (np.repeat(part, group, 1) for part in (k, heads["v"]))
        scores = np.einsum("ihd,jhd->hij", q, k, optimize=True) / np.sqrt(np.float32(self._head))
        scores[:, np.triu(np.ones(scores.shape[1:], np.bool_), 1)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", shares, v, optimize=True).reshape(len(x), -1)
        result: Floats = mixed @ self._weight(layer, "attn_output").T
        return result

    def _rotated(self, x: Floats) -> Floats:
        half = self._head // 2
        rates = self._base ** -(np.arange(half) / half)
        angles = np.outer(np.arange(len(x)), rates)[:, None]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), -1)

    def _experts(self, x: Floats, logits: Floats, layer: int) -> Floats:
        """Sum of the K experts, weighted by the softmax over their logits, [T, D] -> [T, D]."""
        normed = self._normed(x, f"blk.{layer}.ffn_norm")
        chosen = ranked(logits, self.top_k)
        best = np.take_along_axis(logits, chosen, -1)
        shares = np.exp(best - best.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        gate, up, down = (self._weight(layer, f"ffn_{n}_exps") for n in ("gate", "up", "down"))
        total = np.zeros_like(x)
        for expert in range(self.n_expert):
            rows, places = np.nonzero(chosen == expert)
            gated = normed[rows] @ gate[expert].T
            hidden = gated / (1 + np.exp(-gated)) * (normed[rows] @ up[expert].T)
            total[rows] += shares[rows, places, None] * (hidden @ down[expert].T)
        return total


def ranked(scores: Floats, count: int) -> Ids:
    """Return the `count` ids with the highest scores [..., count], highest first."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count].astype(np.int32)
