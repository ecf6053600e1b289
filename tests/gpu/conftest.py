"""GPU tests run where there is a CUDA GPU and its target is built; elsewhere they say why not."""

import shutil
import subprocess

import pytest

from tec.build import Manifest, load_manifest
from tec.paths import build_manifest


@pytest.fixture(scope="session")
def cuda_build() -> Manifest:
    """The build for this machine's first GPU."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no CUDA GPU on this machine (no nvidia-smi)")
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"no CUDA GPU on this machine ({result.stdout.strip()})")
    target = f"sm_{result.stdout.splitlines()[0].strip().replace('.', '')}"
    manifest = build_manifest(target)
    if not manifest.exists():
        pytest.skip(f"the GPU's target is not built: tec build {target}")
    return load_manifest(manifest)
