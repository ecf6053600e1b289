"""llama.cpp's own tests of what the patches touch still pass on the patched tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a test program; both streams are in stdout."""
    return subprocess.run(
        [program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test-alloc", ()),
        ("test-gguf", ()),
        ("test-backend-ops", ("test", "-b", "CPU", "-o", "ADD_ID,GLU,TOPK_MOE")),
        (
            "test-backend-ops",
            ("test", "-b", "CPU", "-o", "MUL_MAT_ID", "-p", "n_mats=4,n_used=2"),
        ),
        ("test-llama-archs", ()),
    ],
    ids=["alloc", "gguf", "ops of a MoE layer", "mul_mat_id", "every architecture"],
)
def test_passes(binaries: dict[str, Path], name: str, arguments: tuple[str, ...]) -> None:
    result = run(binaries[name], *arguments)
    assert result.returncode == 0, result.stdout[-2000:]


def test_arguments_parse(binaries: dict[str, Path]) -> None:
    """The last part of this program downloads a file, which machines without a network cannot."""
    result = run(binaries["test-arg-parser"])
    reached = "test download functions" in result.stdout
    assert result.returncode == 0 or reached, result.stdout[-2000:]
