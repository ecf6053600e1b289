"""The routing of a text, recorded with llama-router-trace.

A text that is longer than the model's context is recorded in pieces, each from an empty context.
"""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tec.build import Manifest, default_jobs
from tec.calibration_model import CalibratedModel
from tec.errors import TecError
from tec.process import ToolError, run_tool
from tec.progress import Progress
from tec.routing_trace import RoutingTrace, make_trace
from tec.rtrace import open_rtrace, to_selections

TOOL = "llama-router-trace"

_PLACEMENT = ("-ngl", "99", "-ncmoe", "99", "-fa", "1")
"""As the published clients call it: all experts in host memory, all else on the GPU."""
_SPECIAL = 8
"""Tokens that a vocabulary may put around a text."""
_FILLED = 0.8
"""Of a context, by each piece of a text: its tokens are not spread evenly."""
_TOO_LONG = re.compile(r"the prompt of (\d+) tokens and \d+ more do not fit the context")


@dataclass(frozen=True)
class Recording:
    """The routing of a text."""

    trace: RoutingTrace
    layers: tuple[int, ...]
    """The model layer of each MoE layer of the trace."""
    pieces: int
    """Contexts that the text took."""


def record_routing(
    model: CalibratedModel, text: str, generated: int, manifest: Manifest, log: Path
) -> Recording:
    """Run a model on a text and return which experts its tokens selected.

    Args:
        model: the model.
        text: what it reads; taken as it is, without escapes.
        generated: tokens that it then generates greedily.
        manifest: the build whose llama-router-trace runs it.
        log: where the tool's messages go.

    Raises:
        TecError: the build has no such tool, the tool fails, or the tokens to generate fill the
            context.
    """
    if TOOL not in manifest.binaries:
        raise TecError(
            f"the build for {manifest.target} has no {TOOL}",
            manifest.bin_dir,
            f"build it again: tec build {manifest.target}",
        )
    if 0 < model.context <= generated + _SPECIAL:
        raise TecError(
            f"{generated} tokens to generate leave no room in the context of {model.context}",
            model.name,
            "generate fewer",
        )
    todo, done = deque([text]), list[RoutingTrace]()
    layers: tuple[int, ...] = ()
    progress = Progress(f"recording the routing of {model.name} ({len(text)} characters)")
    with tempfile.TemporaryDirectory(prefix="tec-calibrate-") as folder:
        while todo:
            piece = todo.popleft()
            more = generated if not todo else 0
            try:
                trace, layers = _record(model, piece, more, manifest, Path(folder), log)
            except ToolError as error:
                todo.extendleft(reversed(_shorter(piece, error, model.context - more)))
                continue
            done.append(trace)
            progress.update(len(done), len(done) + len(todo))
    selections = np.concatenate([trace.selections for trace in done])
    progress.finish(f"{len(selections)} tokens")
    n_expert = model.geometry.n_expert
    return Recording(make_trace(selections, n_expert, model.name), layers, len(done))


def _record(
    model: CalibratedModel, text: str, generated: int, manifest: Manifest, folder: Path, log: Path
) -> tuple[RoutingTrace, tuple[int, ...]]:
    """Record what fits into one context."""
    prompt, scores = folder / "prompt.txt", folder / "routing.rtrace"
    prompt.write_text(text, encoding="utf-8")
    # a token has at least one byte: more context than this is never used, and costs memory
    context = len(text.encode()) + generated + _SPECIAL
    if model.context:
        context = min(context, model.context)
    command = [manifest.bin_dir / TOOL, "-m", model.path, "-f", prompt, "-n", generated]
    command += [*_PLACEMENT, "-c", context, "-t", default_jobs(), "--no-escape"]
    run_tool([str(word) for word in command], {"ROUTER_TRACE_OUT": str(scores)}, log)
    opened = open_rtrace(scores, model.geometry.n_expert)
    return to_selections(opened, model.geometry.n_expert_used), opened.layers


def _shorter(text: str, error: ToolError, room: int) -> list[str]:
    """Return a text that did not fit in pieces that should; raise any other error again."""
    found = _TOO_LONG.search(error.said)
    if found is None or len(text) < 2:
        raise error
    return list(split(text, max(2, -int(-int(found[1]) // (_FILLED * room)))))


def split(text: str, count: int) -> Iterator[str]:
    """Yield a text in about equal pieces, cut after a paragraph, a line or a word if one ends."""
    begin = 0
    for number in range(1, count + 1):
        end = len(text) * number // count
        if number < count:
            end = _cut(text, begin, end)
        if end > begin:
            yield text[begin:end]
        begin = end


def _cut(text: str, begin: int, end: int) -> int:
    """Return the last good place to cut before `end` and past the middle of the piece."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, (begin + end) // 2, end)
        if found >= 0:
            return found + len(mark)
    return end
