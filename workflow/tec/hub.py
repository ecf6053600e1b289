"""Rows whose files are on the hub: pinned, fetched, checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from tec import hub_cache, hub_client, hub_local, hub_xet
from tec.config import FileSource, HubSource, Row, load_row
from tec.errors import RunError, TecError, disk_is_full
from tec.gguf_file import Part
from tec.hub_cache import CachedFile
from tec.hub_download import Download
from tec.hub_local import StandIn
from tec.hub_lock import LockEntry, pinned, read_lock, write_entry
from tec.hub_transfer import Transfer
from tec.paths import HUB_LOCK, MODELS


@dataclass(frozen=True)
class Options:
    """How rows are fetched."""

    jobs: int = 1
    """Files at a time."""
    folder: Path | None = None
    """Where local files have to be, in place of downloads; TEC_MODELS names one where they may."""
    repin: bool = False
    """Pin what the hub has now, whatever was pinned before."""
    pin_local: bool = False
    """Pin what the local files are, without asking the hub."""
    lock: Path = HUB_LOCK


@dataclass(frozen=True)
class _Plan:
    """One row: what its files have to be, and the local ones if there are any."""

    row: Row
    entry: LockEntry
    local: StandIn | None

    def paths(self) -> list[Path]:
        """Return the files, in order, wherever they are or are going to be."""
        return self.local or [CachedFile(self.entry, file).path for file in self.entry.files]

    def parts(self) -> list[Part]:
        """Return the files as checked."""
        return [
            Part(path=str(path), bytes=file.size, sha256=file.sha256)
            for path, file in zip(self.paths(), self.entry.files, strict=True)
        ]


def fetch(row: Row, options: Options | None = None) -> list[Part]:
    """Return the row's files, in order, fetched and checked.

    Raises:
        TecError: the hub cannot be reached or refuses; files are not the pinned ones; no space.
    """
    return fetch_all([row], options or Options())[row.name]


def fetch_all(rows: Sequence[Row], options: Options) -> dict[str, list[Part]]:
    """Return the files of each row; all are pinned before the first byte is fetched.

    Raises:
        TecError: as `fetch`; rows that could be fetched are complete all the same.
    """
    try:
        return _fetch_all(rows, options)
    except OSError as error:
        raise _readable(error) from error


def _fetch_all(rows: Sequence[Row], options: Options) -> dict[str, list[Part]]:
    notices = Transfer()
    plans = [_plan(row, options, notices) for row in rows]
    for plan in plans:
        if plan.local:
            hub_local.check(plan.row.name, plan.entry, plan.local, notices.check)
    _download([plan for plan in plans if not plan.local], options.jobs)
    return {plan.row.name: plan.parts() for plan in plans}


def _plan(row: Row, options: Options, notices: Transfer) -> _Plan:
    """Pin the row if it is not pinned yet, and look for local files."""
    source = hub_source(row)
    local = _local(source, options)
    before = None if options.repin or options.pin_local else pinned(options.lock, row.name, source)
    entry = before or _pin(row, source, local, options, notices)
    return _Plan(row, entry, hub_local.choose(local, entry, notices.check) if local else None)


def hub_source(row: Row) -> HubSource:
    """Return where the row is on the hub.

    Raises:
        TecError: it is not there.
    """
    if not isinstance(row.source, HubSource):
        variant = "" if row.source else " --variant replica"
        raise TecError(
            f"row {row.name} is {_origin(row)}: there is nothing to fetch",
            MODELS / f"{row.name}.yaml",
            f"tec model {row.name}{variant}",
        )
    return row.source


def _origin(row: Row) -> str:
    """Say what a row is that is not on the hub."""
    if isinstance(row.source, FileSource):
        return f"{row.source.path}, a file of the repository"
    return "only ever a replica, made on this machine"


def _local(source: HubSource, options: Options) -> list[StandIn]:
    if options.folder:
        return hub_local.required(source.files, options.folder)
    folder = hub_local.from_environment()
    return hub_local.stand_ins(source.files, folder) if folder else []


def _pin(
    row: Row, source: HubSource, local: list[StandIn], options: Options, notices: Transfer
) -> LockEntry:
    """Write what the row's files are now into the lock, and say so."""
    if options.pin_local:
        if not local:
            raise TecError(
                f"row {row.name}: --pin-local needs its files on this machine",
                None,
                f"tec fetch {row.name} --pin-local --from FOLDER",
            )
        entry = hub_local.describe(source.repo, source.files, local[0], notices.check)
    else:
        entry = _ask(row, source, local, notices)
    before = read_lock(options.lock).rows.get(row.name)
    write_entry(options.lock, row.name, entry)
    files = _files(len(entry.files))
    was = f"; was {before.title}, {before.size:,} bytes" if before else ""
    notices.note(f"{row.name}: pinned {entry.title}, {files}, {entry.size:,} bytes{was}")
    if source.unconfirmed and entry.commit:
        notices.note(f"{row.name}: not read from the hub before: {source.unconfirmed}")
    return entry


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _ask(row: Row, source: HubSource, local: list[StandIn], notices: Transfer) -> LockEntry:
    try:
        return hub_client.current(row.name, source, notices)
    except TecError as error:
        if not local:
            raise
        raise TecError(
            f"row {row.name} is not pinned, so its local file cannot be checked: {error.what}",
            error.where,
            f"pin it where the hub can be reached (tec fetch {row.name}; keep {HUB_LOCK.name}), "
            f"or, if you trust the file: tec fetch {row.name} --from {local[0][0].parent} "
            "--pin-local",
        ) from error


def _download(plans: Sequence[_Plan], jobs: int) -> None:
    """Have the files of all plans in the cache, checked."""
    wanted = [
        (plan, file, CachedFile(plan.entry, file)) for plan in plans for file in plan.entry.files
    ]
    absent = [(plan, file, cached) for plan, file, cached in wanted if not cached.exists()]
    if absent and constants.is_offline_mode():
        names = ", ".join(f"{file.name} of row {plan.row.name}" for plan, file, _ in absent)
        raise TecError(
            f"HF_HUB_OFFLINE is set, and the cache does not have {names}",
            hub_cache.root(),
            f"unset HF_HUB_OFFLINE, or set {hub_local.VARIABLE} to a folder that has the files",
        )
    total = sum(file.size for _, file, _ in absent)
    arrived = sum(cached.arrived() for _, _, cached in absent)
    hub_cache.check_space(total - arrived)
    transfer = Transfer(total, arrived)
    downloads = [Download(plan.row.name, plan.entry, file, transfer) for plan, file, _ in wanted]
    _run(downloads, jobs, transfer)


def _run(downloads: Sequence[Download], jobs: int, transfer: Transfer) -> None:
    """Run downloads, `jobs` at a time; one that fails does not stop the others."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(download.run) for download in downloads]
            wait(futures)
        except BaseException:
            transfer.stop()
            hub_xet.abort()
            transfer.finish("interrupted")
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    errors = [_readable(error) for future in futures if (error := future.exception())]
    transfer.finish("failed" if errors else "done")
    for error in errors:
        if len(errors) == 1 or isinstance(error, RunError):
            raise error
    if errors:
        raise TecError("\n".join(str(error) for error in errors))


def _readable(error: BaseException) -> TecError:
    """Return a download's error as one a person can act on."""
    if isinstance(error, TecError):
        return error
    if not isinstance(error, OSError):
        raise error
    if disk_is_full(error):
        return RunError(
            "the disk is full",
            error.filename or hub_cache.root(),
            "free some space, or set HF_HOME to a folder on a larger disk; what arrived is kept",
        )
    return TecError(
        f"a file cannot be used: {error.strerror or error}",
        error.filename or hub_cache.root(),
        "make it accessible; HF_HOME moves the cache to another folder",
    )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec fetch`."""
    parser = sub.add_parser("fetch", help="fetch rows' model files from the hub, or list them")
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--list", action="store_true", help="say what is pinned and what is here")
    parser.add_argument("--jobs", type=_jobs, default=1, metavar="N", help="files at a time")
    parser.add_argument("--from", dest="folder", type=Path, metavar="FOLDER", help="local files")
    pin = parser.add_mutually_exclusive_group()
    pin.add_argument("--repin", action="store_true", help="pin what the hub has now")
    pin.add_argument("--pin-local", action="store_true", help="pin local files as they are")
    parser.set_defaults(run=_fetch)


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of files")
    return int(text)


def _fetch(options: argparse.Namespace) -> None:
    if options.list:
        _list(options.rows)
        return
    if not options.rows:
        raise TecError("no row named", None, "tec fetch ROW...; tec fetch --list shows the rows")
    rows = [load_row(name) for name in dict.fromkeys(options.rows)]
    how = Options(options.jobs, options.folder, options.repin, options.pin_local, HUB_LOCK)
    for row, parts in fetch_all(rows, how).items():
        size = sum(part.bytes for part in parts)
        print(f"{row}: {_files(len(parts))} checked, {size:,} bytes, {parts[0].path}")


def _list(names: Sequence[str]) -> None:
    """Print the rows with a source on the hub: what is pinned, and whether it is here.

    Rows that are files of the repository are mentioned if they are named.
    """
    for name in names or sorted(path.stem for path in MODELS.glob("*.yaml")):
        row = load_row(name)
        if isinstance(row.source, HubSource):
            print(f"{name}: {row.source.repo}, {', '.join(row.source.files)}; {_state(row)}")
        elif names:
            print(f"{name}: {_origin(row)}; nothing to fetch")


def _state(row: Row) -> str:
    source = hub_source(row)
    entry = pinned(HUB_LOCK, row.name, source)
    folder = hub_local.from_environment()
    local = hub_local.stand_ins(source.files, folder) if folder else []
    if entry is None:
        return "not pinned" + (f", unchecked in {local[0][0].parent}" if local else "")
    here = [cached for file in entry.files if (cached := CachedFile(entry, file)).exists()]
    if local:
        place = f"in {(hub_local.fitting(local, entry) or local)[0][0].parent}"
    else:
        place = f"{len(here)} of {len(entry.files)} in the cache"
    return f"pinned {entry.title}, {entry.size:,} bytes, {place}"
