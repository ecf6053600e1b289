"""Write a checkpoint of train.py as GGUF (architecture ``qwen3moe``), deterministically.

Weights that training saw as IQ4_NL are stored as IQ4_NL, the router as F16, norms as F32.
``--type F32`` stores everything unquantised, for checks. ``hashes.json`` beside the GGUF names
what it was made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from model import BLOCK, IQ4_NL_VALUES, Geometry, iq4_nl_codes

HERE = Path(__file__).resolve().parent
EOT = "<|endoftext|>"
Array = np.ndarray[Any, np.dtype[Any]]
IQ4_NL, F16, F32 = (gguf.GGMLQuantizationType[name] for name in ("IQ4_NL", "F16", "F32"))
LAYER_TENSORS = {
    "attn_norm": "attn_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "attn_output": "o",
    "ffn_norm": "ffn_norm",
    "ffn_gate_inp": "experts.router",
    "ffn_gate_exps": "experts.gate",
    "ffn_up_exps": "experts.up",
    "ffn_down_exps": "experts.down",
}


def tensor_names(n_layer: int) -> dict[str, str]:
    """GGUF tensor name -> checkpoint name, in file order."""
    names = {"token_embd.weight": "embedding"}
    for layer in range(n_layer):
        for name, key in LAYER_TENSORS.items():
            names[f"blk.{layer}.{name}.weight"] = f"layers.{layer}.{key}"
    return names | {"output_norm.weight": "output_norm"}


def stored_type(name: str, quant: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """Norms F32, router F16 (F32 in an F32 file), everything else ``quant``."""
    if "norm" in name:
        return F32
    if "ffn_gate_inp" in name:
        return F32 if quant == F32 else F16
    return quant


def packed(weight: Array, kind: gguf.GGMLQuantizationType) -> Array:
    """Bytes of a tensor in its stored type.

    IQ4_NL becomes uint8 [..., row bytes]: per block a float16 scale, then 16 bytes, each holding
    the codes j (low half) and j + 16 (high half).
    """
    if kind != IQ4_NL:
        return gguf.quants.quantize(weight, kind)
    codes, scale = iq4_nl_codes(torch.from_numpy(weight), torch.tensor(IQ4_NL_VALUES))
    low, high = codes.to(torch.uint8).numpy().reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    scales = scale.numpy().astype("<f2").view(np.uint8).reshape(-1, 2)
    blocks = np.concatenate((scales, low | high << 4), axis=1)
    return blocks.reshape(*weight.shape[:-1], -1)


def add_geometry(writer: gguf.GGUFWriter, g: Geometry) -> None:
    """Architecture keys, as upstream's convert script writes them for qwen3moe."""
    writer.add_block_count(g.n_layer)
    writer.add_context_length(g.n_ctx)
    writer.add_embedding_length(g.n_embd)
    writer.add_feed_forward_length(g.n_ff_exp * g.n_expert_used)
    writer.add_head_count(g.n_head)
    writer.add_head_count_kv(g.n_head_kv)
    writer.add_key_length(g.head_dim)
    writer.add_value_length(g.head_dim)
    writer.add_rope_freq_base(g.rope_freq_base)
    writer.add_layer_norm_rms_eps(g.rms_eps)
    writer.add_expert_count(g.n_expert)
    writer.add_expert_used_count(g.n_expert_used)
    writer.add_expert_feed_forward_length(g.n_ff_exp)


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """Vocabulary and merges of tokenizer.json; pre-tokenizer "qwen2", as prepare.py trained it."""
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(table["vocab"], key=table["vocab"].__getitem__)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token == EOT else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in table["merges"]])
    writer.add_eos_token_id(tokens.index(EOT))
    writer.add_pad_token_id(tokens.index(EOT))
    writer.add_add_bos_token(False)


def write_gguf(
    path: Path, weights: dict[str, Array], geometry: Geometry, quant: gguf.GGMLQuantizationType
) -> None:
    """Write one GGUF file; ``weights`` are float32 by checkpoint name."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("pydoc-moe")
    writer.add_license("Apache-2.0")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kinds = {IQ4_NL: gguf.LlamaFileType.MOSTLY_IQ4_NL, F32: gguf.LlamaFileType.ALL_F32}
    writer.add_file_type(kinds[quant])
    add_geometry(writer, geometry)
    add_tokenizer(writer, HERE / "tokenizer.json")
    for name, key in tensor_names(geometry.n_layer).items():
        kind = stored_type(name, quant)
        writer.add_tensor(name, packed(weights[key], kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_hashes(model: Path, checkpoint: Path) -> None:
    """hashes.json: the GGUF, and every input that decides its bytes."""
    record = {
        "gguf": {"file": model.name, "bytes": model.stat().st_size, "sha256": digest_of(model)},
        "checkpoint_sha256": digest_of(checkpoint),
        "inputs": {
            name: digest_of(HERE / name)
            for name in ("tokenizer.json", "sources.json", "corpus-manifest.json")
        },
    }
    (model.parent / "hashes.json").write_text(json.dumps(record, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Export pydoc-moe to GGUF.")
    parser.add_argument("--run", type=Path, required=True, help="train.py's --out folder")
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--type", choices=["IQ4_NL", "F32"], default="IQ4_NL")
    return parser.parse_args()


def main() -> None:
    """Read train.json and model.pt, write the GGUF and hashes.json."""
    options = parse_arguments()
    geometry = Geometry(**json.loads((options.run / "train.json").read_text())["geometry"])
    state = torch.load(options.run / "model.pt", map_location="cpu", weights_only=True)
    weights = {name: tensor.float().numpy() for name, tensor in state.items()}
    write_gguf(options.out, weights, geometry, gguf.GGMLQuantizationType[options.type])
    write_hashes(options.out, options.run / "model.pt")


if __name__ == "__main__":
    main()
