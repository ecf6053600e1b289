"""The fake study with limits of VRAM, and a machine that has a graphics card."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

GPU_MIB = 6_512
"""What the card has free; arms may have 512 less."""

STUDY: dict[str, Any] = {
    "target": "sm_90",
    "arms": {
        "resident": {},
        "resident-aa": {},
        "ncmoe-all": {"options": {"n-cpu-moe": 99}},
        "cached": {"expert_cache": "sweep", "options": {"n-cpu-moe": 99}},
        "ncmoe": {"search": "n-cpu-moe"},
        "ngl": {"search": "gpu-layers"},
        "fit": {"search": "fit"},
    },
    "capacities": {"shares": [0.25, 0.5, 1.0]},
    "protocols": {"replay": {"tokens": 40, "n_gen": 36, "rounds": 2, "threads": 1, "ctx": 64}},
}
FAULTS = {"gpu_mib": GPU_MIB, "big": "big.gguf"}

_NVIDIA_SMI = """#!{python}
import sys
if len(sys.argv) > 1:
    print("NVIDIA H100, 81559, 9.0, 5, 5, 16, 16, 580.1")
"""


def install_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program `nvidia-smi` that shows one card first on the path."""
    folder.mkdir()
    script = folder / "nvidia-smi"
    script.write_text(_NVIDIA_SMI.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
