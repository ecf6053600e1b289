"""The figures of a study, each as SVG and PDF: `tec figures results/<study>`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tec.errors import TecError
from tec.nearest import suggestion

if TYPE_CHECKING:
    from tec.figure_data import Results, Subject

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
    subject: Subject = "rows"

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
        "Hit rate against capacity", "capacity_figures", "hit_rate", ("capacity", "main")
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
        "Throughput against capacity",
        "capacity_figures",
        "throughput",
        ("capacity", "overhead", "main"),
    ),
    "layers": FigureSpec("Hit rate by layer", "token_figures", "layers", ("main",), ("prompts",)),
    "miniatures": FigureSpec(
        "Hit rate and overlap of the miniatures",
        "rows_figure",
        "miniatures",
        ("capacity", "rows", "main"),
        subject="miniatures",
    ),
    "speed": FigureSpec(
        "Speed at each limit of VRAM",
        "replay_figures",
        "speed",
        ("capacity", "main"),
        subject="replay",
    ),
    "split": FigureSpec(
        "Time per token: resident model, cached graph, misses",
        "replay_figures",
        "split",
        ("capacity", "main"),
        subject="replay",
    ),
    "loss": FigureSpec(
        "Time per token above the bound", "loss_figure", "loss", ("loss", "main"), subject="replay"
    ),
    "replay-start": FigureSpec(
        "Time per token and hits along a trace, cold start",
        "token_figures",
        "replay_start",
        ("main",),
        ("replay",),
        subject="replay",
    ),
    "overlap": FigureSpec(
        "Overlap with the last tokens",
        "locality_figures",
        "overlap",
        ("overlap",),
        subject="locality",
    ),
    "reuse": FigureSpec(
        "Reuse of experts", "locality_figures", "reuse", ("overlap",), subject="locality"
    ),
    "policies": FigureSpec(
        "Which policy when: speed with so many slots",
        "policies_figure",
        "policies",
        ("policies", "main"),
        subject="policies",
    ),
    "policy-hits": FigureSpec(
        "Hit rate of policies against capacity",
        "locality_figures",
        "policy_hits",
        ("locality", "overlap"),
        subject="locality",
    ),
    "calibration": FigureSpec(
        "Hit rate of pinned experts above LRU's, on held-out text",
        "calibration_figure",
        "calibration",
        ("calibration", "overlap"),
        subject="locality",
    ),
    "parity": FigureSpec(
        "Parity verdicts", "parity_figure", "parity", ("parity", "main"), subject="parity"
    ),
}
"""By file name."""


def figures_of(subjects: Collection[Subject]) -> list[str]:
    """Return the names of the figures that a study with these subjects has."""
    return [name for name, figure in FIGURES.items() if figure.subject in subjects]


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
    from tec.figure_style import in_words, save, style

    spec = FIGURES[name]
    draw = getattr(import_module(f"tec.{spec.module}"), spec.function)
    paths = [results / "figures" / f"{name}{suffix}" for suffix in SUFFIXES]
    data = Results(results)
    with style():
        figure = draw(data) if data.has(spec.subject) else in_words(_nothing(data))
        for path in paths:
            save(figure, path)
    return paths


def _nothing(data: Results) -> str:
    """Say why a figure has nothing to show."""
    failed = len(data.failures())
    return f"nothing was measured: {failed} of {failed + len(data.rows())} rows failed"


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec figures`."""
    parser = sub.add_parser("figures", help="draw a study's figures from its tables and records")
    parser.add_argument("results", type=Path, help="the study's folder, such as results/demo")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(FIGURES)}")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    for path in make_figures(options.results, options.names or list(FIGURES)):
        print(path)
