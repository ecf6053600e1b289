"""The policies whose misses the CPU computes, on a GPU: what the resident model says."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_steps import Options, assert_held, policy_steps
from tec.build import Manifest
from tec.policies import ON_CPU

pytestmark = pytest.mark.usefixtures("apart")

RESIDENT: Options = {"gpu-layers": 99, "fit": "off", "flash-attn": "on"}
HOST: Options = {**RESIDENT, "n-cpu-moe": 99, "no-repack": True}


@pytest.mark.parametrize("policy", ON_CPU)
def test_tokens_perplexity_and_divergence_are_those_of_the_resident_model(
    cuda_build: Manifest, tmp_path: Path, policy: str
) -> None:
    """Copied misses are compared to the bit in the same run."""
    assert_held(tmp_path, policy_steps(cuda_build, policy, off=RESIDENT, on=HOST), policy)
