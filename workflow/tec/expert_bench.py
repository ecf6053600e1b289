"""llama-expert-bench: decodes given prompts greedily and reports every token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tec.errors import TecError
from tec.files import sha256_file
from tec.policies import CachePolicy
from tec.process import Finished
from tec.quantities import Bytes, Count, Nanoseconds

TOOL = "llama-expert-bench"


class _Line(BaseModel):
    """A part of the tool's line; a record keeps the keys that are not read here too."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Prompt(_Line):
    """One prompt's continuation; every list has one entry per generated token [n_gen].

    Entry 0 comes from the prompt's last logits: it belongs to prompt processing and its time, hits
    and misses are 0. Entries 1.. are decode steps. With `--forced` every entry is a decode step, of
    one of the prompt's own tokens.
    """

    id: str
    tokens: tuple[int, ...]
    token_ns: tuple[Nanoseconds, ...]
    logits_hash: tuple[str, ...]
    logits_margin: tuple[float, ...]
    hits: tuple[Count, ...]
    misses: tuple[Count, ...]

    @model_validator(mode="after")
    def _same_lengths(self) -> Prompt:
        for name in ("token_ns", "logits_hash", "logits_margin", "hits", "misses"):
            if len(getattr(self, name)) != len(self.tokens):
                raise ValueError(f"{name} has not one entry per token")
        return self


class Hybrid(_Line):
    """How the policy hybrid divides misses, by costs that it measured when it was loaded."""

    choice: Literal["copy", "cpu", "split"]


class Status(_Line):
    """What the cache says about itself."""

    engaged: bool
    reason: str | None
    policy: CachePolicy = "lru"
    capacity: Count | None = None
    batch_limit: Count | None = None
    """Steps of more tokens go past the cache."""
    cache_bytes: Bytes | None = None
    """Of all slots together."""
    pinned: Count | None = None
    unified: bool = False
    host_bytes: Bytes | None = None
    """Of experts in host memory."""
    device_only_bytes: Bytes | None = None
    """Of experts without a copy there."""
    computed_by_cpu: Count = 0
    """Misses, those of prompts among them."""
    hybrid: Hybrid | None = None


class Device(_Line):
    """Memory of one device."""

    name: str
    total_bytes: Bytes
    free_bytes: Bytes


class Memory(_Line):
    """Memory in use after the run."""

    devices: tuple[Device, ...] = ()


class Copy(_Line):
    """How fast the device is filled from pinned host memory: measured before loading."""

    bytes_per_second: Annotated[float, Field(gt=0)]


class Belady(_Line):
    """What Belady's policy would miss with as many slots; added when a trace was followed."""

    misses: Count
    bytes: Bytes
    """Of these misses."""


class ExpertBench(_Line):
    """One repetition: one line of the tool."""

    parallel: int = 1
    """Sequences decoded together; each has the time, hits and misses of the whole step."""
    prompts: tuple[Prompt, ...]
    decode_ns: Nanoseconds
    decode_tokens: Count
    prompt_ns: Nanoseconds
    prompt_tokens: Count
    hits: Count
    misses: Count
    memory: Memory
    status: Status
    computed: Count = 0
    """Misses of decode steps that the CPU computed."""
    bytes_moved: Bytes = 0
    """Experts copied into slots times their bytes; the policy hot copies none of its misses."""
    belady: Belady | None = None
    vram_limit_bytes: Bytes | None = None
    """Of each device; the rest was occupied."""
    host_copy: Copy | None = Field(default=None, alias="copy")

    @property
    def tg_tps(self) -> float:
        """Decoded tokens per second."""
        return self.decode_tokens / self.decode_ns * 1e9

    @property
    def pp_tps(self) -> float | None:
        """Prompt tokens per second; None where a prompt's tokens were decoded one by one."""
        return self.prompt_tokens / self.prompt_ns * 1e9 if self.prompt_ns else None

    @property
    def capacity(self) -> int | None:
        """Slots per layer in force; None with the cache off."""
        return self.status.capacity if self.status.engaged else None

    @property
    def policy(self) -> CachePolicy | None:
        """The policy in force; None with the cache off."""
        return self.status.policy if self.status.engaged else None

    @property
    def vram_bytes(self) -> int | None:
        """Device memory in use; None on a machine without devices of their own memory.

        Under a limit what the measured program itself uses; else all that is in use.
        """
        if not self.memory.devices:
            return None
        limit = self.vram_limit_bytes
        devices = self.memory.devices
        return sum((limit or device.total_bytes) - device.free_bytes for device in devices)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of missed experts per decoded token."""
        return self.bytes_moved / self.decode_tokens


class Batches(_Line):
    """One process that decoded the same prompts in batches of several sizes."""

    runs: tuple[ExpertBench, ...]


def command(
    binary: str,
    model: str,
    prompts: str,
    n_gen: int,
    threads: int,
    ctx: int,
    arm: Sequence[str],
    batches: Sequence[int] = (1,),
    first: int | None = None,
) -> tuple[str, ...]:
    """Return the command line of one repetition; the context has room for the largest batch.

    Args:
        binary: the tool.
        model: GGUF file.
        prompts: file of prompts.
        n_gen: tokens generated after each.
        threads: CPU threads.
        ctx: context size in tokens for one sequence.
        arm: the arm's arguments.
        batches: numbers of sequences decoded together, run in turn.
        first: how many of the prompts; all if None.
    """
    some = ("--first", str(first)) if first else ()
    together = ("--parallel", ",".join(map(str, batches))) if tuple(batches) != (1,) else ()
    return (
        *(binary, "-m", model, "--prompts", prompts, "-n", str(n_gen), "-r", "1"),
        *("-t", str(threads), "-c", str(ctx * max(batches)), *some, *together, *arm),
    )


def forced_command(
    binary: str,
    model: str,
    prompts: str,
    n_tokens: int,
    threads: int,
    arm: Sequence[str],
    trace: str | None,
) -> tuple[str, ...]:
    """Return the command line that decodes given tokens one by one, recording a trace if asked."""
    out = ("--trace-out", trace) if trace else ()
    return (
        *(binary, "-m", model, "--prompts", prompts, "--forced", "-n", str(n_tokens)),
        *("-t", str(threads), "-c", str(n_tokens), *out, *arm),
    )


def replay_command(
    binary: str,
    model: str,
    prompts: str,
    trace: str,
    n_tokens: int,
    threads: int,
    ctx: int,
    arm: Sequence[str],
    limit_mib: int | None = None,
    host_limit_mib: int | None = None,
) -> tuple[str, ...]:
    """Return the command line that decodes given tokens with the experts of a trace.

    Args:
        binary: the tool.
        model: GGUF file.
        prompts: file with one prompt of at least `n_tokens` tokens.
        trace: routing trace of at least as many.
        n_tokens: tokens decoded.
        threads: CPU threads.
        ctx: context size in tokens.
        arm: the arm's arguments.
        limit_mib: MiB of VRAM that may be used; the rest is occupied.
        host_limit_mib: likewise of host memory.
    """
    limits = {"--vram-limit": limit_mib, "--host-limit": host_limit_mib}
    limit = [word for name, mib in limits.items() if mib for word in (name, str(mib))]
    return (
        *(binary, "-m", model, "--prompts", prompts, "--forced", "--replay", trace),
        *("-n", str(n_tokens), "-t", str(threads), "-c", str(ctx), "-fa", "on", *limit, *arm),
    )


def parse(finished: Finished, expert_cache: str) -> dict[str, Any]:
    """Return the tool's one line as it came, after checking it.

    Raises:
        TecError: no line, more than one, or not what the arm asked for.
    """
    return _lines(finished, expert_cache, 1)[0]


def parse_batches(finished: Finished, expert_cache: str, batches: Sequence[int]) -> dict[str, Any]:
    """Return the tool's lines, one a batch, as `Batches`; the errors are those of `parse`."""
    runs = _lines(finished, expert_cache, len(batches))
    found = [run["parallel"] for run in runs]
    if found != list(batches):
        raise TecError(f"{TOOL} decoded {found} sequences together instead of {list(batches)}")
    return {"runs": runs}


def parse_traced(finished: Finished, expert_cache: str, trace: Path) -> dict[str, Any]:
    """Return the tool's line with the hash of the trace it wrote, as `trace_sha256`."""
    result = parse(finished, expert_cache)
    if not trace.is_file():
        raise TecError(f"{TOOL} wrote no trace", trace)
    return {**result, "trace_sha256": sha256_file(trace)}


def _lines(finished: Finished, expert_cache: str, wanted: int) -> list[dict[str, Any]]:
    lines = finished.stdout.splitlines()
    if len(lines) != wanted:
        raise TecError(f"{TOOL} printed {len(lines)} lines instead of {wanted}")
    return [_line(line, expert_cache) for line in lines]


def _line(line: str, expert_cache: str) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(line)
        status = ExpertBench.model_validate(result).status
    except (json.JSONDecodeError, ValidationError) as error:
        raise TecError(f"{TOOL} printed a line that cannot be read: {error}") from error
    if expert_cache != "off" and not status.engaged:
        raise TecError(
            f"the expert cache was asked for ({expert_cache}) and is not engaged: {status.reason}",
            hint="choose a capacity that fits, or take this arm out of the study",
        )
    return result
