"""Tiny GGUF files with random weights: real enough for llama.cpp to load, small enough to make."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

N_LAYER = 2
N_EXPERT = 16
N_EXPERT_USED = 2
_N_EMBD = 64
_N_HEAD = 4
_HEAD = _N_EMBD // _N_HEAD
_N_FF = 32
_CONTEXT = 2048


def write_moe(path: Path) -> Path:
    """Write a `qwen3moe` model of 2 layers with 16 experts each, 2 used per token."""
    return _write(path, "qwen3moe", N_EXPERT)


def write_dense(path: Path) -> Path:
    """Write a `qwen3` model: no experts."""
    return _write(path, "qwen3", 0)


def cut(path: Path, source: Path, share: float) -> Path:
    """Write the first `share` of the bytes of `source` to `path`."""
    content = source.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def _write(path: Path, arch: str, n_expert: int) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    tokens = _add_tokenizer(writer)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(N_LAYER)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_N_EMBD)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(_N_HEAD)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if n_expert:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(N_EXPERT_USED)
        writer.add_expert_feed_forward_length(_N_FF)
    for name, shape in _shapes(len(tokens), n_expert).items():
        writer.add_tensor(name, _weights(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> list[str]:
    """Add a byte-level BPE tokenizer that knows single bytes and one merge."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = [chr(byte) for byte in printable]
    names += [chr(256 + offset) for offset in range(256 - len(names))]
    tokens = [*names, "he", "<|end|>"]
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    return tokens


def _shapes(n_vocab: int, n_expert: int) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape, slowest dimension first."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, _N_EMBD),
        "output_norm.weight": (_N_EMBD,),
        "output.weight": (n_vocab, _N_EMBD),
    }
    for layer in range(N_LAYER):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{name}.weight": (_N_EMBD,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{block}.attn_{k}_norm.weight": (_HEAD,) for k in ("q", "k")}
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{block}.{name}.weight"] = (_N_EMBD, _N_EMBD)
        experts, suffix = ((n_expert,), "_exps") if n_expert else ((), "")
        if n_expert:
            shapes[f"{block}.ffn_gate_inp.weight"] = (n_expert, _N_EMBD)
        for name in ("gate", "up"):
            shapes[f"{block}.ffn_{name}{suffix}.weight"] = (*experts, _N_FF, _N_EMBD)
        shapes[f"{block}.ffn_down{suffix}.weight"] = (*experts, _N_EMBD, _N_FF)
    return shapes


def _weights(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return reproducible weights: ones for norms, else small normal numbers."""
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    generator = np.random.default_rng(sum(name.encode()))
    return generator.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
