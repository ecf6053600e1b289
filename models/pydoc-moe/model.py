"""The torch model: llama.cpp's ``qwen3moe`` graph, with IQ4_NL fake quantisation.

Every operation follows src/models/qwen3moe.cpp and ``build_moe_ffn``: RMSNorm, per-head q and k
norm, NEOX rotary embedding, grouped-query attention, softmax router, top-K weights renormalised
to sum 1, SwiGLU experts, output tied to the token embedding.

Shapes use T tokens, D = n_embd, E = n_expert, K = n_expert_used, F = n_ff_exp, R = padded rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

ROW_ALIGN = 8  # rows of one expert start at a multiple of 16 bytes in bf16
BLOCK = 32  # weights per IQ4_NL block
IQ4_NL_VALUES = (  # kvalues_iq4nl of ggml-common.h
    *(-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0),
    *(1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0),
)


@dataclass(frozen=True)
class Geometry:
    """The model's shape; field names follow GGUF's keys."""

    n_layer: int = 8
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 1
    head_dim: int = 64
    n_expert: int = 64
    n_expert_used: int = 8
    n_ff_exp: int = 64
    n_vocab: int = 4096
    n_ctx: int = 1024
    rope_freq_base: float = 10000.0
    rms_eps: float = 1e-6


class Rounding(NamedTuple):
    """How far weights are moved to their IQ4_NL value."""

    share: Tensor  # scalar, 0 (not at all) to 1 (exactly)
    values: Tensor  # [16] IQ4_NL_VALUES on the weights' device


class Routing(NamedTuple):
    """Router statistics of one layer over one batch."""

    load: Tensor  # [E] share of (token, expert) selections, sums to 1
    balance_loss: Tensor  # scalar, 1 when load is uniform
    z_loss: Tensor  # scalar


def iq4_nl_codes(weight: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """IQ4_NL blocks along the last axis -> codes [N, 32] (indices into IQ4_NL_VALUES), scales [N].

    The largest weight of a block becomes -127; scales are exactly representable in float16.
    Plainer than ggml's search over scales, because training sees these very values.
    """
    blocks = weight.reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = (largest / IQ4_NL_VALUES[0]).half().float()
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    codes = torch.bucketize(blocks * inverse, (values[1:] + values[:-1]) / 2)
    return codes, scale[:, 0]


def iq4_nl_round_trip(weight: Tensor, values: Tensor) -> Tensor:
    """Quantise to IQ4_NL and back; blocks along the last axis."""
    codes, scale = iq4_nl_codes(weight, values)
    return (values[codes] * scale[:, None]).reshape(weight.shape)


def fake_quantised(weight: Tensor, rounding: Rounding) -> Tensor:
    """``weight`` moved towards its IQ4_NL value; the gradient passes straight through."""
    detached = weight.detach()
    rounded = iq4_nl_round_trip(detached, rounding.values)
    return weight + rounding.share * (rounded - detached)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, computed in float32 -> dtype of x."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """NEOX rotary embedding of x [B, H, L, head_dim] by cos, sin [L, head_dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Dispatch(torch.autograd.Function):
    """Copy tokens and their weights into rows sorted by expert; only gathers, both ways.

    x [T, D], weights [T, K], row_slot [R] (index into T * K, or T * K for padding),
    slot_row [T, K] (its inverse) -> rows [R, D], row weights [R] (0 for padding).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, row_slot: Tensor, slot_row: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gather the rows."""
        ctx.save_for_backward(slot_row)
        n_slots = weights.numel()
        last = row_slot.clamp(max=n_slots - 1)
        row_weights = torch.where(row_slot < n_slots, weights.reshape(-1)[last], 0.0)
        return x[last // weights.shape[1]], row_weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gather and sum the rows' gradients."""
        (slot_row,) = ctx.saved_tensors
        grad_rows, grad_weights = grads
        return grad_rows[slot_row].sum(1), grad_weights[slot_row], None, None


class Combine(torch.autograd.Function):
    """Sum each token's K rows [R, D] -> [T, D].

    Padding rows receive some token's gradient; their weight 0 cancels it in Dispatch.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, row_slot: Tensor, slot_row: Tensor) -> Tensor:
        """Gather and sum the rows."""
        ctx.save_for_backward(row_slot)
        ctx.shape = slot_row.shape
        return rows[slot_row].sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Gather the tokens' gradients."""
        (row_slot,) = ctx.saved_tensors
        n_tokens, n_used = ctx.shape
        return grads[0][row_slot.clamp(max=n_tokens * n_used - 1) // n_used], None, None


def sorted_rows(experts: Tensor, n_expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Place every (token, expert) slot in a row buffer sorted by expert.

    experts [T, K] -> row_slot [R], slot_row [T, K], row offsets (ends) [E] int32, counts [E],
    with R = T * K + E * ROW_ALIGN fixed so that shapes never depend on the routing.
    """
    flat = experts.reshape(-1)
    n_slots = flat.numel()
    n_rows = n_slots + n_expert * ROW_ALIGN
    ordered, order = torch.sort(flat, stable=True)
    ids = torch.arange(n_expert, device=flat.device)
    ends = torch.searchsorted(ordered, ids, right=True)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    padded_ends = torch.cumsum((counts + ROW_ALIGN - 1) // ROW_ALIGN * ROW_ALIGN, 0)
    shift = torch.diff(padded_ends, prepend=ends.new_zeros(1)) - counts
    moved = torch.cumsum(shift, 0) - shift  # padding rows before each expert
    rows = torch.arange(n_slots, device=flat.device) + moved[ordered]
    row_slot = torch.full((n_rows,), n_slots, device=flat.device).scatter(0, rows, order)
    slot_row = torch.empty_like(rows).scatter(0, order, rows)
    offsets = torch.where(ids == n_expert - 1, n_rows, padded_ends).to(torch.int32)
    return row_slot, slot_row.view_as(experts), offsets, counts


def grouped_matmul(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Rows [R, I] times weight [E, O, I] of each row's expert -> [R, O]."""
    if rows.is_cuda:
        return functional.grouped_mm(rows, weight.transpose(-2, -1), offs=offsets)
    pieces, start = [], 0
    for matrix, end in zip(weight.unbind(), offsets.tolist(), strict=True):
        pieces.append(rows[start:end] @ matrix.T)
        start = end
    return torch.cat(pieces)


class Experts(nn.Module):
    """Router and SwiGLU experts of one layer."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = g = geometry
        self.router = nn.Parameter(torch.randn(g.n_expert, g.n_embd) * 0.02)
        self.gate = nn.Parameter(torch.randn(g.n_expert, g.n_ff_exp, g.n_embd) * g.n_embd**-0.5)
        self.up = nn.Parameter(torch.randn(g.n_expert, g.n_ff_exp, g.n_embd) * g.n_embd**-0.5)
        self.down = nn.Parameter(torch.zeros(g.n_expert, g.n_embd, g.n_ff_exp))

    def forward(self, x: Tensor, rounding: Rounding) -> tuple[Tensor, Routing]:
        """X [T, D] -> y [T, D] and the routing statistics."""
        g = self.geometry
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ self.router.T
        probs = logits.softmax(-1)
        top, experts = probs.topk(g.n_expert_used, dim=-1)
        weights = top / top.sum(-1, keepdim=True)
        row_slot, slot_row, offsets, counts = sorted_rows(experts, g.n_expert)
        placed = Dispatch.apply(x, weights, row_slot, slot_row)  # type: ignore[no-untyped-call]
        rows, row_weights = placed
        gate_up = fake_quantised(torch.cat((self.gate, self.up), 1), rounding).to(x.dtype)
        down = fake_quantised(self.down, rounding).to(x.dtype)
        gate, up = grouped_matmul(rows, gate_up, offsets).chunk(2, dim=-1)
        hidden = functional.silu(gate.float()) * up.float() * row_weights[:, None]
        outputs = grouped_matmul(hidden.to(x.dtype), down, offsets)
        out = Combine.apply(outputs, row_slot, slot_row)  # type: ignore[no-untyped-call]
        load = counts.float() / experts.numel()
        balance = g.n_expert * (load * probs.mean(0)).sum()
        return out, Routing(load, balance, logits.logsumexp(-1).square().mean())


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = g = geometry
        std = g.n_embd**-0.5
        self.attn_norm = nn.Parameter(torch.ones(g.n_embd))
        self.ffn_norm = nn.Parameter(torch.ones(g.n_embd))
        self.q_norm = nn.Parameter(torch.ones(g.head_dim))
        self.k_norm = nn.Parameter(torch.ones(g.head_dim))
        self.q = nn.Parameter(torch.randn(g.n_head * g.head_dim, g.n_embd) * std)
        self.k = nn.Parameter(torch.randn(g.n_head_kv * g.head_dim, g.n_embd) * std)
        self.v = nn.Parameter(torch.randn(g.n_head_kv * g.head_dim, g.n_embd) * std)
        self.o = nn.Parameter(torch.zeros(g.n_embd, g.n_head * g.head_dim))
        self.experts = Experts(g)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, rounding: Rounding) -> Tensor:
        """Causal attention of x [B, L, D] -> [B, L, D]."""
        g, (batch, length, _) = self.geometry, x.shape
        q, k, v = (
            functional.linear(x, fake_quantised(weight, rounding).to(x.dtype))
            .view(batch, length, -1, g.head_dim)
            .transpose(1, 2)
            for weight in (self.q, self.k, self.v)
        )
        q = rotated(rms_norm(q, self.q_norm, g.rms_eps), cos, sin)
        k = rotated(rms_norm(k, self.k_norm, g.rms_eps), cos, sin)
        k, v = (t.repeat_interleave(g.n_head // g.n_head_kv, dim=1) for t in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, length, -1)
        return functional.linear(y, fake_quantised(self.o, rounding).to(x.dtype))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, rounding: Rounding
    ) -> tuple[Tensor, Routing]:
        """X [B, L, D] float32 residual stream -> the same shape, and routing statistics."""
        eps = self.geometry.rms_eps
        dtype = torch.bfloat16 if x.is_cuda else torch.float32
        x = x + self.attention(rms_norm(x, self.attn_norm, eps).to(dtype), cos, sin, rounding)
        normed = rms_norm(x, self.ffn_norm, eps).to(dtype)
        y, routing = self.experts(normed.view(-1, x.shape[-1]), rounding)
        return x + y.view_as(x), routing


class Model(nn.Module):
    """The whole model; ``layers`` may be compiled one by one."""

    cos: Tensor
    sin: Tensor
    share: Tensor
    values: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = g = geometry
        self.embedding = nn.Parameter(torch.randn(g.n_vocab, g.n_embd) * 0.02)
        self.layers = nn.ModuleList(Layer(g) for _ in range(g.n_layer))
        self.output_norm = nn.Parameter(torch.ones(g.n_embd))
        steps = torch.arange(0, g.head_dim, 2, dtype=torch.float32) / g.head_dim
        angles = torch.outer(torch.arange(g.n_ctx).float(), g.rope_freq_base**-steps)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("share", torch.zeros(()), persistent=False)
        self.register_buffer("values", torch.tensor(IQ4_NL_VALUES), persistent=False)

    @property
    def rounding(self) -> Rounding:
        """The present rounding; train.py fills ``share``."""
        return Rounding(self.share, self.values)

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Routing]]:
        """Tokens [B, L] -> normed hidden states [B, L, D] and every layer's routing."""
        length = tokens.shape[1]
        table = fake_quantised(self.embedding, self.rounding)
        x = functional.embedding(tokens, table)
        routings = []
        for layer in self.layers:
            x, routing = layer(x, self.cos[:length], self.sin[:length], self.rounding)
            routings.append(routing)
        return rms_norm(x, self.output_norm, self.geometry.rms_eps), routings

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden [..., D] -> float32 logits [..., n_vocab]."""
        dtype = torch.bfloat16 if hidden.is_cuda else torch.float32
        table = fake_quantised(self.embedding, self.rounding).to(dtype)
        return functional.linear(hidden.to(dtype), table).float()
