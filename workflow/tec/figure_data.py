"""What the figures are drawn from: a study's tables, and the tokens in its raw records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.records import Record, read_records


@dataclass(frozen=True)
class Results:
    """One study's results: `tables/*.csv` and `runs/*.jsonl` in a folder."""

    folder: Path

    def table(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """Return the table `tables/<name>.csv`; empty cells are missing values.

        Raises:
            TecError: the table is missing, empty, or lacks one of `columns`.
        """
        path = self.folder / "tables" / f"{name}.csv"
        frame = read_table(path)
        for column in columns:
            if column not in frame.columns:
                raise TecError(
                    f"the table has no column '{column}'", path, "make the tables again: tec tables"
                )
        return frame

    def rows(self) -> list[str]:
        """Return the rows of the study, in the order of its tables."""
        return list(dict.fromkeys(self.table("main", ["row"])["row"]))

    def records(self, row: str, protocol: str) -> list[Record]:
        """Return the raw records of a row under a protocol.

        Raises:
            TecError: the file is missing, holds no record, or a line of it is no record.
        """
        path = self.folder / "runs" / f"{row}.{protocol}.jsonl"
        found = read_records(path)
        if not found:
            raise TecError("no record in the file", path, "measure again: tec measure")
        return found


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file; empty cells are missing values, and no other text is.

    Raises:
        TecError: the file is missing, unreadable or has no line below its header.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise TecError("table not found", path, "make the tables first: tec tables") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise TecError(f"not a CSV table: {error}", path, "make the tables again") from error
    if frame.empty:
        raise TecError("the table has no lines", path, "make the tables again: tec tables")
    return frame


def slots(record: Record) -> int | None:
    """Return the slots per layer of a llama-expert-bench record; None with the cache off."""
    return ExpertBench.model_validate(record.result).capacity


def by_capacity(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records by arm: cache off first, then by capacity."""
    arms: dict[str, list[Record]] = {}
    for record in records:
        arms.setdefault(record.arm, []).append(record)
    return dict(sorted(arms.items(), key=lambda item: (slots(item[1][0]) or 0, item[0])))


def functional_rows(table: pd.DataFrame) -> list[str]:
    """Return the rows of a table with a line that was taken on the CPU back end."""
    return list(dict.fromkeys(table.loc[table["evidence"] == "functional", "row"]))
