"""What became of a row: a failure takes the place of the files that it kept from being made.

The pipeline's graph is fixed before it runs, so a row that fails must still leave the files that
the tables are made from. In the pipeline a command writes its failure into them and ends well; the
commands after it hand the failure on, and the tables show it. The run reports it at its end, fails,
and takes the failures away, so that the next run tries these rows again.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tec.config import Variant
from tec.errors import RunError, TecError, disk_is_full
from tec.files import write_atomically
from tec.paths import CACHE
from tec.portable_text import portable
from tec.records import Record, Verdict, read_records, read_verdicts
from tec.verdicts import enforce as enforce_parity

_BEGIN = b'{"failure":'

STOPPED = CACHE / "stopped.json"
"""Says why the pipeline's run cannot go on, for its later jobs; a run begins without it."""


class Failure(BaseModel):
    """Why a row has no result; the file that has it holds nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    variant: Variant | None = None
    stage: str
    """What was being done: model, measure prompts, parity run ..."""
    what: str
    where: str | None = None
    hint: str | None = None

    @property
    def reason(self) -> str:
        """The failure in one line, for a cell of a table."""
        place = f" ({self.where})" if self.where else ""
        return " ".join(f"{self.stage}: {self.what}{place}".split())

    def error(self) -> TecError:
        """Return the failure as the error it was."""
        return TecError(
            f"row {self.row} failed at {self.stage}: {self.what}", self.where, self.hint
        )


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--failure-as-outcome`, which the pipeline's rules set."""
    parser.add_argument(
        "--failure-as-outcome",
        action="store_true",
        help="when the row fails, write the failure in place of the output and end well",
    )


def attempt(
    work: Callable[[], object],
    options: argparse.Namespace,
    *,
    row: str,
    stage: str,
    reads: Sequence[Path],
    makes: Sequence[Path],
    variant: Variant | None = None,
) -> None:
    """Do a row's work; with `--failure-as-outcome` a failure becomes its output.

    Args:
        work: makes the files `makes` from, among others, the files `reads`.
        options: the command's arguments.
        row: the row's name.
        stage: what is being done, for the reader of the table.
        reads: files that may hold an earlier failure, which is then handed on.
        makes: the files that the pipeline expects from this command.
        variant: the form in which the row takes part, where it is known.

    Raises:
        TecError: the row failed and that is not to be an outcome.
        RunError: what is wrong concerns more than this row, now or in an earlier job of the run.
        Exception: as a TecError, where the failure is not to be an outcome.
    """
    if options.failure_as_outcome:
        _refuse_if_stopped()
    earlier = next((found for path in reads if (found := failure_in(path))), None)
    try:
        if earlier:
            raise earlier.error()
        work()
    except Exception as error:
        if not options.failure_as_outcome:
            raise
        if concerns_the_run(error):
            _stop(error)
            raise
        failure = earlier or _failure(error, row, variant, stage)
        for path in makes:
            write_atomically(path, json.dumps({"failure": failure.model_dump()}) + "\n")
        if earlier:
            print(f"row {row} failed at {earlier.stage}: {stage} is left out", file=sys.stderr)
        else:
            _tell(error)
            print(f"row {row} has failed; the others go on", file=sys.stderr)


def _failure(error: Exception, row: str, variant: Variant | None, stage: str) -> Failure:
    """Return what others may read of an error; the whole of it is told on standard error."""
    known = error if isinstance(error, TecError) else TecError(f"{type(error).__name__}: {error}")
    where = "" if known.where is None else portable(str(known.where))
    return Failure(
        row=row,
        variant=variant,
        stage=stage,
        what=portable(known.what),
        where=None if where in ("", "URL") else where,
        hint=None if known.hint is None else portable(known.hint),
    )


def _tell(error: Exception) -> None:
    """Print an error; of one that nobody foresaw, where it comes from as well."""
    if not isinstance(error, TecError):
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)


def _stop(error: Exception) -> None:
    """Leave word that the run cannot go on; on a full disk there may be no room for it."""
    known = error if isinstance(error, TecError) else TecError(str(error))
    where = None if known.where is None else str(known.where)
    with suppress(OSError):
        write_atomically(STOPPED, json.dumps([known.what, where, known.hint]) + "\n")


def _refuse_if_stopped() -> None:
    """Raise the RunError that stopped an earlier job of this run, if one did."""
    with suppress(FileNotFoundError):
        raise RunError(*json.loads(STOPPED.read_text(encoding="utf-8")))


def concerns_the_run(error: BaseException) -> bool:
    """Say whether an error would strike every row: the machine is taken or the disk is full."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RunError) or disk_is_full(cause):
            return True
        cause = cause.__cause__
    return False


def failure_in(path: Path) -> Failure | None:
    """Return the failure that stands in the place of a file's content, if one does."""
    try:
        with path.open("rb") as file:
            if file.read(len(_BEGIN)) != _BEGIN:
                return None
    except OSError:
        return None
    return Failure.model_validate(json.loads(path.read_text(encoding="utf-8"))["failure"])


def read_records_or_failure(path: Path) -> list[Record] | Failure:
    """Read a file of records or the failure in its place; the errors are `read_records`'."""
    return failure_in(path) or read_records(path)


def read_verdicts_or_failure(path: Path) -> list[Verdict] | Failure:
    """Read a file of verdicts or the failure in its place; the errors are `read_records`'."""
    return failure_in(path) or read_verdicts(path)


def failures_in(paths: Iterable[Path]) -> list[Failure]:
    """Return every row's first failure, in the order of the files."""
    found: dict[str, Failure] = {}
    for path in paths:
        if failure := failure_in(path):
            found.setdefault(failure.row, failure)
    return list(found.values())


def take_away(paths: Iterable[Path]) -> list[Failure]:
    """Remove the files that hold a failure, so that they are made again; return the failures."""
    paths = list(paths)
    failures = failures_in(paths)
    for path in paths:
        if failure_in(path):
            path.unlink()
    return failures


def failed_rows(failures: Sequence[Failure]) -> TecError:
    """Return the error that ends a run with failed rows."""
    lines = [f"  {failure.row}: {failure.reason}" for failure in failures]
    hints = [f"{failure.row}: {failure.hint}" for failure in failures if failure.hint]
    rows = "1 row" if len(failures) == 1 else f"{len(failures)} rows"
    return TecError(
        "\n".join([f"{rows} failed; the others are finished", *lines]),
        hint="; ".join([*hints, "run again: only what is missing is tried again"]),
    )


def enforce(verdicts: Sequence[Path], others: Sequence[Path] = ()) -> None:
    """Raise a TecError when a row failed or a parity check that decides has not passed.

    Args:
        verdicts: every row's file of verdicts, or the failure in its place.
        others: more files that may hold a failure.
    """
    problems = []
    if failures := failures_in([*verdicts, *others]):
        problems.append(failed_rows(failures))
    read = [read_verdicts_or_failure(path) for path in verdicts]
    try:
        enforce_parity([verdict for file in read if isinstance(file, list) for verdict in file])
    except TecError as error:
        problems.append(error)
    if problems:
        raise TecError(
            "\n".join(problem.what for problem in problems),
            hint="; ".join(problem.hint for problem in problems if problem.hint),
        )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec outcome`."""
    parser = sub.add_parser("outcome", help="fail if a row failed or a parity check did not pass")
    parser.add_argument("--verdicts", type=Path, nargs="+", required=True)
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="may hold failures too")
    parser.set_defaults(run=lambda options: enforce(options.verdicts, options.others))
