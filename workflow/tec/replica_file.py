"""Writing a replica: several threads draw its weights and write them where they belong.

On a machine that has only Python and NumPy, with `workflow` on PYTHONPATH:

    python3 -m tec.replica_file PLAN MODEL.gguf
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from tec.errors import RunError, TecError, disk_is_full
from tec.files import replacing
from tec.progress import TERMINAL_INTERVAL, Progress, gigabytes
from tec.replica_plan import Plan, Weights, read_plan
from tec.replica_weights import draw, pieces

Update = Callable[[int, int], None]

_Piece = tuple[Weights, int, int, int]
"""A tensor, where a piece begins in it, the piece's bytes, and its place in the file."""

_SPARE = 2**28
"""Bytes that are left free on the disk."""


def file_size(plan: Plan) -> int:
    """Return the bytes of a replica."""
    return len(plan.header()) + plan.data_size()


def check_space(plan: Plan, folder: Path) -> None:
    """Raise a RunError unless the disk of an existing folder has room for the replica."""
    needed, free = file_size(plan) + _SPARE, shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"the disk has no room for the replica of {plan.row}: it takes {needed / 2**30:.1f} "
            f"GiB, {free / 2**30:.1f} GiB are free",
            folder,
            "free some space, or make .cache a link to a larger disk, and run again",
        )


def write_replica(plan: Plan, path: Path, update: Update, threads: int | None = None) -> None:
    """Write a replica to `path`, which a reader must not take for a model before this returns.

    Args:
        plan: what it holds.
        path: made, or replaced.
        update: called from this thread with the bytes that are done and all of them.
        threads: how many draw and write; one for each processor if left out.

    Raises:
        RunError: the disk is full.
    """
    check_space(plan, path.parent)
    with path.open("wb") as file:
        try:
            _write(plan, file.fileno(), update, threads or _processors())
        except OSError as error:
            if not disk_is_full(error):
                raise
            hint = "free some space and run again"
            raise RunError("the disk or your quota on it is full", path, hint) from error


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write(plan: Plan, file: int, update: Update, threads: int) -> None:
    header = plan.header()
    total = len(header) + plan.data_size()
    os.truncate(file, total)
    _write_at(file, memoryview(header), 0)
    work = _Work(plan, file, len(header))
    with ThreadPoolExecutor(threads, "replica") as pool:
        running = [pool.submit(work.run) for _ in range(threads)]
        try:
            while not all(future.done() for future in running):
                update(work.done, total)
                time.sleep(TERMINAL_INTERVAL / 4)
        finally:
            work.stop()
    for future in running:
        future.result()
    update(work.done, total)


class _Work:
    """The pieces that are left to do, for any number of threads."""

    def __init__(self, plan: Plan, file: int, start: int) -> None:
        self.done = 0
        self._plan = plan
        self._file = file
        self._lock = threading.Lock()
        placed = zip(plan.tensors, plan.offsets(), strict=True)
        self._left: Iterator[_Piece] = chain.from_iterable(
            _placed(t, start + offset) for t, offset in placed
        )

    def stop(self) -> None:
        """Leave the rest undone."""
        with self._lock:
            self._left = iter(())

    def run(self) -> None:
        """Do pieces until none is left; a failure stops all threads."""
        try:
            while piece := self._next():
                tensor, begin, size, place = piece
                data = draw(tensor, begin, size, self._plan.seed, self._plan.tied)
                _write_at(self._file, data, place)
                with self._lock:
                    self.done += size
        except BaseException:
            self.stop()
            raise

    def _next(self) -> _Piece | None:
        with self._lock:
            return next(self._left, None)


def _placed(tensor: Weights, start: int) -> Iterator[_Piece]:
    """Yield the pieces of a tensor that begins at `start`."""
    for begin, size in pieces(tensor):
        yield tensor, begin, size, start + begin


def _write_at(file: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def write_with_progress(
    plan: Plan, path: Path, threads: int | None = None, sync: bool = True
) -> None:
    """Write a replica and say on standard error how far it is and how fast it went.

    Args:
        plan: what it holds.
        path: as for `write_replica`.
        threads: likewise.
        sync: return when its bytes are on the disk, not before.
    """
    progress = Progress(f"writing the replica of {plan.row}", measure=gigabytes)
    outcome, started = "failed", time.monotonic()
    try:
        write_replica(plan, path, progress.update, threads)
        if sync:
            progress.note("waiting until the disk has it")
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        size = path.stat().st_size
        rate = size / 1e9 / (time.monotonic() - started)
        outcome = f"{size / 2**30:.2f} GiB written at {rate:.2f} GB/s"
    finally:
        progress.finish(outcome)


def main() -> None:
    """Write the replica of a plan."""
    parser = argparse.ArgumentParser(prog="python -m tec.replica_file", description=main.__doc__)
    parser.add_argument("plan", type=Path, help="made by: tec model ROW --variant replica --plan")
    parser.add_argument("model", type=Path, help="GGUF file to write")
    parser.add_argument("--threads", type=int, help="one for each processor if left out")
    parser.add_argument(
        "--no-sync",
        action="store_true",
        help="do not wait until the disk has the file",
    )
    options = parser.parse_args()
    try:
        plan = read_plan(options.plan)
        with replacing(options.model, sync=False) as temporary:
            write_with_progress(plan, temporary, options.threads, sync=not options.no_sync)
    except TecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
