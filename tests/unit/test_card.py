"""The card: which messages are about its memory, and that it is alone."""

from __future__ import annotations

import pytest

from tec.card import check_one_gpu
from tec.errors import TecError
from tec.prober import MISFIT

DEVICE = [
    "allocating 900.00 MiB on device 0: cudaMalloc failed: out of memory",
    "CUDA error: out of memory",
    "alloc_tensor_range: failed to allocate CUDA0 buffer of size 943718400",
    "error: cannot load 'm.gguf': unable to allocate CUDA0 buffer",
    "expert cache: 64 slots of 50.6 MiB do not fit: the largest capacity that does is 40",
    "expert cache: cannot allocate 64 slots in CUDA0: choose a smaller capacity",
]
HOST = [
    "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 943718400",
    "alloc_tensor_range: failed to allocate CPU buffer of size 943718400",
    "error: cannot load 'm.gguf': unable to allocate CPU buffer",
    "error: cannot load 'm.gguf': unable to allocate CUDA_Host buffer",
    "failed to allocate 900.00 MiB of pinned memory: out of memory",
    "error: the prompt of 9 tokens and 9 more do not fit the context of 8",
    "--vram-limit: CUDA0 has 900 MiB free, fewer than the limit: choose at most that",
    "cudaMalloc failed: out of memory\nerror: --vram-limit: cannot occupy 900 MiB of CUDA0",
]


@pytest.mark.parametrize("said", DEVICE)
def test_a_device_that_is_full_is_a_misfit(said: str) -> None:
    assert MISFIT.search(f"loading\n{said}\nmore\n")


@pytest.mark.parametrize("said", HOST)
def test_a_host_that_is_full_is_none(said: str) -> None:
    assert not MISFIT.search(f"loading\n{said}\nmore\n")


@pytest.mark.parametrize(
    ("installed", "visible"), [(0, None), (1, None), (8, "3"), (8, ""), (8, "-1"), (8, "0,-1,1")]
)
def test_one_gpu_is_enough(installed: int, visible: str | None) -> None:
    check_one_gpu(installed, visible)


@pytest.mark.parametrize(("installed", "visible"), [(2, None), (8, "0,1"), (1, "GPU-a,GPU-b")])
def test_several_gpus_are_refused(installed: int, visible: str | None) -> None:
    with pytest.raises(TecError, match="2 GPUs are visible") as caught:
        check_one_gpu(installed, visible)
    assert "CUDA_VISIBLE_DEVICES=0" in str(caught.value)
