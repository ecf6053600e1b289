"""`tec calibration`: what pinning by frequency is worth on text that it was not calibrated on.

Two calibrations per row. `prompt` is the list that `tec calibrate` made from the built-in prompt;
the held-out text is the real text of the locality study. `text` is made from the first half of that
real text and held out is its second half: what is left of the loss when the kind of text is known.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tec.calibration import choose_pins
from tec.calibration_check import capacities, hit_rates
from tec.calibration_record import Calibration, read_calibration
from tec.config import Variant
from tec.errors import TecError
from tec.locality_check import check_input
from tec.outcome import failure_in, read_records_or_failure
from tec.pin_list import PinList, read_pin_list
from tec.routing_trace import RoutingTrace, read_trace
from tec.table import Column, Table, Value, percent, write_tables

OWN, HELD_OUT = "calibration", "held-out"
"""Values of the column `text`."""
FOLDER = "calibration"
"""Of a study's results: `<row>.pins.txt`, its record, and `<row>.npy`, the routing behind it."""

_HINT = "calibrate again: tec calibrate"


@dataclass(frozen=True)
class Comparison:
    """A list, the routing that it was made from, and another text's."""

    row: str
    variant: Variant
    calibrated_on: str
    pins: PinList
    layers: tuple[int, ...]
    texts: dict[str, RoutingTrace]
    """By value of the column `text`."""

    def lines(self) -> Iterator[dict[str, Value]]:
        """Yield a line for each text, policy and capacity."""
        for text, trace in self.texts.items():
            at = capacities(trace.n_expert, trace.top_k)
            for found in hit_rates(trace, self.pins, self.layers, at):
                yield {
                    "row": self.row,
                    "text": text,
                    "policy": found.policy,
                    "capacity": found.capacity,
                    "hit_rate": found.rate,
                    "calibrated_on": self.calibrated_on,
                    "pinned": found.pinned,
                    "capacity_share": found.capacity / trace.n_expert,
                    "tokens": trace.n_tokens,
                    "variant": self.variant,
                }


def read_comparisons(results: Path, row: str) -> list[Comparison]:
    """Return both calibrations of a row; none if the row failed.

    Raises:
        TecError: a file is missing or damaged, or files do not belong together: the list was made
            for another model or from other routing, or the trace is not that of its record.
    """
    pins_file = results / FOLDER / f"{row}.pins.txt"
    records = read_records_or_failure(results / "runs" / f"{row}.locality.jsonl")
    if not isinstance(records, list) or failure_in(pins_file):
        return []
    made = read_calibration(pins_file)
    if made.origin.model != records[0].model.sha256:
        raise TecError("the list is of another model than the records", pins_file, _HINT)
    own = _recorded(results, row, made)
    pins = read_pin_list(pins_file, made.n_layer, made.n_expert)
    if pins != choose_pins(own, made.moe_layers, made.n_layer, made.origin.limit):
        raise TecError("the list is not made from the routing beside it", pins_file, _HINT)
    text = check_input(results / "traces" / f"{row}.text.npy", "text", records, _HINT).trace
    middle = text.n_tokens // 2
    first, second = (
        RoutingTrace(part, text.n_expert)
        for part in (text.selections[:middle], text.selections[middle:])
    )
    variant, layers = records[0].model.variant, made.moe_layers
    same = choose_pins(first, layers, made.n_layer)
    return [
        Comparison(row, variant, "prompt", pins, layers, {OWN: own, HELD_OUT: text}),
        Comparison(row, variant, "text", same, layers, {OWN: first, HELD_OUT: second}),
    ]


def _recorded(results: Path, row: str, made: Calibration) -> RoutingTrace:
    path = results / FOLDER / f"{row}.npy"
    trace = read_trace(path, made.n_expert)
    if (trace.n_tokens, trace.n_layers) != (made.tokens, len(made.moe_layers)):
        raise TecError(
            f"the routing is of {trace.n_tokens} tokens in {trace.n_layers} layers, the list is "
            f"made from {made.tokens} in {len(made.moe_layers)}",
            path,
            _HINT,
        )
    return trace


def calibration_table(comparisons: Sequence[Comparison]) -> Table:
    """Hit rates of pinned experts, of LRU and of both; for people the two texts side by side."""
    rows = [line for comparison in comparisons for line in comparison.lines()]
    return Table(
        name="calibration",
        caption=(
            "Hit rates in percent of experts pinned by frequency (P), of LRU, and of both, on the "
            "text that the pins were chosen from and on text held out. Predicted from recorded "
            "routing; pins alone are a bound, no mode of the programs. LRU chooses nothing in "
            "advance: its difference is that between the texts."
        ),
        keys=(
            *("row", "text", "policy", "capacity", "hit_rate"),
            *("calibrated_on", "pinned", "capacity_share", "tokens", "variant"),
        ),
        columns=(
            Column("row", "row"),
            Column("calibrated_on", "calibrated on"),
            Column("policy", "policy"),
            Column("capacity", "C"),
            Column("pinned", "P"),
            Column(OWN, "own text", percent),
            Column(HELD_OUT, "held out", percent),
            Column("lost", "lost", percent),
        ),
        rows=tuple(rows),
        printed=tuple(_side_by_side(rows)),
    )


def _side_by_side(rows: Sequence[dict[str, Value]]) -> Iterator[dict[str, Value]]:
    """Yield a line for each pair of lines that differ in the text alone."""
    keys = ("row", "calibrated_on", "policy", "capacity")
    held_out = {tuple(row[k] for k in keys): row for row in rows if row["text"] == HELD_OUT}
    for row in rows:
        if row["text"] == OWN:
            own = float(row["hit_rate"] or 0)
            other = float(held_out[tuple(row[k] for k in keys)]["hit_rate"] or 0)
            yield {**row, OWN: own, HELD_OUT: other, "lost": own - other}


def write_calibration_table(results: Path, rows: Sequence[str]) -> None:
    """Write `tables/calibration` as CSV, Markdown and LaTeX."""
    comparisons = [found for row in rows for found in read_comparisons(results, row)]
    write_tables([calibration_table(comparisons)], results / "tables")


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec calibration`."""
    parser = sub.add_parser(
        "calibration", help="table of hit rates: pinned experts, LRU and both, on held-out text"
    )
    parser.add_argument("results", type=Path, help="the study's folder, such as results/demo")
    parser.add_argument("--row", dest="rows", action="append", required=True, metavar="ROW")
    parser.set_defaults(run=lambda options: write_calibration_table(options.results, options.rows))
