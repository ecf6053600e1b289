"""The table of rows: what each model is, what of it a miniature keeps, and what was checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tec.config import Row, load_row
from tec.gguf_file import ModelInfo
from tec.outcome import Failure
from tec.paths import MODELS
from tec.quantities import GIB
from tec.records import Check, Outcome, Verdict
from tec.routing_summary import RoutingSummary
from tec.table import Column, Table, Value, digits, percent
from tec.verdicts import on_cpu, went_past

_ROUTING = (
    *("overlap_8", "overlap_8_uniform", "median_reuse"),
    *("next_token", "next_token_independent", "effective_experts"),
)
_ORDER = "next_token_ratio"
"""How many times as often as in independent tokens a selection repeats the token before."""


def rows_table(
    models: Mapping[str, ModelInfo],
    verdicts: Iterable[Sequence[Verdict]],
    failures: Iterable[Failure],
    order: Iterable[str],
) -> Table:
    """Return a line per row.

    `row_layers` and `row_moe_layers` are those of the row's own file, `n_layer` and `n_moe_layers`
    those of the file that was run. `self` and `bitwise` are `pass` where every such check passed.
    The routing of a miniature is what `tec model` measured when it made it.

    Args:
        models: of the rows with a record.
        verdicts: of each row that was judged.
        failures: of the rows that failed.
        order: names of the rows as they are to follow each other.
    """
    judged = {row[0].row: row for row in verdicts if row}
    failed = {failure.row: failure for failure in failures}
    lines = [
        _line(row, models.get(row), judged.get(row, ()), failed.get(row))
        for row in dict.fromkeys([*order, *models])
    ]
    return Table(
        name="rows",
        caption=(
            "The rows: layers of the file that was run and of the row's own; the routing of "
            "miniatures as overlap with the last 8 tokens in percent, beside that of uniformly "
            "random routing."
        ),
        keys=(
            *("row", "title", "variant", "outcome", "arch", "n_expert", "n_expert_used"),
            *("quant", "size_gib", "n_layer", "n_moe_layers", "row_layers", "row_moe_layers"),
            *("self", "bitwise"),
            *_ROUTING,
            _ORDER,
        ),
        columns=(
            Column("row", "row"),
            Column("variant", "variant"),
            Column("arch", "arch"),
            Column("n_expert", "N"),
            Column("n_expert_used", "K"),
            Column("n_layer", "layers"),
            Column("row_layers", "the row's"),
            Column("quant", "quant"),
            Column("size_gib", "GiB", digits(3)),
            Column("bitwise", "bitwise"),
            Column("overlap_8", "W = 8", percent),
            Column("overlap_8_uniform", "uniform", percent),
        ),
        rows=tuple(lines),
    )


def _line(
    row: str, model: ModelInfo | None, verdicts: Sequence[Verdict], failure: Failure | None
) -> dict[str, Value]:
    configured = _configured(row)
    shape = (configured and configured.shape) or model
    named_by = model or failure
    return {
        "row": row,
        "title": configured.title if configured else row,
        "variant": named_by.variant if named_by else None,
        "outcome": "failed" if failure else "ok",
        "arch": shape.arch if shape else None,
        "n_expert": shape.n_expert if shape else None,
        "n_expert_used": shape.n_expert_used if shape else None,
        "quant": model.quant if model else None,
        "size_gib": model.bytes / GIB if model else None,
        "n_layer": model.n_layer if model else None,
        "n_moe_layers": model.n_moe_layers if model else None,
        "row_layers": shape.n_layer if shape else None,
        "row_moe_layers": shape.n_moe_layers if shape else None,
        "self": _all_of(verdicts, "self"),
        "bitwise": _all_of(verdicts, "bitwise"),
        **_routing(model.routing if model else None),
    }


def _configured(row: str) -> Row | None:
    """Return the row's configuration; None where its records have outlived it."""
    return load_row(row) if (MODELS / f"{row}.yaml").is_file() else None


def _all_of(verdicts: Sequence[Verdict], check: Check) -> Outcome:
    """Return one verdict for a check at every capacity and batch; the worst counts.

    Steps that went past the cache, and those with misses that the CPU computed, do not count.
    """
    counted = [v for v in verdicts if v.check == check and not went_past(v) and not on_cpu(v)]
    found = {v.verdict for v in counted}
    if "fail" in found:
        return "fail"
    return "pass" if found == {"pass"} else "not_run"


def _routing(summary: RoutingSummary | None) -> dict[str, Value]:
    found: dict[str, Value] = {key: getattr(summary, key, None) for key in _ROUTING}
    independent = summary and summary.next_token_independent
    return {**found, _ORDER: summary.next_token / independent if summary and independent else None}
