"""Running built programs as a user would, without a keyboard."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence


def run_program(
    command: Sequence[object], timeout: float, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its exit status, and return what it wrote.

    Args:
        command: program and arguments.
        timeout: seconds.
        variables: of the environment, beside this process's.
    """
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
