"""The graphics card that a replay is limited on: what is free of it, and that there is only one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from tec.errors import TecError
from tec.process import ToolError

FREE = re.compile(r"--vram-limit: \S+ has (\d+) MiB free, fewer than the limit")
"""How llama-expert-bench says that less is free than it is to leave."""


def free_mib(said: str) -> int:
    """Return how many MiB the card has free, from what the tool said about a limit beyond that.

    Raises:
        TecError: it said something else.
    """
    found = FREE.search(said)
    if found is None:
        raise TecError("cannot read how much memory the GPU has free", said)
    return int(found[1])


def explain_shortage(error: ToolError, search: Path) -> TecError:
    """Return what to do where less is free than when the limits were found.

    Args:
        error: which the tool ended with.
        search: the file, or pattern of files, that keeps what was found.
    """
    return TecError(
        f"less of the GPU's memory is free than when its limits were found: {error.what}",
        error.where,
        "end other programs that use the GPU and run again; or delete what was found, and the "
        f"limits are searched for at what is free now: {search}",
    )


def check_one_gpu(installed: int, visible: str | None) -> None:
    """Raise a TecError if the tools would use several GPUs.

    A limit counts for each of them; what an arm uses is the sum over all.

    Args:
        installed: how many GPUs the machine has.
        visible: the variable CUDA_VISIBLE_DEVICES, if it is set.
    """
    count = installed if visible is None else len(_devices(visible.split(",")))
    if count > 1:
        raise TecError(
            f"{count} GPUs are visible; limits of VRAM are for one",
            "CUDA_VISIBLE_DEVICES" if visible is not None else None,
            "run again with CUDA_VISIBLE_DEVICES=0",
        )


def _devices(names: Sequence[str]) -> list[str]:
    """Return those that CUDA takes: it stops at the first that is none."""
    return list(takewhile(lambda name: name.strip() not in ("", "-1"), names))
