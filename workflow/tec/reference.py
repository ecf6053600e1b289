"""Measured runs worth keeping: `results/reference/<system>/<study>`, committed.

`tec reference keep results/<study>` takes over the raw records of a finished study and makes
everything else from them, as `tec reference rebuild` does at any later time: verdicts, tables,
figures, the index of what is kept, and the headline in the README.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tec.calibration_table import FOLDER as CALIBRATION
from tec.calibration_table import write_calibration_table
from tec.config import load_study
from tec.errors import TecError
from tec.figure_data import Subject
from tec.figures import figures_of, make_figures
from tec.files import write_atomically
from tec.headline import headline_differs, write_headline
from tec.locality_table import write_locality_tables
from tec.outcome import failure_in
from tec.paths import REFERENCE, ROOT
from tec.records import PROBE, Record, read_records
from tec.reference_index import INDEX, index_of
from tec.selection import select
from tec.system import System
from tec.table import write_tables
from tec.tables import has_policies, study_tables
from tec.verdicts import judge
from tec.verify import problems

PROTOCOLS = ("prompts", "random", "locality", "replay", "parity")
"""In the order in which the pipeline runs them."""
_SUBJECTS: Mapping[str, Subject] = {
    "prompts": "rows",
    "replay": "replay",
    "locality": "locality",
    "parity": "parity",
}
"""Protocol -> what figures it gives."""

_ABSOLUTE = re.compile(rb"""(["'])/(?:[^"'/\\]*/)*([^"'/\\]+)\1""")
"""An absolute path in quotes, as a JSON string or in a message, and its last part."""

Runs = Mapping[Path, Sequence[Record]]
"""Files of records with what is in them, row by row."""


def read_runs(folder: Path, rows: Sequence[str] | None = None) -> Runs:
    """Return the records of a study's folder, in the order of the study's rows and `PROTOCOLS`.

    Args:
        folder: named for the study; has `runs/<row>.<protocol>.jsonl`.
        rows: only these; all by default.

    Raises:
        TecError: there are none, a row failed, or a file cannot be read.
    """
    here = {path.name.split(".jsonl")[0]: path for path in (folder / "runs").glob("*.jsonl")}
    order = load_study(folder.name).all_rows if rows is None else rows
    paths = [here[name] for r in order for p in PROTOCOLS if (name := f"{r}.{p}") in here]
    if not paths:
        raise TecError("there are no records", folder / "runs", "measure first: make all")
    if failure := next((found for path in paths if (found := failure_in(path))), None):
        raise failure.error()
    return {path: read_records(path) for path in paths}


def make_tables(folder: Path) -> None:
    """Write the verdicts and tables of every row with records in `folder`, from these alone."""
    runs = read_runs(folder)
    judged = [judge(records) for records in runs.values() if records[0].protocol == "parity"]
    for verdicts in judged:
        text = "".join(verdict.model_dump_json() + "\n" for verdict in verdicts)
        write_atomically(folder / "verdicts" / f"{verdicts[0].row}.jsonl", text)
    replays, policies = "replay" in _protocols(runs), has_policies(runs.values())
    write_tables(study_tables(list(runs.values()), judged, replays, policies), folder / "tables")
    traced = [found[0].row for found in runs.values() if found[0].protocol == "locality"]
    if traced:
        write_locality_tables(folder, traced)
        write_calibration_table(folder, traced)


def rebuild(folder: Path) -> None:
    """Make tables and figures of a kept study from its records, and nothing else."""
    read_runs(folder)  # or there is nothing to make them from
    for made in ("tables", "figures", "verdicts"):
        shutil.rmtree(folder / made, ignore_errors=True)
    make_tables(folder)
    runs = read_runs(folder)
    subjects = {_SUBJECTS[protocol] for protocol in _protocols(runs) & _SUBJECTS.keys()}
    if any(records[0].model.variant == "miniature" for records in runs.values()):
        subjects.add("miniatures")
    if has_policies(runs.values()):
        subjects.add("policies")
    make_figures(folder, figures_of(subjects))


def _protocols(runs: Runs) -> set[str]:
    return {records[0].protocol for records in runs.values()}


def differing_tables(folder: Path, rows: Sequence[str] | None = None) -> list[str]:
    """Return the names of the tables that are not what the records of `folder` give.

    The order of lines does not count: rows may have been tabulated in another one.
    """
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / folder.name
        _take_over(read_runs(folder, rows), folder, copy)
        make_tables(copy)
        made, there = (_lines_by_name(each / "tables") for each in (copy, folder))
        return sorted(n for n in made.keys() | there if made.get(n) != there.get(n))


def _lines_by_name(tables: Path) -> dict[str, list[str]]:
    return {path.stem: sorted(path.read_text().splitlines()) for path in tables.glob("*.csv")}


def _take_over(runs: Runs, source: Path, folder: Path) -> None:
    """Copy files of records, and the recorded routing of their rows, into a study's folder."""
    rows = {records[0].row for records in runs.values()}
    routing = [
        path
        for row in rows
        for place in ("traces", CALIBRATION)
        for path in (source / place).glob(f"{row}.*")
    ]
    contents = {path: path.read_bytes() for path in routing} | {
        path: _published(path) for path in runs
    }
    for path, content in contents.items():
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)


def _published(path: Path) -> bytes:
    """Return a file of records without the machine's folders.

    A program or model outside the project is named by its absolute path, which says nothing to
    others, and may say who measured: of such a path the file's name stays. Nothing is made from it.
    """
    return _ABSOLUTE.sub(rb"\1\2\1", path.read_bytes())


def keep(
    results: Path,
    reference: Path = REFERENCE,
    *,
    functional: bool = False,
    incomplete: bool = False,
    replace: bool = False,
) -> list[Path]:
    """Take over a finished study's records, row by row, under the systems they were measured on.

    The rows are those of its main table; rows that are kept already stay beside them.

    Args:
        results: the study's folder, such as results/replicas.
        reference: the folder of what is kept.
        functional: take records of the CPU back end too.
        incomplete: take a study of which outputs are missing or checks have not passed.
        replace: put these records in the place of others of the same row and protocol.

    Returns:
        The folders that the records went to.

    Raises:
        TecError: a row failed, the study is not finished, its tables are not those of its records,
            or other records are kept already.
    """
    runs = read_runs(results, _tabulated(results))
    _check(runs, results, functional, incomplete)
    systems: dict[Path, dict[Path, Sequence[Record]]] = {}
    for path, records in runs.items():
        target = reference / system_name(_system(records)) / results.name
        systems.setdefault(target, {})[path] = records
    if not replace:
        _check_nothing_is_lost(systems)
    for folder, found in systems.items():
        _take_over(found, results, folder)
        rebuild(folder)
    return list(systems)


def _tabulated(results: Path) -> list[str]:
    """Return the rows of the main table."""
    path = results / "tables" / "main.csv"
    if not path.is_file():
        raise TecError("the study has no tables", path, f"make all STUDY={results.name}")
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split(",")[0] for line in lines]


def _check(runs: Runs, results: Path, functional: bool, incomplete: bool) -> None:
    """Raise a TecError unless the study is finished, is evidence, and has its own tables."""
    on_cpu = {r[0].row for r in runs.values() if any(x.evidence == "functional" for x in r)}
    if on_cpu and not functional:
        raise TecError(
            f"run on the CPU back end, so no evidence: {', '.join(sorted(on_cpu))}",
            results,
            "measure on a GPU, or keep it all the same: --functional",
        )
    if not incomplete and (found := list(_unfinished(runs, results))):
        raise TecError(
            "the study is not finished:\n  " + "\n  ".join(found),
            results,
            f"make all STUDY={results.name}, or keep it all the same: --incomplete",
        )
    if names := differing_tables(results, _tabulated(results)):
        raise TecError(
            f"tables are not those of the records: {', '.join(names)}",
            results / "tables",
            f"make them again: make all STUDY={results.name}",
        )


def _unfinished(runs: Runs, results: Path) -> Iterator[str]:
    """Yield what is missing of a study's outputs, and arms with other numbers of rounds."""
    rows = ",".join(_tabulated(results))
    target = next(iter(runs.values()))[0].build.target
    yield from problems(select({"study": results.name, "rows": rows, "target": target}), results)
    for path, records in runs.items():
        if records[0].protocol in ("prompts", "replay"):
            yield from _uneven(path, records)


def _uneven(path: Path, records: Sequence[Record]) -> Iterator[str]:
    rounds: dict[str, set[int]] = {}
    for record in records:
        if record.test != PROBE and record.fits:
            rounds.setdefault(record.arm, set()).add(record.round)
    most = max(map(len, rounds.values()), default=0)
    for arm, found in rounds.items():
        if len(found) < most:
            yield f"{path}: arm {arm} has {len(found)} of {most} rounds"


def _check_nothing_is_lost(systems: Mapping[Path, Iterable[Path]]) -> None:
    """Raise a TecError if other records of the same row and protocol are kept already."""
    for folder, paths in systems.items():
        for path in paths:
            there = folder / "runs" / path.name
            if there.is_file() and there.read_bytes() != _published(path):
                raise TecError(
                    "other records of this row and protocol are kept already",
                    there,
                    "to put these in their place: --replace",
                )


def _system(records: Sequence[Record]) -> System:
    """Return the machine of a file's records, which has to be one."""
    systems = {record.system.fingerprint: record.system for record in records}
    if len(systems) > 1:
        raise TecError(
            f"the records come from {len(systems)} systems: {', '.join(sorted(systems))}",
            f"row {records[0].row}, protocol {records[0].protocol}",
            "measure the row on one of them",
        )
    return next(iter(systems.values()))


def system_name(system: System) -> str:
    """Return the name of a system's folder: its card, or its processor, and its fingerprint."""
    device = system.gpus[0].name if system.gpus else system.cpu
    words = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{words}-{system.fingerprint}"


def kept_studies(reference: Path = REFERENCE) -> list[Path]:
    """Return the folders of what is kept, `<system>/<study>`, by name."""
    return sorted(runs.parent for runs in reference.glob("*/*/runs"))


def drift(reference: Path = REFERENCE, readme: Path = ROOT / "README.md") -> list[str]:
    """Return what is not as the kept records give it: tables, the index, the README's headline."""
    studies = kept_studies(reference)
    found = [
        str(folder / "tables" / f"{name}.csv")
        for folder in studies
        for name in differing_tables(folder)
    ]
    index = reference / INDEX
    if studies and (not index.is_file() or index.read_text() != index_of(studies)):
        found.append(str(index))
    if headline_differs(reference, readme):
        found.append(str(readme))
    return found


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec reference`."""
    parser = sub.add_parser("reference", help="keep measured runs in results/reference")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    taking = actions.add_parser("keep", help="take over a finished study's records")
    taking.add_argument("results", type=Path, help="its folder, such as results/replicas")
    taking.add_argument("--functional", action="store_true", help="of the CPU back end too")
    taking.add_argument("--incomplete", action="store_true", help="though outputs are missing")
    taking.add_argument("--replace", action="store_true", help="in the place of other records")
    taking.set_defaults(run=_keep)
    making = actions.add_parser("rebuild", help="make tables, figures and README from the records")
    making.add_argument("--check", action="store_true", help="only say what differs")
    making.set_defaults(run=_rebuild)


def _keep(options: argparse.Namespace) -> None:
    wanted = {name: getattr(options, name) for name in ("functional", "incomplete", "replace")}
    for folder in keep(options.results, **wanted):
        print(folder.relative_to(ROOT))
    _write_index()


def _rebuild(options: argparse.Namespace) -> None:
    if options.check:
        if found := drift():
            what = "not what the kept records give: " + ", ".join(found)
            raise TecError(what, REFERENCE, "tec reference rebuild")
        return
    for folder in kept_studies():
        rebuild(folder)
        print(folder.relative_to(ROOT))
    _write_index()


def _write_index() -> None:
    studies = kept_studies()
    write_atomically(REFERENCE / INDEX, index_of(studies))
    write_headline(REFERENCE, ROOT / "README.md")
