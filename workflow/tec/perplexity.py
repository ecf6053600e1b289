"""llama-perplexity: perplexity of a text, and the KL divergence from a reference's predictions.

The physical batch is one token, so that every step is small enough for the cached path. The
reference writes its log-probabilities (16 bits each) to a file; compared with that file, even the
reference itself shows a tiny divergence, which is the floor of the comparison.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from tec.errors import TecError
from tec.process import Finished

TOOL = "llama-perplexity"

_CTX = 512
_BATCH = 64

_NUMBER = r"([-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|nan|inf))"
_FINAL = re.compile(rf"Final estimate: PPL = {_NUMBER} \+/- {_NUMBER}")
_COMPLAINT = re.compile(r"\b(?:perplexity|kl_divergence)\s*: (.*)")
_STATISTICS = {
    "ppl": re.compile(rf"Mean PPL\(Q\)\s*:\s*{_NUMBER}"),
    "ppl_reference": re.compile(rf"Mean PPL\(base\)\s*:\s*{_NUMBER}"),
    "kl_mean": re.compile(rf"Mean\s+KLD:\s*{_NUMBER}"),
    "kl_max": re.compile(rf"Maximum KLD:\s*{_NUMBER}"),
    "same_top": re.compile(rf"Same top p:\s*{_NUMBER}"),
}


class Divergence(BaseModel):
    """An arm against the reference's file, on the same text."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    ppl: float
    ppl_reference: float
    kl_mean: float
    """Mean KL divergence in nats per token."""
    kl_max: float
    same_top: float
    """Tokens whose most likely prediction is the same, in percent."""


def reference_command(
    binary: str, model: str, text: str, chunks: int, base: str, threads: int, arm: Sequence[str]
) -> tuple[str, ...]:
    """Return the command line that computes the perplexity of `text` and writes `base`.

    Args:
        binary: the tool.
        model: GGUF file.
        text: plain text file.
        chunks: how many pieces of 512 tokens of it count.
        base: the file of predictions to write.
        threads: CPU threads.
        arm: the arm's arguments.
    """
    return (
        *_common(binary, model, threads),
        "--no-escape",  # the text as it is
        *("-f", text, "--chunks", str(chunks), "--kl-divergence-base", base, *arm),
    )


def divergence_command(
    binary: str, model: str, base: str, threads: int, arm: Sequence[str]
) -> tuple[str, ...]:
    """Return the command line that compares an arm with `base`, which carries the tokens."""
    compare = ("--kl-divergence", "--kl-divergence-base", base)
    return (*_common(binary, model, threads), *compare, *arm)


def _common(binary: str, model: str, threads: int) -> tuple[str, ...]:
    shape = ("-c", str(_CTX), "-b", str(_BATCH), "-ub", "1")
    return (binary, "-m", model, "-t", str(threads), *shape)


def parse_reference(finished: Finished) -> dict[str, Any]:
    """Return `{"ppl": ..., "lines": [...]}` from what the tool printed.

    Raises:
        TecError: the tool ended without a result (it exits 0 on a text that is too short).
    """
    output = finished.stdout + finished.stderr
    found = _FINAL.search(output)
    if found is None:
        raise TecError(
            f"{TOOL} gave no perplexity: {_complaint(output)}",
            hint=f"the parity text needs at least {2 * _CTX} tokens",
        )
    return {"ppl": float(found[1]), "ppl_error": float(found[2]), "lines": [found[0]]}


def parse_divergence(finished: Finished) -> dict[str, Any]:
    """Return the statistics of `Divergence`, and the lines they were read from.

    Raises:
        TecError: a statistic is missing or not a number.
    """
    output = finished.stdout + finished.stderr
    result: dict[str, Any] = {}
    lines: list[str] = []
    for name, pattern in _STATISTICS.items():
        found = pattern.search(output)
        if found is None or not math.isfinite(float(found[1])):
            raise TecError(f"{TOOL} gave no {name}: {_complaint(output)}")
        result[name] = float(found[1])
        lines.append(output[found.start() :].splitlines()[0])
    return {**result, "lines": lines}


def _complaint(output: str) -> str:
    """Return the tool's last message, which it prints under its function's name."""
    return next(iter(reversed(_COMPLAINT.findall(output))), "it printed no message")
