"""llama-bench: the published protocol on the tool's random tokens.

Every test is a process of its own: `-fa 1 -p 0 -n N` for decoding, `-fa 1 -p N -n 0` for prompts.
The tool draws its tokens from an unseeded `rand()`, so every process sees the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tec.errors import TecError
from tec.policies import CachePolicy
from tec.process import Finished
from tec.quantities import Bytes, Count

TOOL = "llama-bench"


class LlamaBench(BaseModel):
    """One test: one line of `-o jsonl`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    n_prompt: Count
    n_gen: Count
    avg_ts: float
    expert_cache_policy: CachePolicy | None = None
    expert_cache_capacity: int = 0
    expert_cache_hits: Count = 0
    expert_cache_misses: Count = 0
    expert_cache_vram_bytes: Bytes = 0

    @property
    def policy(self) -> CachePolicy | None:
        """The policy in force; None with the cache off."""
        return (self.expert_cache_policy or "lru") if self.capacity else None

    @property
    def capacity(self) -> int | None:
        """Slots per layer in force; None with the cache off."""
        return self.expert_cache_capacity if self.expert_cache_capacity > 0 else None


def test_name(n_prompt: int, n_gen: int) -> str:
    """Return llama-bench's own name of a test, such as `pp512` or `tg128`."""
    return f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"


def command(
    binary: str, model: str, n_prompt: int, n_gen: int, threads: int, arm: Sequence[str]
) -> tuple[str, ...]:
    """Return the command line of one repetition of one test."""
    return (
        *(binary, "-m", model, "-p", str(n_prompt), "-n", str(n_gen), "-r", "1", "-fa", "1"),
        *("-t", str(threads), "-o", "jsonl", *arm),
    )


def parse(finished: Finished, expert_cache: str) -> dict[str, Any]:
    """Return the tool's one line as it came, after checking it.

    Raises:
        TecError: no line, more than one, or the cache was asked for and is not there.
    """
    lines = [line for line in finished.stdout.splitlines() if line.startswith("{")]
    if len(lines) != 1:
        raise TecError(f"{TOOL} printed {len(lines)} results instead of one")
    try:
        result: dict[str, Any] = json.loads(lines[0])
        parsed = LlamaBench.model_validate(result)
    except (json.JSONDecodeError, ValidationError) as error:
        raise TecError(f"{TOOL} printed a result that cannot be read: {error}") from error
    if expert_cache != "off" and parsed.capacity is None:
        raise TecError(f"the expert cache was asked for ({expert_cache}) and is not engaged")
    return result
