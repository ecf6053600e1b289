"""Tiny GGUF files with random weights: real enough for llama.cpp to load, small enough to make."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
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
_N_VOCAB = 258


@dataclass(frozen=True)
class Size:
    """Layers, experts per layer (0: a dense model) and the width of an expert."""

    n_layer: int = N_LAYER
    n_expert: int = N_EXPERT
    n_ff: int = _N_FF

    @property
    def expert_bytes(self) -> int:
        """Of gate, up and down weights of an expert, in single precision."""
        return 3 * _N_EMBD * self.n_ff * 4


def write_moe(path: Path, size: Size | None = None) -> Path:
    """Write a `qwen3moe` model, 2 experts used per token; 2 layers with 16 experts by default."""
    return _write(path, "qwen3moe", size or Size())


def write_hollow_moe(path: Path, size: Size) -> Path:
    """Write a model of any size whose weights are a hole in the file: the disk holds none."""
    writer = _writer(path, "qwen3moe", size)
    n_bytes = 0
    for name, shape in _shapes(_N_VOCAB, size).items():
        tensor_bytes = 4 * math.prod(shape)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), tensor_bytes)
        n_bytes += gguf.GGUFWriter.ggml_pad(tensor_bytes, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + writer.data_alignment + n_bytes)
    return path


def write_split_moe(path: Path) -> list[Path]:
    """Write the model of `write_moe` in parts beside `path`; the first has keys and no tensors."""
    _write(path, "qwen3moe", Size(), per_part=12)
    return sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


def write_dense(path: Path) -> Path:
    """Write a `qwen3` model: no experts."""
    return _write(path, "qwen3", Size(n_expert=0))


def widen(path: Path, source: Path, n_expert: int) -> Path:
    """Write an unquantised MoE model again with `n_expert` experts and a router that varies.

    The experts of `source` are repeated with noise, so that no two are equal. Expert biases and
    scales, merged gate and up weights, and the router's own biases come along.
    """
    reader = gguf.GGUFReader(source)
    arch = str(reader.fields["general.architecture"].contents())
    before = reader.fields[f"{arch}.expert_count"].contents()
    writer = _copy_keys(path, reader, {"expert_count": n_expert})
    for tensor in reader.tensors:
        of_experts = "exps." in tensor.name or "ffn_gate_inp." in tensor.name
        data = np.asarray(tensor.data)
        if (of_experts or "exp_probs_b" in tensor.name) and len(data) == before:
            data = _repeat(tensor.name, data, n_expert)
        writer.add_tensor(tensor.name, data)
    _close(writer)
    return path


def split(path: Path, source: Path, n_expert: int) -> Path:
    """Write a dense model without gates as an MoE model: its FFN becomes experts and a shared one.

    For architectures that llama.cpp's generator only makes dense.
    """
    reader = gguf.GGUFReader(source)
    n_ff = next(len(t.data) for t in reader.tensors if t.name.endswith("ffn_up.weight"))
    counts = {"expert_count": n_expert, "expert_used_count": N_EXPERT_USED}
    lengths = dict.fromkeys(
        ("expert_feed_forward_length", "expert_shared_feed_forward_length"), n_ff
    )
    writer = _copy_keys(path, reader, {**counts, "expert_shared_count": 1, **lengths})
    for tensor in reader.tensors:
        block, _, name = tensor.name.partition(".ffn_")
        data = np.asarray(tensor.data)
        if name not in ("up.weight", "down.weight"):
            if not name or name == "norm.weight":
                writer.add_tensor(tensor.name, data)
            continue
        part = name.removesuffix(".weight")
        writer.add_tensor(f"{block}.ffn_{part}_shexp.weight", data)
        experts = _repeat(f"{block}.{part}", data[None], n_expert)
        writer.add_tensor(f"{block}.ffn_{part}_exps.weight", experts)
        if part == "up":
            router = f"{block}.ffn_gate_inp.weight"
            writer.add_tensor(router, _repeat(router, data[:1], n_expert))
            writer.add_tensor(f"{block}.exp_probs_b.bias", np.zeros(n_expert, dtype=np.float32))
    _close(writer)
    return path


def _copy_keys(path: Path, reader: gguf.GGUFReader, changes: Mapping[str, int]) -> gguf.GGUFWriter:
    """Start a file with the keys of another; `changes` are values by key without architecture."""
    arch = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(path, arch)
    changed = {f"{arch}.{key}": value for key, value in changes.items()}
    for name, field in reader.fields.items():
        value = changed.get(name, field.contents())
        own = name.startswith("GGUF.") or name == "general.architecture"  # the writer's
        if not own and value not in (None, []):
            writer.add_key_value(name, value, field.types[0], field.types[-1])
    return writer


def _repeat(name: str, data: npt.NDArray[np.float32], n_expert: int) -> npt.NDArray[np.float32]:
    """Repeat along the experts [N, ...] with noise; a router gets rows that differ a lot."""
    generator = np.random.default_rng(sum(name.encode()))
    shape = (n_expert, *data.shape[1:])
    if "ffn_gate_inp.weight" in name:
        return generator.normal(0, 4, shape).astype(np.float32)
    if "exp_probs_b" in name:
        return np.zeros(shape, dtype=np.float32)
    noise = generator.normal(1, 0.1, shape)
    return (np.resize(data, shape) * noise).astype(np.float32)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cut(path: Path, source: Path, share: float) -> Path:
    """Write the first `share` of the bytes of `source` to `path`."""
    content = source.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def _write(path: Path, arch: str, size: Size, per_part: int = 0) -> Path:
    writer = _writer(path, arch, size, per_part)
    for name, shape in _shapes(_N_VOCAB, size).items():
        writer.add_tensor(name, _weights(name, shape))
    _close(writer)
    return path


def _writer(path: Path, arch: str, size: Size, per_part: int = 0) -> gguf.GGUFWriter:
    """Start a file with all keys."""
    split = per_part > 0
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=per_part, small_first_shard=split)
    _add_tokenizer(writer)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(size.n_layer)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_N_EMBD)
    writer.add_feed_forward_length(size.n_ff)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(_N_HEAD)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if size.n_expert:
        writer.add_expert_count(size.n_expert)
        writer.add_expert_used_count(N_EXPERT_USED)
        writer.add_expert_feed_forward_length(size.n_ff)
    return writer


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Add a byte-level BPE tokenizer that knows single bytes and one merge."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = [chr(byte) for byte in printable]
    names += [chr(256 + offset) for offset in range(256 - len(names))]
    tokens = [*names, "he", "<|end|>"]
    assert len(tokens) == _N_VOCAB
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)


def _shapes(n_vocab: int, size: Size) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape, slowest dimension first."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, _N_EMBD),
        "output_norm.weight": (_N_EMBD,),
        "output.weight": (n_vocab, _N_EMBD),
    }
    for layer in range(size.n_layer):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{name}.weight": (_N_EMBD,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{block}.attn_{k}_norm.weight": (_HEAD,) for k in ("q", "k")}
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{block}.{name}.weight"] = (_N_EMBD, _N_EMBD)
        experts, suffix = ((size.n_expert,), "_exps") if size.n_expert else ((), "")
        if size.n_expert:
            shapes[f"{block}.ffn_gate_inp.weight"] = (size.n_expert, _N_EMBD)
        for name in ("gate", "up"):
            shapes[f"{block}.ffn_{name}{suffix}.weight"] = (*experts, size.n_ff, _N_EMBD)
        shapes[f"{block}.ffn_down{suffix}.weight"] = (*experts, _N_EMBD, size.n_ff)
    return shapes


def _weights(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return reproducible weights: ones for norms, else small normal numbers."""
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    generator = np.random.default_rng(sum(name.encode()))
    return generator.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
