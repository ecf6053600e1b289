"""A miniature is of use only if it behaves: finite, varied, with routing that lasts but changes.

Routing that repeats itself more than uniform choice would is not enough: unequal popularity of the
experts does that alone. It has to repeat more than independent tokens that want each expert as
often. The statistics are those of a text that the groups of tokens were not learned from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from tec.build import Manifest, default_jobs
from tec.config import Row
from tec.errors import TecError
from tec.gguf_file import read_geometry
from tec.locality import summarise
from tec.miniature_groups import checked_text
from tec.paths import MODELS, ROOT
from tec.process import run_tool
from tec.routing_summary import RoutingSummary
from tec.rtrace import open_rtrace, to_selections

_CONTEXT = 2048

_PROMPTS = 4
_TOKENS = 24
_TAIL = 8
"""Tokens at the end of a prompt's decoding of which more than two have to differ."""
_LEAST_REUSE = 1.2
"""Selections that repeat the token before, over what uniform routing would give."""
_LEAST_LASTING = 1.15
"""The same over what independent tokens that want each expert as often would give."""
_LASTING_FROM = 32
"""Experts from which on that is asked: with few of them, popularity leaves no room for more."""
_MOST_REUSE = 0.95
"""Share of such selections above which routing hardly depends on the token."""


class _Decoded(BaseModel):
    tokens: list[int]
    logits_hash: list[str]


class _Bench(BaseModel):
    """What is read of llama-expert-bench's line."""

    prompts: list[_Decoded]


def check(row: Row, path: Path, manifest: Manifest, log: Path) -> RoutingSummary:
    """Run a miniature on real text and return the statistics of its routing.

    Args:
        row: the row, named in errors; its first prompts are decoded.
        path: the miniature.
        manifest: the build whose tools run it.
        log: where their output goes.

    Raises:
        TecError: outputs are not finite or hardly change, or routing is uniform or does not change.
    """
    _check_outputs(row, _decode(row, path, manifest, log))
    routing = summarise_routing(path, manifest, log)
    geometry = read_geometry(path)
    chance = geometry.n_expert_used / geometry.n_expert
    if routing.next_token < _LEAST_REUSE * chance:
        raise _refused(
            row,
            f"its routing is uniform: a token selects {routing.next_token:.1%} of the experts of "
            f"the token before, chance gives {chance:.1%}",
        )
    if routing.next_token > _MOST_REUSE:
        raise _refused(
            row, f"its routing is constant: {routing.next_token:.1%} of it repeats the token before"
        )
    if geometry.n_expert >= _LASTING_FROM:
        _check_order(row, routing)
    return routing


def _check_order(row: Row, routing: RoutingSummary) -> None:
    """Refuse routing that repeats only because some experts are wanted more often than others."""
    independent = routing.next_token_independent
    if independent is None or routing.next_token < _LEAST_LASTING * independent:
        raise _refused(
            row,
            f"its routing has no temporal reuse: a token selects {routing.next_token:.1%} of the "
            f"experts of the token before, independent tokens {independent or 0:.1%}",
        )


def summarise_routing(path: Path, manifest: Manifest, log: Path | None = None) -> RoutingSummary:
    """Record the routing of the model at `path` on held-out text and return its statistics.

    Raises:
        TecError: the tool fails, or a router's score is not a number.
    """
    tool = manifest.bin_dir / "llama-router-trace"
    with tempfile.TemporaryDirectory() as folder:
        text, trace = Path(folder, "text.txt"), Path(folder, "routing.rtrace")
        text.write_text(checked_text(), encoding="utf-8")
        command = [tool, "-m", path, "-f", text, "-n", 0, "-c", _CONTEXT, "-t", default_jobs()]
        environment = {"ROUTER_TRACE_OUT": str(trace)}
        run_tool([str(word) for word in command], environment, log or path.with_suffix(".log"))
        geometry = read_geometry(path)
        recorded = open_rtrace(trace, geometry.n_expert)
        return summarise(to_selections(recorded, geometry.n_expert_used))


def _decode(row: Row, path: Path, manifest: Manifest, log: Path) -> list[_Decoded]:
    """Decode the row's first prompts; the tool fails where logits are not finite."""
    lines = (ROOT / row.prompts).read_text(encoding="utf-8").splitlines()[:_PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [manifest.bin_dir / "llama-expert-bench", "-m", path, "--prompts", prompts]
        command += ["-n", _TOKENS, "-c", _CONTEXT, "-t", default_jobs()]
        try:
            printed = run_tool([str(word) for word in command], {}, log).stdout
        except TecError as error:
            raise _refused(row, error.what) from error
    return _Bench.model_validate(json.loads(printed)).prompts


def _check_outputs(row: Row, decoded: Sequence[_Decoded]) -> None:
    if all(len(set(prompt.tokens[-_TAIL:])) <= 2 for prompt in decoded):
        raise _refused(row, "every prompt ends in one or two tokens that repeat")
    hashes = [value for prompt in decoded for value in prompt.logits_hash]
    if len(set(hashes)) < len(hashes) / 2:
        raise _refused(row, f"only {len(set(hashes))} of {len(hashes)} outputs differ")


def _refused(row: Row, reason: str) -> TecError:
    return TecError(
        f"the miniature of row {row.name} is of no use: {reason}",
        MODELS / f"{row.name}.yaml",
        "change the keys or the seed of its miniature",
    )
