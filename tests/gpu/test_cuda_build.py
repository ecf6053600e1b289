import subprocess

from tec.build import Manifest


def test_built_tools_see_the_gpu(cuda_build: Manifest) -> None:
    command = [str(cuda_build.bin_dir / "llama-bench"), "--list-devices"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CUDA0" in result.stdout
