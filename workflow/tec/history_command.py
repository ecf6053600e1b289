"""`tec history`: append measured runs to the history, draw it, and say what is in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tec.commit_subjects import commit_subjects
from tec.errors import TecError
from tec.history import History, HistoryRecord, append, load
from tec.history_page import write_page
from tec.launches import condense, project_commit
from tec.outcome import failure_in
from tec.paths import HISTORY, RESULTS, shown
from tec.records import read_records
from tec.trends import trends

PAGE = RESULTS / "history.html"


def read_launches(files: Sequence[Path], commit: str | None) -> list[HistoryRecord]:
    """Return the launches of files of raw records, each a session.

    A file that holds a row's failure instead has none; the user is told.

    Raises:
        TecError: a file is no file of records, or a launch has no throughput.
    """
    launches: list[HistoryRecord] = []
    for file in files:
        if failure := failure_in(file):
            print(f"{file}: the row failed, nothing was measured: {failure.what}", file=sys.stderr)
            continue
        records = read_records(file)
        try:
            launches += condense(records, {record.key.build: commit for record in records})
        except TecError as error:
            raise TecError(error.what, f"{file}: {error.where}", error.hint) from error
    return launches


def load_told(path: Path) -> History:
    """Load a history and tell the user what is wrong with it."""
    history = load(path)
    for problem in history.problems:
        print(f"{path}, {problem}", file=sys.stderr)
    return history


def add_history_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--history`."""
    parser.add_argument(
        "--history", type=Path, default=HISTORY, help="the history (results/history.jsonl)"
    )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec history`."""
    parser = sub.add_parser("history", help="append measured runs to the history, draw or list it")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    appending = actions.add_parser("append", help="append runs; what is there already is left")
    appending.add_argument("runs", type=Path, nargs="+", help="files of raw records")
    appending.add_argument("--commit", help="of this project, if not the one checked out")
    add_history_argument(appending)
    appending.set_defaults(run=_append)
    drawing = actions.add_parser("page", help="draw the history as one HTML file")
    drawing.add_argument("--out", type=Path, default=PAGE, help="the file (results/history.html)")
    add_history_argument(drawing)
    drawing.set_defaults(run=_draw)
    listing = actions.add_parser("list", help="list the series and what is wrong with the file")
    add_history_argument(listing)
    listing.set_defaults(run=_list)


def _append(options: argparse.Namespace) -> None:
    launches = read_launches(options.runs, options.commit or project_commit())
    if not launches:
        raise TecError(
            "nothing was measured in these runs",
            ", ".join(map(str, options.runs)),
            "name files of raw records, such as results/STUDY/runs/*.jsonl",
        )
    done = append(options.history, launches)
    print(f"{options.history}: {done.added} launches appended, {done.known} were there already")


def _draw(options: argparse.Namespace) -> None:
    history = load_told(options.history)
    print(f"drawing {len(history.records)} launches", file=sys.stderr, flush=True)
    drawn = list(trends(history))
    if not drawn:
        raise TecError(
            "there is nothing to draw", shown(options.history), "append runs: tec history append"
        )
    subjects = commit_subjects({record.commit for record in history.records})
    write_page(options.out, drawn, subjects, shown(options.history))
    print(f"{options.out}: {len(drawn)} series")


def _list(options: argparse.Namespace) -> None:
    history = load_told(options.history)
    for series, launches in history.by_series().items():
        sessions = len({launch.session for launch in launches})
        commits = len({launch.commit for launch in launches})
        print(
            f"{series}, {series.system}: {len(launches)} launches, {sessions} sessions, "
            f"{commits} commits, last {launches[-1].started_at:%Y-%m-%d}"
        )
    print(f"{len(history.records)} launches in {len(history.by_series())} series")
