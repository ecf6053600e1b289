"""Contexts with a cache leave nothing behind; `test-expert-cache-contexts` creates hundreds."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tec.paths import ROOT

MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
N_CHECKS = 7


def test_contexts_leave_nothing_behind(binaries: dict[str, Path]) -> None:
    program = binaries["test-expert-cache-contexts"]
    done = subprocess.run([program, "-m", MODEL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(": ok\n") == N_CHECKS
