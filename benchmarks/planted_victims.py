"""Plant another choice of victims in the real binary and see whether hits alone give it away.

    python benchmarks/planted_victims.py results/planted-victims

The second oldest slot is evicted instead of the oldest: one file of the build is compiled again and
its library linked, with the commands of the build, into a copy of its programs. Then both builds
run as in `tec regress --against`, one round, and only what is compared exactly counts.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from planted_slowdown import ROW, add_arguments, work_of

from tec.against_session import measure
from tec.build import load_manifest, tool
from tec.files import write_atomically
from tec.interleaving import Side
from tec.regress import show

SOURCE = "ggml-cpu/expert-cache.cpp"
OLDEST = "return std::min_element(stamp + n_pinned, stamp + n_slots) - stamp;"
SECOND = """std::vector<int64_t> stamps(stamp + n_pinned, stamp + n_slots);
        std::nth_element(stamps.begin(), stamps.begin() + 1, stamps.end());
        return std::find(stamp + n_pinned, stamp + n_slots, stamps[1]) - stamp;"""


def main() -> None:
    """Plant, measure, compare; the exit status is that of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, rounds=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = load_manifest(options.build)
    folder = options.out.resolve() / "planted"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(manifest.bin_dir, folder, symlinks=True)
    relink(manifest.bin_dir.parent, folder)
    planted = manifest.model_copy(update={"series_hash": "planted", "bin_dir": folder})
    _, report = measure(
        [work_of(options)], Side(manifest, "before"), Side(planted, "planted"), 600, "exact"
    )
    write_atomically(options.out / "report.json", report.model_dump_json(indent=2) + "\n")
    print(f"{ROW}, {options.arm}: another victim, same tokens")
    show(report)
    sys.exit(report.exit_status)


def relink(build: Path, folder: Path) -> None:
    """Compile the planted rule and link the CPU back end with it into `folder`.

    Args:
        build: cmake's folder.
        folder: copy of its programs.
    """
    listed = subprocess.run(
        [tool("ninja"), "-C", str(build), "-t", "commands", "ggml-cpu"],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = listed.stdout.splitlines()
    compiling = next(line for line in commands if f"{SOURCE} " in f"{line} " and " -c " in line)
    linking = next(line for line in commands if " -o bin/libggml-cpu.so" in line)
    words = compiling.split()
    source, object_ = Path(words[words.index("-c") + 1]), words[words.index("-o") + 1]
    text = source.read_text(encoding="utf-8")
    if OLDEST not in text:
        sys.exit(f"{source}: the rule is not where it was; change OLDEST in {__file__}")
    changed, made = folder / source.name, folder / f"{source.name}.o"
    changed.write_text(text.replace(OLDEST, SECOND), encoding="utf-8")
    compiling = compiling.replace(f"-c {source}", f"-I{source.parent} -c {changed}")
    compiling = compiling.replace(f"-o {object_}", f"-o {made}").replace(
        f"-MF {object_}.d", "-MF /dev/null"
    )
    linking = linking.replace(object_, str(made)).replace("-o bin/", f"-o {folder}/")
    for command in (compiling, linking):
        subprocess.run(command, shell=True, cwd=build, check=True)  # noqa: S602 (the build's own)


if __name__ == "__main__":
    main()
