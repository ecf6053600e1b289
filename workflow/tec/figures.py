"""The figures of a study, each as SVG and PDF: `tec figures results/<study>`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tec.errors import TecError
from tec.nearest import suggestion

SUFFIXES = (".svg", ".pdf")


@dataclass(frozen=True)
class FigureSpec:
    """What a figure shows and what it is drawn from."""

    title: str
    module: str
    """Module of `tec` that draws it; loaded only then, because Snakemake reads this list often."""
    function: str
    tables: tuple[str, ...]
    protocols: tuple[str, ...] = ()
    """The raw records it reads, `runs/<row>.<protocol>.jsonl` of every row."""

    def inputs(self, results: Path, rows: Sequence[str]) -> list[Path]:
        """Return the files that the figure is drawn from."""
        tables = [results / "tables" / f"{table}.csv" for table in self.tables]
        return tables + [
            results / "runs" / f"{row}.{protocol}.jsonl"
            for protocol in self.protocols
            for row in rows
        ]


FIGURES = {
    "hit-rate": FigureSpec(
        "Hit rate against capacity", "capacity_figures", "hit_rate", ("capacity",)
    ),
    "latency": FigureSpec(
        "Time per token, steady state", "token_figures", "latency", ("main",), ("prompts",)
    ),
    "cold-start": FigureSpec(
        "Time per token and hits, cold start",
        "token_figures",
        "cold_start",
        ("main",),
        ("prompts",),
    ),
    "throughput": FigureSpec(
        "Throughput against capacity", "capacity_figures", "throughput", ("capacity", "overhead")
    ),
    "layers": FigureSpec("Hit rate by layer", "token_figures", "layers", ("main",), ("prompts",)),
    "parity": FigureSpec("Parity verdicts", "parity_figure", "parity", ("parity",)),
}
"""By file name."""


def make_figures(results: Path, names: Sequence[str]) -> list[Path]:
    """Draw the named figures into `results/figures`; return the files.

    Raises:
        TecError: an unknown figure, or an input that is missing or incomplete.
    """
    for name in names:
        if name not in FIGURES:
            raise TecError(f"unknown figure '{name}'", hint=suggestion(name, FIGURES))
    return [path for name in names for path in _make_figure(results, name)]


def _make_figure(results: Path, name: str) -> list[Path]:
    from tec.figure_data import Results  # these load pandas and seaborn
    from tec.figure_style import save, style

    spec = FIGURES[name]
    draw = getattr(import_module(f"tec.{spec.module}"), spec.function)
    paths = [results / "figures" / f"{name}{suffix}" for suffix in SUFFIXES]
    with style():
        figure = draw(Results(results))
        for path in paths:
            save(figure, path)
    return paths


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec figures`."""
    parser = sub.add_parser("figures", help="draw a study's figures from its tables and records")
    parser.add_argument("results", type=Path, help="the study's folder, such as results/demo")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(FIGURES)}")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    for path in make_figures(options.results, options.names or list(FIGURES)):
        print(path)
