"""Decoding beside ik_llama.cpp, the strongest engine without an expert cache, in the same VRAM.

    python benchmarks/beside_ik_llama.py measure MODEL.gguf OUT.jsonl --ik IK/bin/llama-bench
    python benchmarks/beside_ik_llama.py table OUT.jsonl        # of such records; no card needed

`llama-bench` of both engines decodes the same unseeded random tokens, so both follow the same
routing, which no trace can be made to do there. For each capacity the arm `lru` is run first, and
what it used at most is the limit: ik_llama.cpp gets the most layers with experts in VRAM with which
it stays within. Then all arms run in turn, round after round, every launch a process of its own.
VRAM is what `nvidia-smi` shows in use while a process runs, less what was in use before.

ik_llama.cpp comes with its Python package, which has its source:

    pip download --no-deps --no-binary :all: ik-llama-cpp-python==0.1.5 && tar xf ik_*.tar.gz
    cmake -S ik_*/vendor/ik_llama.cpp -B IK -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON
    cmake --build IK -j --target llama-bench
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tec.build import load_manifest
from tec.errors import TecError
from tec.files import append_durably
from tec.gguf_file import Geometry, read_geometry
from tec.llama_bench import TOOL, LlamaBench
from tec.paths import build_manifest
from tec.portable_text import portable
from tec.process import ToolError, run_tool
from tec.records import read_lines
from tec.stats import Interval, paired_ratio
from tec.table import times
from tec.vram_search import most_that_fit

OURS = {
    "lru": (),
    "hot": ("--expert-cache-policy", "hot", "--repack", "0"),
    "hybrid": ("--expert-cache-policy", "hybrid", "--repack", "0"),
}
THEIRS = {"ik": ("-rtr", "0"), "ik-rtr": ("-rtr", "1")}
SHARES = (0.25, 0.5, 0.75)
_SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0")
_LOG = "beside_ik_llama.log"


class BenchTest(LlamaBench):
    """One test of either engine's llama-bench, as `-o json` has it."""

    samples_ts: tuple[float, ...]
    build_commit: str


class Launch(BaseModel):
    """One process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str
    capacity: int
    """Slots per layer of the arm that sets the limit."""
    round: int
    """From 0; -1 while the limit is looked for."""
    n_cpu_moe: int
    """Layers whose experts are in host memory."""
    vram_mib: int
    """At most, while it ran."""
    tps: tuple[float, ...]
    """Decoded tokens per second, a value for each repetition."""
    hits: int
    misses: int
    commit: str
    command: tuple[str, ...]


class VramPeak:
    """What is in use of the card's memory at most while this is entered, beyond what was before."""

    def __enter__(self) -> VramPeak:
        self._before = _in_use()
        self.mib = 0
        self._watch = subprocess.Popen([*_SMI, "-lms", "20"], stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._look, args=(self._watch.stdout,))
        self._thread.start()
        return self

    def _look(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.mib = max(self.mib, int(line) - self._before)

    def __exit__(self, *_: object) -> None:
        self._watch.terminate()
        self._thread.join()
        self._watch.wait()


def _in_use() -> int:
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise TecError(
            "nvidia-smi cannot say what is in use", hint="run on a CUDA machine"
        ) from error
    return int(done.stdout)


class Comparison:
    """Launches of both engines with one model, appended to a file as they end."""

    def __init__(self, options: argparse.Namespace, geometry: Geometry) -> None:
        self.options = options
        self.geometry = geometry

    def run(self) -> None:
        """Measure every capacity, one after the other."""
        for share in self.options.shares:
            capacity = max(self.geometry.n_expert_used, round(share * self.geometry.n_expert))
            on_cpu = self._placement(capacity)
            for number in range(self.options.rounds):
                for arm in self.options.arms:
                    self._launch(arm, capacity, number, on_cpu)

    def _placement(self, capacity: int) -> int:
        """Return how many layers' experts ik_llama.cpp has to leave in host memory."""
        n_layer = self.geometry.n_layer
        limit = self._launch("lru", capacity, -1, n_layer).vram_mib

        def loads(on_gpu: int) -> bool:
            try:
                return self._launch("ik", capacity, -1, n_layer - on_gpu).vram_mib <= limit
            except ToolError as error:
                if "out of memory" in error.said:
                    return False
                raise

        found = most_that_fit(capacity * n_layer // self.geometry.n_expert, n_layer, loads)
        if found.value is None:
            raise TecError(
                f"ik_llama.cpp needs more than {limit} MiB with no expert in VRAM",
                hint="choose a larger share",
            )
        return n_layer - found.value

    def _launch(self, arm: str, capacity: int, number: int, on_cpu: int) -> Launch:
        ours = arm in OURS
        on_cpu = self.geometry.n_layer if ours else on_cpu
        repetitions = self.options.repetitions if number >= 0 else 1
        command = (
            *(str(self.options.tec if ours else self.options.ik), "-m", str(self.options.model)),
            *("-p", "0", "-n", str(self.options.n_gen), "-r", str(repetitions)),
            *("-fa", "1", "-ngl", "99", "-t", str(self.options.threads), "-o", "json"),
            *("--n-cpu-moe", str(on_cpu)),
            *(("--expert-cache", str(capacity), *OURS[arm]) if ours else THEIRS[arm]),
        )
        with VramPeak() as peak:
            done = run_tool(command, {}, self.options.out.with_name(_LOG))
        test = parse(done.stdout, command[0])
        if ours and test.capacity != capacity:
            raise TecError(f"{arm}: {capacity} slots were asked for and are not there", command[0])
        launch = Launch(
            arm=arm,
            capacity=capacity,
            round=number,
            n_cpu_moe=on_cpu,
            vram_mib=peak.mib,
            tps=test.samples_ts,
            hits=test.expert_cache_hits,
            misses=test.expert_cache_misses,
            commit=test.build_commit,
            command=tuple(portable(word) for word in command),
        )
        keep(self.options.out, launch)
        speed = np.mean(launch.tps)
        print(f"{capacity:4} {arm:7} {number:2} {launch.vram_mib:6} MiB {speed:6.1f} tok/s")
        return launch


def parse(printed: str, program: str) -> BenchTest:
    """Return what either engine's `-o json` says.

    Raises:
        TecError: it is not one test.
    """
    try:
        (test,) = TypeAdapter(list[BenchTest]).validate_json(printed)
    except ValueError as error:
        raise TecError(f"this is not one test of llama-bench: {error}", program) from error
    return test


def keep(path: Path, launch: Launch) -> None:
    """Append a launch.

    Raises:
        TecError: the disk is full; the file is left as it was.
    """
    line = launch.model_dump_json().encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        append_durably(file, line, "this launch was not kept", "free some space and run again")


def table(launches: Iterable[Launch]) -> str:
    """Return a Markdown table: for each capacity and arm its speed and ratio to `ik-rtr`.

    Speeds are means over the rounds; a ratio is the geometric mean over rounds that both have, with
    its 95 % bootstrap interval where there are several.
    """
    measured = [launch for launch in launches if launch.round >= 0]
    head = ("slots", "arm", "experts of layers in host memory", "VRAM MiB", "tok/s", "hits")
    lines = [(*head, "beside ik-rtr"), ("---:", "---", "---:", "---:", "---:", "---:", "---")]
    for capacity in sorted({launch.capacity for launch in measured}):
        here = [launch for launch in measured if launch.capacity == capacity]
        speeds = {arm: _speeds(here, arm) for arm in (*OURS, *THEIRS)}
        for arm, by_round in speeds.items():
            if by_round:
                ratio = _ratio(by_round, speeds["ik-rtr"])
                lines.append((str(capacity), arm, *_cells(here, arm, by_round), ratio))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _speeds(launches: Iterable[Launch], arm: str) -> dict[int, float]:
    return {one.round: float(np.mean(one.tps)) for one in launches if one.arm == arm}


def _cells(
    launches: Iterable[Launch], arm: str, speeds: dict[int, float]
) -> tuple[str, str, str, str]:
    of_arm = [one for one in launches if one.arm == arm]
    hits, misses = sum(one.hits for one in of_arm), sum(one.misses for one in of_arm)
    return (
        "all" if arm in OURS else str(of_arm[0].n_cpu_moe),
        str(max(one.vram_mib for one in of_arm)),
        f"{np.mean(list(speeds.values())):.1f}",
        f"{100 * hits / (hits + misses):.1f} %" if hits + misses else "",
    )


def _ratio(speeds: dict[int, float], beside: dict[int, float]) -> str:
    if not speeds.keys() & beside.keys() or speeds is beside:
        return ""
    found: Interval = paired_ratio(speeds, beside)
    interval = "" if found.lo is None else f" [{found.lo:.2f}, {found.hi:.2f}]"
    return f"{times(found.value)}{interval}"


def main() -> int:
    """Measure, or print the table of what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    shown = commands.add_parser("table")
    shown.add_argument("out", type=Path)
    measured = commands.add_parser("measure")
    measured.add_argument("model", type=_resolved, help="GGUF")
    measured.add_argument("out", type=Path, help="JSON lines, appended")
    measured.add_argument("--ik", type=_resolved, required=True, help="llama-bench of ik_llama.cpp")
    measured.add_argument("--tec", type=_resolved, help="the patched one (of target sm_90)")
    measured.add_argument("--arms", type=_names, default=[*OURS, *THEIRS])
    measured.add_argument("--shares", type=_numbers, default=list(SHARES), help="of the experts")
    measured.add_argument("--rounds", type=int, default=3)
    measured.add_argument("--repetitions", type=int, default=3, help="in a process")
    measured.add_argument("--n-gen", type=int, default=128)
    measured.add_argument("--threads", type=int, default=16)
    options = parser.parse_args()
    try:
        if options.what == "measure":
            options.tec = options.tec or load_manifest(build_manifest("sm_90")).bin_dir / TOOL
            Comparison(options, read_geometry(options.model)).run()
        print(table(read_lines(options.out, Launch)))
    except TecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _resolved(path: str) -> Path:
    return Path(path).resolve()  # tools run in the repository's root


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in OURS and name not in THEIRS]:
        raise argparse.ArgumentTypeError(f"no arm {unknown[0]}: {', '.join([*OURS, *THEIRS])}")
    return names


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
