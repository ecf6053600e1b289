"""Time a long history: `python benchmarks/history.py`.

Launches of made-up speeds, in sessions of eight arms of a row: appended at once, then loaded; the
last session is compared with the others, and every series is cut at its change points. Processor
seconds, on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from tec.history import HistoryRecord, append, load
from tec.launches import condense
from tec.paths import REFERENCE
from tec.records import read_records
from tec.regress import after_history
from tec.trends import trends

SIZES = (1_000, 10_000, 100_000)
ARMS, ROUNDS, ROWS = 8, 5, 5

_Result = TypeVar("_Result")


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    largest = parser.parse_args().largest
    print(f"{'launches':>9}{'MB':>7}{'append s':>10}{'load s':>8}{'compare s':>11}{'trends s':>10}")
    for size in SIZES:
        if size <= largest:
            with tempfile.TemporaryDirectory() as folder:
                _time(size, Path(folder) / "history.jsonl")


def _time(size: int, path: Path) -> None:
    launches = _launches(size)
    append_s, _ = _timed(lambda: append(path, launches))
    load_s, history = _timed(lambda: load(path))
    new = [r for r in launches if r.session == launches[-1].session]
    compare_s, report = _timed(lambda: after_history(history, new, whole=True, metrics="all"))
    trends_s, found = _timed(lambda: list(trends(history)))
    megabytes = path.stat().st_size / 1e6
    print(f"{size:>9,}{megabytes:>7.1f}{append_s:>10.1f}{load_s:>8.1f}{compare_s:>11.1f}", end="")
    print(f"{trends_s:>10.1f}   {len(report.comparisons)} cells, {len(found)} trends", flush=True)


def _timed(work: Callable[[], _Result]) -> tuple[float, _Result]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _launches(size: int) -> list[HistoryRecord]:
    """Return launches shaped like a kept one, sessions of all arms of a row in turn."""
    file = next(REFERENCE.glob("*/*/runs/*.replay.jsonl"))
    model = next(launch for launch in condense(read_records(file), {}) if launch.values.hits)
    rng = np.random.default_rng(0)
    made = []
    for number in range(size):
        session, place = divmod(number, ARMS * ROUNDS)
        arm, turn = place % ARMS, place // ARMS
        speed = 100 * (1 + arm) * float(np.exp(rng.normal(0, 0.01)))
        values = model.values.model_copy(update={"tg_tps": speed, "step_tps": speed})
        changes = {
            "id": f"{number:016x}",
            "row": f"row-{session % ROWS}",
            "arm": f"arm-{arm}",
            "session": f"{session:012x}",
            "round": turn,
            "order": place,
            "values": values,
        }
        made.append(model.model_copy(update=changes))
    return made


if __name__ == "__main__":
    main()
