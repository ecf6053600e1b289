"""Decoding with the shipped model: plain runs, and what the CPU may change when it computes misses.

Outputs of policies whose misses the CPU computes are those of the cache off up to the order of
sums. Such policies do not read repacked weights, so all runs load without.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from programs import run_program
from tec.config import load_row
from tec.paths import ROOT

MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
PROMPTS = ROOT / load_row("pydoc-moe").prompts
PLAIN = "--no-repack"
CLOSE = 0.4
"""Margins between the two best logits that a difference in the last bits may turn over."""

Attempt = Callable[..., subprocess.CompletedProcess[str]]
Run = Callable[..., dict[str, Any]]


def attempt_with(binaries: dict[str, Path]) -> Attempt:
    """Return what runs a tool on the model with arguments and variables."""

    def run(tool: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_program((binaries[tool], "-m", MODEL, "-t", 2, *arguments), 120, **variables)

    return run


def decode_with(attempt: Attempt, n_gen: int) -> Run:
    """Return what decodes the `first` prompts with llama-expert-bench, the same run once."""
    known: dict[str, dict[str, Any]] = {}

    def run(*arguments: object, first: int = 1, **variables: str) -> dict[str, Any]:
        key = repr((arguments, first, variables))
        if key not in known:
            words = ("--prompts", PROMPTS, "--first", first, "-n", n_gen, "-c", 4096, PLAIN)
            done = attempt("llama-expert-bench", *words, *arguments, **variables)
            assert done.returncode == 0, done.stderr[-2000:]
            known[key] = json.loads(done.stdout)
        return known[key]

    return run


def hashes(run: dict[str, Any]) -> list[list[str]]:
    """Return the hash of every step's logits, prompt by prompt."""
    return [prompt["logits_hash"] for prompt in run["prompts"]]


def assert_agree(run: dict[str, Any], reference: dict[str, Any], at_least: int) -> None:
    """Assert equal tokens, prompt by prompt up to the first that was nearly another one.

    Rounding inputs of products to 8 bits makes small differences larger: logits of about 20 differ
    by up to 0.15.

    Args:
        run: a line of llama-expert-bench.
        reference: the same with the cache off.
        at_least: tokens that have to be compared, of all prompts.
    """
    compared = 0
    for mine, other in zip(run["prompts"], reference["prompts"], strict=True):
        n = len(list(takewhile(lambda margin: margin > CLOSE, other["logits_margin"])))
        assert mine["tokens"][:n] == other["tokens"][:n]
        assert mine["logits_margin"][:n] == pytest.approx(other["logits_margin"][:n], abs=CLOSE)
        compared += n
    assert compared >= at_least


def assert_refused(
    attempt: Attempt, tool: str, arguments: tuple[object, ...], complaint: str, **variables: str
) -> None:
    """Assert that a tool stops at settings with one clear line."""
    bench = ("--prompts", PROMPTS, "-n", 2, PLAIN)
    words = bench if tool == "llama-expert-bench" else ("-p", 0, "-n", 2, "-r", 1, "--repack", 0)
    done = attempt(tool, *words, *arguments, **variables)
    assert done.returncode == 1, done.stderr[-2000:]
    assert complaint in done.stderr
    assert "GGML_ASSERT" not in done.stderr
