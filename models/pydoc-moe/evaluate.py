"""Held-out perplexity of the shipped GGUF, by llama-perplexity, against the n-gram baseline.

Both score the same tokens of the same text: llama-perplexity cuts it into windows of n_ctx tokens
and scores the second half of each; the baseline scores exactly those tokens. The baseline sees the
whole training split. Writes evaluation.json beside this script.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from ngram import ORDER, KneserNey
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
Tokens = np.ndarray[Any, np.dtype[np.uint16]]


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Evaluate pydoc-moe against a 5-gram model.")
    parser.add_argument("--bin", type=Path, required=True, help="folder of llama.cpp's tools")
    parser.add_argument("--model", type=Path, default=HERE / "pydoc-moe.gguf")
    parser.add_argument("--text", type=Path, default=Path("configs/prompts/pydoc-heldout.txt"))
    parser.add_argument("--work", type=Path, default=Path(".cache/pydoc-moe"))
    parser.add_argument("--n-ctx", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def tool_tokens(options: argparse.Namespace) -> Tokens:
    """The text's tokens as llama-tokenize gives them [N]."""
    command = [options.bin / "llama-tokenize", "-m", options.model, "-f", options.text]
    command += ["--ids", "--no-parse-special", "--no-escape", "--log-disable"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return np.array(json.loads(done.stdout.strip().splitlines()[-1]), dtype=np.uint16)


def llama_perplexity(options: argparse.Namespace) -> float:
    """Perplexity per token of the second halves of all windows.

    Raises SystemExit with the tool's exit status and last lines when it reports none.
    """
    size = str(options.n_ctx)
    command = [options.bin / "llama-perplexity", "-m", options.model, "-f", options.text]
    command += ["-c", size, "-b", size, "-t", str(options.threads), "--no-escape"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    if done.returncode or found is None:
        raise SystemExit(
            f"llama-perplexity gave no perplexity (exit status {done.returncode}):\n"
            f"{done.stderr[-800:]}"
        )
    return float(found[1])


def scored_positions(n_tokens: int, n_ctx: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the tokens llama-perplexity scores: n_ctx / 2 + 1 ... n_ctx - 1 per window."""
    starts = np.arange(n_tokens // n_ctx)[:, None] * n_ctx
    return (starts + np.arange(n_ctx // 2 + 1, n_ctx)).reshape(-1)


def size_in_bytes(tokenizer: Tokenizer, tokens: Tokens) -> int:
    """UTF-8 bytes that the tokens stand for: byte-level BPE writes one character a byte."""
    return sum(len(tokenizer.id_to_token(int(token)) or "") for token in tokens)


def figures(log_probability: float, n_tokens: int, n_bytes: int) -> dict[str, float]:
    """Perplexity per token and bits per byte of a summed natural-log probability."""
    return {
        "perplexity": round(math.exp(-log_probability / n_tokens), 4),
        "bits_per_byte": round(-log_probability / math.log(2) / n_bytes, 4),
    }


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Run both models -> the record written to evaluation.json."""
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    text = options.text.read_text(encoding="utf-8")
    tokens = tool_tokens(options)
    if tokenizer.encode(text, add_special_tokens=False).ids != tokens.tolist():
        raise SystemExit("tokenizer.json and the GGUF disagree on the text: export again")
    scored = scored_positions(len(tokens), options.n_ctx)
    n_bytes = size_in_bytes(tokenizer, tokens[scored])
    perplexity = llama_perplexity(options)
    model_sum = -math.log(perplexity) * len(scored)
    baseline = KneserNey(np.load(options.work / "train.npy"))
    baseline_log = baseline.log_probabilities(tokens)[scored - (ORDER - 1)]
    heldout: Tokens = np.load(options.work / "heldout.npy")
    whole_log = baseline.log_probabilities(heldout)
    return {
        "text": {
            "file": options.text.name,
            "sha256": digest_of(options.text),
            "bytes": len(text.encode()),
        },
        "tokens": len(tokens),
        "scored_tokens": len(scored),
        "scored_bytes": n_bytes,
        "n_ctx": options.n_ctx,
        "model": {
            "file": options.model.name,
            "sha256": digest_of(options.model),
            "scored_by": "llama-perplexity",
            **figures(model_sum, len(scored), n_bytes),
        },
        "baseline": {
            "name": "interpolated modified Kneser-Ney 5-gram, trained on the whole training split",
            **figures(float(baseline_log.sum()), len(scored), n_bytes),
        },
        "whole_heldout_split": whole_split_figures(tokenizer, heldout, whole_log),
    }


def whole_split_figures(
    tokenizer: Tokenizer, heldout: Tokens, baseline_log: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """The same comparison on all whole batches of held-out windows, as train.py scored them."""
    record = json.loads((HERE / "train.json").read_text())
    size = record["options"]["batch"] * record["geometry"]["n_ctx"]
    end = (len(heldout) - 1) // size * size + 1
    scored = heldout[ORDER - 1 : end]
    n_bytes = size_in_bytes(tokenizer, scored)
    model_sum = -record["heldout_loss_iq4_nl_nats"] * len(scored)
    baseline_sum = float(baseline_log[: len(scored)].sum())
    return {
        "tokens": len(scored),
        "model_scored_by": "train.py (torch, IQ4_NL weights, windows of n_ctx tokens)",
        "model": figures(model_sum, len(scored), n_bytes),
        "baseline": figures(baseline_sum, len(scored), n_bytes),
    }


def main() -> None:
    """Evaluate and write evaluation.json."""
    record = evaluate(parse_arguments())
    (HERE / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
