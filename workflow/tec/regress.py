"""`tec regress`: is this build slower, or does its cache decide otherwise, than the one before?

With runs it compares them with the history; with `--against REV` it builds that revision too and
measures both in turn. The answer is the exit status: 0 no change, 10 regressed, 11 improved, 12
measured nothing, 13 not comparable; 1 and 2 are errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence, Set
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tec import choice
from tec.cells import Launches, by_series
from tec.compare_history import compare_history
from tec.config import TARGETS
from tec.detection import LEVEL
from tec.errors import TecError
from tec.exact import EXACT
from tec.files import write_atomically
from tec.history import History, Series, append
from tec.history_command import add_history_argument, load_told, read_launches
from tec.launches import project_commit
from tec.paths import against_folder, shown
from tec.regress_summary import markdown_summary
from tec.regression import LABELS, TIMED, Comparison, Metric, Mode, Report, Side, Trend
from tec.trends import trend_of

_METRICS: dict[str, Sequence[Metric]] = {"all": (*TIMED, *EXACT), "timed": TIMED, "exact": EXACT}

_SHOWN = 4
"""Cells with the same finding and reason that are shown one by one."""


def report_of(
    mode: Mode,
    old: Launches,
    new: Launches,
    comparisons: Sequence[Comparison],
    metrics: str = "all",
    trends: Sequence[Trend] = (),
    warnings: Sequence[str] = (),
) -> Report:
    """Return the report of a comparison, of some of the metrics."""
    return Report(
        created_at=datetime.now(UTC),
        mode=mode,
        level=LEVEL,
        new=side_of(new),
        old=side_of(old) if old else None,
        comparisons=tuple(cell for cell in comparisons if cell.metric in _METRICS[metrics]),
        trends=tuple(trends),
        warnings=tuple(warnings),
    )


def side_of(launches: Launches) -> Side:
    """Return what is on one side of a comparison."""
    return Side(
        builds=tuple(dict.fromkeys(launch.build for launch in launches)),
        commits=tuple(dict.fromkeys(launch.commit for launch in launches if launch.commit)),
        launches=len(launches),
        sessions=len({launch.session for launch in launches}),
    )


def after_history(history: History, new: Launches, whole: bool, metrics: str) -> Report:
    """Return what new launches show beside a history, which may have them already."""
    sessions = {launch.session for launch in new}
    past = [record for record in history.records if record.session not in sessions]
    cells = compare_history(past, new, whole)
    seen = {launch.series for launch in new}
    known = {series for series in history.by_series() if series in seen}
    warnings = [str(problem) for problem in history.problems]
    warnings += [f"{series} is new: nothing to compare with" for series in seen - known]
    trends = _changed_trends([*past, *new], seen, metrics)
    return report_of("history", past, new, cells, metrics, trends, sorted(warnings))


def _changed_trends(launches: Launches, seen: Set[Series], metrics: str) -> list[Trend]:
    """Return the trends of the series that were measured which have a change point."""
    wanted = [metric for metric in TIMED if metric in _METRICS[metrics]]
    groups = by_series(launch for launch in launches if launch.series in seen).values()
    found = [trend_of(group, metric) for group in groups for metric in wanted]
    return [trend for trend in found if trend and trend.change_points]


def show(report: Report) -> None:
    """Print what was found, what matters first."""
    for warning in report.warnings:
        print(warning, file=sys.stderr)
    quiet = [cell for cell in report.comparisons if cell.finding == "no change"]
    loud: dict[tuple[str, str], list[Comparison]] = {}
    for cell in report.comparisons:
        if cell not in quiet:
            loud.setdefault((cell.finding, cell.detail), []).append(cell)
    for (finding, detail), cells in loud.items():
        shown = "; ".join(_words(cell) for cell in cells[:_SHOWN])
        more = f" and {len(cells) - _SHOWN} cells more" if len(cells) > _SHOWN else ""
        print(f"{finding}: {shown}{more}: {detail}")
    for trend in report.trends:
        for change in trend.change_points:
            commit = (change.commit or "unknown commit")[:12]
            print(
                f"level changed at {commit}: {trend.row}, {trend.arm}, {LABELS[trend.metric]}: "
                f"{change.before:.5g} became {change.after:.5g}"
            )
    print(
        f"{report.finding}: {len(report.comparisons)} cells, {len(quiet)} without a change; chance "
        f"of a false alarm in all of them {report.level:.0%}"
    )


def _words(cell: Comparison) -> str:
    """Return which cell it is, with its interval, as text."""
    text = f"{cell.row}, {cell.arm}, {cell.protocol}, {LABELS[cell.metric]}"
    if cell.ratio is None or cell.lo is None or cell.hi is None:
        return text
    return f"{text} {cell.ratio - 1:+.1%} [{cell.lo - 1:+.1%}, {cell.hi - 1:+.1%}]"


def read_report(path: Path) -> Report:
    """Read a report; a TecError if it is none."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise TecError(
            f"this is no report of tec regress: {type(error).__name__}",
            path,
            "write one: tec regress RUNS --json FILE",
        ) from error


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec regress`."""
    parser = sub.add_parser(
        "regress",
        help="compare runs with the history, or this build with another revision's",
        description=__doc__,
    )
    parser.add_argument("runs", type=Path, nargs="*", help="new files of raw records")
    add_history_argument(parser)
    parser.add_argument("--append", action="store_true", help="append what was measured")
    parser.add_argument("--commit", help="of the runs, if not the one checked out")
    parser.add_argument(
        "--partial", action="store_true", help="an arm that the runs lack is not missed"
    )
    parser.add_argument("--metrics", choices=_METRICS, default="all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument(
        "--status", type=Path, metavar="FILE", help="show a report again and end with its status"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write a summary that a bot can post there"
    )
    parser.add_argument(
        "--status-zero", action="store_true", help="end with 0; the report has the status"
    )
    _add_against(parser)
    parser.set_defaults(run=_regress)


def _add_against(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("interleaved with another revision's build")
    group.add_argument("--against", metavar="REV", help="commit, branch or tag to compare with")
    group.add_argument("--study", default="demo")
    group.add_argument("--rows", help="only these rows, with commas")
    group.add_argument("--protocol", default="prompts", choices=("prompts", "random", "replay"))
    group.add_argument("--target", choices=TARGETS, help="in place of the study's")
    group.add_argument("--wait", type=float, default=600, help="seconds for another measurement")
    choice.add_arguments(parser)


def _regress(options: argparse.Namespace) -> int:
    if options.status:
        report = read_report(options.status)
        show(report)
        return report.exit_status
    if bool(options.runs) == bool(options.against):
        raise TecError(
            "name new runs, or a revision with --against REV",
            "tec regress",
            "such as: tec regress results/demo/runs/*.prompts.jsonl",
        )
    report = _against(options) if options.against else _runs(options)
    if options.json:
        write_atomically(options.json, report.model_dump_json(indent=2) + "\n")
    if options.markdown:
        write_atomically(options.markdown, markdown_summary(report, _records(options)))
    show(report)
    return 0 if options.status_zero else report.exit_status


def _records(options: argparse.Namespace) -> list[str]:
    """Return where the raw records of a report are, and the history."""
    raw = list(options.runs) or [against_folder(options.study)]
    history = [options.history] if options.append or options.runs else []
    return [shown(path) for path in (*raw, *history)]


def _runs(options: argparse.Namespace) -> Report:
    new = read_launches(options.runs, options.commit or project_commit())
    report = after_history(load_told(options.history), new, not options.partial, options.metrics)
    if options.append and new:
        append(options.history, new)
    return report


def _against(options: argparse.Namespace) -> Report:
    from tec.against_session import against  # builds and measures; runs need neither

    launches, report = against(options)
    new = [launch for launch in launches if launch.build in report.new.builds]
    if options.append and new:  # the old build's would stand after those of later commits
        append(options.history, new)
    return report
