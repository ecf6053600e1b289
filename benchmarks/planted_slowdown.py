"""Plant a slowdown in the real binary and see whether it is found.

    python benchmarks/planted_slowdown.py results/planted --share 0.03 --rounds 40
    python benchmarks/planted_slowdown.py results/planted --share 0      # nothing may be found

Both sides are the same build of study demo's row pydoc-moe; one runs with `slower.c`, which spends
`--share` more of the time of every graph. What `tec regress --against` does with two builds is done
with these two, raw records, confirmation and report included. `--priority` runs the tools at
real-time priority, which keeps other programs of a busy machine out; it needs root.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from tec.against_session import measure
from tec.build import Manifest, load_manifest
from tec.choice import choose
from tec.config import load_row, load_study
from tec.files import write_atomically
from tec.history import append
from tec.interleaving import Side, Work
from tec.models import read_model
from tec.paths import build_manifest, model_record
from tec.regress import show

ROW, TOOL = "pydoc-moe", "llama-expert-bench"


def main() -> None:
    """Measure, compare, and write `report.json`, the history and the raw records."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, rounds=40)
    parser.add_argument("--share", type=float, default=0.03, help="of every graph's time (0.03)")
    parser.add_argument("--priority", action="store_true", help="real-time, by chrt")
    parser.add_argument("--lock", type=Path, help="file that every launch locks")
    options = parser.parse_args()
    manifest = wrapped(options, load_manifest(options.build))
    library = compile_library(options.out)
    slower = manifest.model_copy(update={"series_hash": "planted"})
    environment = {"LD_PRELOAD": str(library), "SLOWER_BY": str(options.share)}
    work = work_of(options)
    launches, report = measure(
        [work], Side(manifest, "before"), Side(slower, "planted", environment), wait=600
    )
    append(options.out / "history.jsonl", launches)
    write_atomically(options.out / "report.json", report.model_dump_json(indent=2) + "\n")
    show(report)
    sys.exit(report.exit_status)


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add what says where things are, and how often the arm runs."""
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--arm", default="cached-c16")
    parser.add_argument("--build", type=Path, default=build_manifest("cpu"), help="manifest.json")


def compile_library(folder: Path) -> Path:
    """Return the library to preload, compiled into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder.resolve() / "slower.so"
    source = Path(__file__).with_name("slower.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def wrapped(options: argparse.Namespace, manifest: Manifest) -> Manifest:
    """Return the build with the measured tool behind a script that sets lock and priority."""
    words = ["flock", str(options.lock)] if options.lock else []
    words += ["chrt", "-f", "10"] if options.priority else []
    if not words:
        return manifest
    folder = options.out.resolve() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / TOOL
    script.write_text(
        f'#!/bin/sh\nexec {shlex.join([*words, str(manifest.bin_dir / TOOL)])} "$@"\n'
    )
    script.chmod(0o755)
    return manifest.model_copy(update={"bin_dir": folder})


def work_of(options: argparse.Namespace) -> Work:
    """Return what is run: one arm of the shipped model."""
    study, row = load_study("demo"), load_row(ROW)
    return Work(
        study=study,
        row=row,
        model=read_model(model_record(ROW, "full")),
        protocol="prompts",
        choice=choose(options.arm, None, options.rounds),
        rounds=options.rounds,
        out=options.out / "runs.jsonl",
        log=options.out / "log.txt",
    )


if __name__ == "__main__":
    main()
