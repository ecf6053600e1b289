"""`tec rerun ROW`: measure a row again on the present build, append it, redraw what depends on it.

A kept measurement is never measured again, so it is set aside first: it stays beside the new one,
and the history has both. With `--arm` one arm runs (and the one with the cache off, where the
protocol needs it); no table is made from that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tec.build import default_jobs
from tec.choice import choose
from tec.config import DEFAULT_STUDY, load_row
from tec.errors import TecError
from tec.history import append
from tec.history_command import add_history_argument, read_launches
from tec.launches import project_commit
from tec.measure import kept_file
from tec.outcome import failure_in
from tec.paths import RESULTS, ROOT, build_manifest, model_record, relative
from tec.records import Protocol
from tec.selection import Selection, select

TIMED: tuple[Protocol, ...] = ("prompts", "random", "replay")


def rerun(options: argparse.Namespace) -> None:
    """Do what the command says.

    Raises:
        TecError: the study has no such row, arm or protocol; a measurement failed.
    """
    selection = select({"study": options.study, "rows": options.row})
    row = load_row(options.row).name
    wanted = [p for p in options.protocol or TIMED if p in selection.protocols(row)]
    if not wanted:
        raise TecError(
            f"row {row} has none of the protocols {', '.join(options.protocol or TIMED)}",
            f"study {options.study}",
            f"choose from {', '.join(selection.protocols(row))}",
        )
    files = [_runs_file(selection, row, protocol, options.arm) for protocol in wanted]
    for protocol in wanted:
        set_aside(selection, row, protocol, options.arm)
    _snakemake(options, ["--force", *map(relative, files)])
    failed = [failure for file in files if (failure := failure_in(file))]
    if failed:
        raise failed[0].error()
    done = append(options.history, read_launches(files, project_commit()))
    print(f"{options.history}: {done.added} launches appended")
    if options.arm is None and not options.measure_only:
        _snakemake(options, ["all"])


def set_aside(selection: Selection, row: str, protocol: Protocol, arm: str | None) -> Path | None:
    """Rename the kept measurement that would be taken instead of a new one; return its new name."""
    build = build_manifest(selection.target)
    record = model_record(row, selection.study.variant(row))
    if not build.exists() or not record.exists():
        return None  # never measured here
    chosen = choose(arm)
    kept = kept_file(selection.study, row, protocol, chosen, build, record)
    if not kept.exists():
        return None
    number = 1
    while (aside := kept.with_name(f"{kept.name}.earlier{number}")).exists():
        number += 1
    kept.rename(aside)
    print(f"the measurement before is {relative(aside)}", file=sys.stderr)
    return aside


def _runs_file(selection: Selection, row: str, protocol: str, arm: str | None) -> Path:
    """Return the file that the pipeline makes of a measurement."""
    folder = RESULTS / selection.study.name
    if arm is None:
        return folder / "runs" / f"{row}.{protocol}.jsonl"
    return folder / "arms" / f"{row}.{protocol}.{arm}.jsonl"


def _snakemake(options: argparse.Namespace, words: Sequence[str]) -> None:
    command = [sys.executable, "-m", "snakemake", "--cores", str(default_jobs()), *words]
    command += ["--config", f"study={options.study}"]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        raise TecError(
            f"the pipeline ended with status {status}",
            " ".join(words),
            "read what it says above; the same command continues",
        )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec rerun`."""
    parser = sub.add_parser(
        "rerun", help="measure a row again, append it to the history, redraw what depends on it"
    )
    parser.add_argument("row")
    parser.add_argument("--study", default=DEFAULT_STUDY)
    parser.add_argument("--arm", help="only this arm")
    parser.add_argument(
        "--protocol", action="append", choices=TIMED, help="all of the row's; may be repeated"
    )
    parser.add_argument("--measure-only", action="store_true", help="append, redraw nothing")
    add_history_argument(parser)
    parser.set_defaults(run=rerun)
