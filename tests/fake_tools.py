"""Stand-ins for the llama tools: they take the same arguments and print the same kind of results.

Behaviour is steered by the file `faults.json` beside the scripts, a mapping of
  fail: substring of the command line at which the tool exits 1 with an `error:` line
  wrong_logits: substring at which the logits differ from token 3 of the second prompt on
  wrong_tokens: the same for the tokens
  flaky: every process has logits of its own
  all_hits: substring at which no expert has to be copied
  not_engaged: the cache stays off
  torn: the result ends in the middle
  slow: seconds every process takes
  gpu_mib: MiB that a graphics card has free; without it there is none
  layers: of the model in its memory, 2 by default
  grows: substring at which more than 8 tokens do not fit
  big: substring at which the experts are twice as large
Every call appends its command line to `calls.txt`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tec.build import Binary, Manifest

N_EXPERT = 16
N_EXPERT_USED = 2


def install(folder: Path, **faults: Any) -> Manifest:
    """Write the tools into `folder` and return the manifest of a build that has them."""
    folder.mkdir(parents=True, exist_ok=True)
    set_faults(folder, **faults)
    names = ("llama-expert-bench", "llama-bench", "llama-perplexity", "llama-router-trace")
    program = Path(__file__).with_name("fake_tool.py").read_text()
    for name in names:
        script = folder / name
        script.write_text(f"#!{sys.executable} -IS\n{program}")
        script.chmod(0o755)
    return Manifest(
        target="cpu",
        commit="0c1e57098bba43ac29e6e3b677cdceebdd22334f",
        digest="d" * 64,
        series_hash="5" * 64,
        build_type="Release",
        compiler="GNU 12.2.0",
        cuda=None,
        cmake_args=["-DGGML_CUDA=OFF", f"-DCMAKE_MAKE_PROGRAM={folder}/ninja"],
        bin_dir=folder,
        binaries={name: Binary(path=Path(name), sha256="b" * 64) for name in names},
        libraries={},
        seconds=1.0,
    )


def set_faults(folder: Path, **faults: Any) -> None:
    """Change how the installed tools behave from now on."""
    (folder / "faults.json").write_text(json.dumps(faults))


def calls(folder: Path) -> list[str]:
    """Return the command lines of all processes so far, without the program's folder."""
    log = folder / "calls.txt"
    return log.read_text().splitlines() if log.exists() else []
