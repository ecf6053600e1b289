"""What the figures are drawn from: a study's tables, and the tokens in its raw records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from tec.config import Variant
from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.policies import CachePolicy
from tec.records import PROBE, Record, read_records

Subject = Literal["rows", "parity", "locality", "miniatures", "replay", "policies"]
"""What a figure is about: single rows, all verdicts, or what only some rows have."""


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

    def rows(self, variant: Variant | None = None) -> list[str]:
        """Return the rows that did not fail, in the order of the tables; of one variant or all."""
        table = self.table("main", ["row", "variant", "outcome"])
        table = table[table["outcome"] != "failed"]
        return list(
            table["row"] if variant is None else table.loc[table["variant"] == variant, "row"]
        )

    def shown(self) -> list[str]:
        """Return the rows with a panel of their own: the full ones; where there is none, all."""
        return self.rows("full") or self.rows()

    def failures(self, variant: Variant | None = None) -> dict[str, str]:
        """Return why rows failed, by name; of one variant or all."""
        table = self.table("main", ["row", "variant", "outcome", "reason"])
        table = table[table["outcome"] == "failed"]
        if variant is not None:
            table = table[table["variant"] == variant]
        return dict(zip(table["row"], table["reason"].fillna("").astype(str), strict=True))

    def has(self, what: Subject) -> bool:
        """Say whether there is anything to draw of a subject."""
        match what:
            case "locality":
                return not read_table(self.folder / "tables" / "overlap.csv", empty=True).empty
            case "miniatures":
                return bool(self.rows("miniature"))
            case "rows":
                return bool(self.shown())
            case "replay":
                table = read_table(self.folder / "tables" / "capacity.csv", empty=True)
                return "replay" in set(table["protocol"])
            case "policies":  # a table that not every study has
                path = self.folder / "tables" / "policies.csv"
                return path.is_file() and not read_table(path, empty=True).empty
        return True

    def records(self, row: str, protocol: str) -> list[Record]:
        """Return the raw records of a row under a protocol, without what only tried what fits.

        Raises:
            TecError: the file is missing, holds no record, or a line of it is no record.
        """
        path = self.folder / "runs" / f"{row}.{protocol}.jsonl"
        found = [record for record in read_records(path) if record.test != PROBE and record.fits]
        if not found:
            raise TecError("no record in the file", path, "measure again: tec measure")
        return found


def read_table(path: Path, empty: bool = False) -> pd.DataFrame:
    """Read a CSV file; empty cells are missing values, and no other text is.

    Raises:
        TecError: the file is missing or unreadable or, unless it may be `empty`, has no line below
            its header.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise TecError("table not found", path, "make the tables first: tec tables") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise TecError(f"not a CSV table: {error}", path, "make the tables again") from error
    if frame.empty and not empty:
        raise TecError("the table has no lines", path, "make the tables again: tec tables")
    return frame


def slots(record: Record) -> int | None:
    """Return the slots per layer of a llama-expert-bench record; None with the cache off."""
    return ExpertBench.model_validate(record.result).capacity


def policy(record: Record) -> CachePolicy | None:
    """Return the cache's policy in a llama-expert-bench record; None with the cache off."""
    return ExpertBench.model_validate(record.result).policy


def by_capacity(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records by arm: cache off first, then by capacity."""
    arms: dict[str, list[Record]] = {}
    for record in records:
        arms.setdefault(record.arm, []).append(record)
    return dict(sorted(arms.items(), key=lambda item: (slots(item[1][0]) or 0, item[0])))


def functional_rows(table: pd.DataFrame) -> list[str]:
    """Return the rows of a table with a line that was taken on the CPU back end."""
    return list(dict.fromkeys(table.loc[table["evidence"] == "functional", "row"]))
