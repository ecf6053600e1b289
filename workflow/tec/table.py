"""A table and how it is written: CSV for other tools, Markdown and LaTeX for people.

A number that was measured on the CPU back end is marked where it stands.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tec.files import write_atomically
from tec.paths import PAPER

Value = str | float | int | None
EMPTY = "\N{EN DASH}"
MARK = "f"
FUNCTIONAL_NOTE = (
    "functional, not evidence: run on the CPU back end; it shows that the mechanism works and what "
    "it costs there, and says nothing about TEC's speed"
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    EMPTY: "--",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
}


@dataclass(frozen=True)
class Column:
    """One column of the printed table; the CSV has every key of the rows."""

    key: str
    title: str
    text: Callable[[Value], str] = str
    timed: bool = False
    """Whether the number is a time or made from one, so that it needs a GPU to be evidence."""

    def cell(self, row: Mapping[str, Value]) -> tuple[str, bool]:
        """Return the printed value and whether it carries the mark `functional`."""
        value = row[self.key]
        if value is None:
            return EMPTY, False
        return self.text(value), self.timed and row["evidence"] == "functional"


@dataclass(frozen=True)
class Table:
    """A table of a study; `keys` are the columns of the CSV, in order."""

    name: str
    caption: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Value], ...]
    printed: tuple[Mapping[str, Value], ...] | None = None
    """The lines for people, where they are others than the CSV's."""

    @property
    def lines(self) -> tuple[Mapping[str, Value], ...]:
        """The lines of the printed table."""
        return self.rows if self.printed is None else self.printed

    def numeric(self, column: Column) -> bool:
        """Whether a printed column holds numbers, which are aligned to the right."""
        return any(isinstance(row[column.key], int | float) for row in self.lines)

    @property
    def marked(self) -> bool:
        """Whether any printed number is not evidence."""
        return any(column.cell(row)[1] for row in self.lines for column in self.columns)


def write_tables(tables: Iterable[Table], folder: Path) -> None:
    """Write every table as `<name>.csv`, `<name>.md` and `<name>.tex`."""
    templates = Environment(
        loader=FileSystemLoader(PAPER / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (no HTML is made)
    )
    templates.filters["latex"] = escape_latex
    templates.filters["markdown"] = escape_markdown
    for table in tables:
        write_atomically(folder / f"{table.name}.csv", to_csv(table))
        for suffix in ("md", "tex"):
            template = templates.get_template(f"table.{suffix}.j2")
            text = template.render(table=table, mark=MARK, note=FUNCTIONAL_NOTE)
            write_atomically(folder / f"{table.name}.{suffix}", text)


def to_csv(table: Table) -> str:
    """Return the table as CSV: numbers with 6 significant digits, nothing for a missing value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, table.keys, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        plain = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        writer.writerow(plain)
    return text.getvalue()


def escape_latex(text: str) -> str:
    """Return text as LaTeX that prints it."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Return text that stays inside its cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("_", "\\_")


def digits(significant: int) -> Callable[[Value], str]:
    """Return a formatter that shows so many significant digits, without an exponent."""

    def text(value: Value) -> str:
        number = float(value or 0)
        before = len(str(int(abs(number)))) if abs(number) >= 1 else 0
        return f"{number:.{max(0, significant - before)}f}"

    return text


def percent(value: Value) -> str:
    """Show a share in percent."""
    return f"{100 * float(value or 0):.1f}"


def times(value: Value) -> str:
    """Show a ratio."""
    return f"{float(value or 0):.2f}\N{MULTIPLICATION SIGN}"


def short(width: int) -> Callable[[Value], str]:
    """Return a formatter that shows a text's beginning, cut between words."""
    return lambda value: textwrap.shorten(str(value), width, placeholder=" ...")
