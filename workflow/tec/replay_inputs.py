"""What a replay decodes: random tokens, and the routing that every arm follows.

Both are drawn, from a seed, and are the same on every machine. A model with generated weights has
no text to say anything about; the reuse is in the trace, whose statistics lie beside it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from tec import trace_generator, trace_profile
from tec.config import ReplayProtocol, Row
from tec.errors import TecError
from tec.files import write_atomically
from tec.gguf_file import ModelInfo
from tec.layer_sizes import read_layer_sizes
from tec.paths import ROOT
from tec.pin_list import most_used, write_pin_list
from tec.routing_trace import read_trace, write_trace
from tec.trace_generator import generate, statistics_file
from tec.trace_profile import PROFILES, profile_for
from tec.trace_statistics import statistics

PROMPT_TOKENS = 16
"""Tokens of each of the prompts that are decoded together."""

VERSION = 1
"""Of the tokens; to be raised when the same seed gives others (tests/unit/test_versions.py)."""


@dataclass(frozen=True)
class ReplayInputs:
    """Files that llama-expert-bench reads."""

    trace: Path
    """Routing of `ReplayProtocol.tokens` tokens; statistics lie beside it, `.json`."""
    tokens: Path
    """One prompt of so many tokens."""
    prompts: Path
    """Short prompts, for decoding several sequences together."""


def write_replay_inputs(
    row: Row, model: ModelInfo, protocol: ReplayProtocol, n_prompts: int, folder: Path
) -> ReplayInputs:
    """Write a row's inputs into `folder` unless they are there, and return them.

    Args:
        row: says how many tokens there are, where it is a replica.
        model: how many layers and experts the trace is for.
        protocol: lengths and seed.
        n_prompts: how many short prompts.
        folder: where the files go; their names say what they are.
    """
    length, seed = protocol.tokens, protocol.seed
    experts = f"{model.n_moe_layers}x{model.n_expert_used}of{model.n_expert}"
    profile = profile_for(model.n_expert, model.n_expert_used)
    versions = f"v{trace_generator.VERSION}.{trace_profile.VERSION}"
    inputs = ReplayInputs(
        trace=folder / f"trace-{length}x{experts}-{profile}-{seed}-{versions}.npy",
        tokens=folder / f"tokens-{length}-{seed}.jsonl",
        prompts=folder / f"prompts-{n_prompts}-{seed}.jsonl",
    )
    if not inputs.trace.exists():
        _write_trace(model, protocol, profile, inputs.trace)
    n_vocab = _vocabulary(row, model)
    lengths = {inputs.tokens: [length], inputs.prompts: [PROMPT_TOKENS] * n_prompts}
    for path, wanted in lengths.items():
        text = "".join(_lines(wanted, n_vocab, f"{path.stem} {model.row}"))
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
    return inputs


def write_pins(model: ModelInfo, protocol: ReplayProtocol, trace: Path) -> Path:
    """Write the pin list for a trace beside it, unless it is there, and return it.

    Experts are counted over the tokens after those that are decoded: the list is not made from what
    it is measured on.

    Args:
        model: the row's model.
        protocol: of `tokens` tokens of the trace `n_gen` are decoded, the first ones.
        trace: from `write_replay_inputs`.
    """
    path = trace.with_name(f"pins-from-{protocol.n_gen}-{trace.stem}.txt")
    if not path.exists():
        whole = read_trace(trace, model.n_expert)
        rest = replace(whole, selections=whole.selections[protocol.n_gen :])
        layers = [il for il, size in enumerate(read_layer_sizes(model).experts) if size]
        write_pin_list(path, most_used(rest, layers, model.n_layer))
    return path


def _write_trace(model: ModelInfo, protocol: ReplayProtocol, profile: str, path: Path) -> None:
    size = (protocol.tokens, model.n_moe_layers, model.n_expert, model.n_expert_used)
    trace = generate(profile, *size, protocol.seed)
    generator = {
        "profile": profile,
        "source": PROFILES[profile].source,
        "seed": protocol.seed,
        "numpy": np.__version__,
    }
    record = {"trace": path.name, "generator": generator, **statistics(trace)}
    write_atomically(statistics_file(path), json.dumps(record, indent=2) + "\n")
    write_trace(path, trace)


def _lines(lengths: Sequence[int], n_vocab: int, seed: str) -> Iterable[str]:
    """Yield a prompt of uniformly random tokens for each length."""
    drawn = random.Random(seed)  # noqa: S311 (an input, not a secret)
    for number, length in enumerate(lengths):
        tokens = [drawn.randrange(n_vocab) for _ in range(length)]
        yield json.dumps({"id": f"random-{number}", "tokens": tokens}) + "\n"


def _vocabulary(row: Row, model: ModelInfo) -> int:
    """Return how many tokens the model has."""
    if model.variant == "replica" and row.replica is not None:
        return row.replica.vocabulary
    field = GGUFReader(ROOT / model.path).get_field("tokenizer.ggml.tokens")
    if field is None:
        raise TecError("the GGUF file has no vocabulary", model.path, "convert the model again")
    return len(field.data)
