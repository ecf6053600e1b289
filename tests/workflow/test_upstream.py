"""llama.cpp's own tests of what the patches touch still pass on the patched tree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TIMEOUT = 1800
DOWNLOAD_TIMEOUT = 60
"""Seconds; without a network the part that downloads may wait for ever."""


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a test program; both streams are in stdout."""
    return subprocess.run(
        [program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


@pytest.mark.parametrize("name", ["test-alloc", "test-gguf", "test-llama-archs"])
def test_passes(binaries: dict[str, Path], name: str) -> None:
    result = run(binaries[name])
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "ADD_ID,GLU,TOPK_MOE"),
        ("-o", "MUL_MAT_ID", "-p", "n_mats=4,n_used=2"),
    ],
    ids=["ops of a MoE layer", "mul_mat_id"],
)
def test_operations_pass(binaries: dict[str, Path], arguments: tuple[str, ...]) -> None:
    """The program also exits 0 when a filter finds no test at all."""
    result = run(binaries["test-backend-ops"], "test", "-b", "CPU", *arguments)
    assert result.returncode == 0, result.stdout[-2000:]
    passed = re.search(r"\b(\d+)/\1 tests passed", result.stdout)
    assert passed, result.stdout[-2000:]
    assert int(passed[1]) > 0


def test_arguments_parse(binaries: dict[str, Path]) -> None:
    """The last part of this program downloads a file, which machines without a network cannot."""
    with subprocess.Popen(
        [binaries["test-arg-parser"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=DOWNLOAD_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    reached = "test download functions" in output
    assert process.returncode == 0 or reached, output[-2000:]
