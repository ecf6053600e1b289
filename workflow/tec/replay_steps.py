"""The processes of the replay protocol: all arms decode the same tokens along the same routing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tec import expert_bench
from tec.belady import belady_misses
from tec.config import ReplayProtocol
from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.inputs import input_folder
from tec.prober import MISFIT
from tec.process import Finished, ToolError
from tec.records import PROBE
from tec.replay_inputs import ReplayInputs, write_pins, write_replay_inputs
from tec.routing_trace import read_trace
from tec.session import Step
from tec.steps import Steps, shown
from tec.summary import is_resident
from tec.trace_generator import statistics_file

REPLAY = "replay"
"""The test of a whole replay."""
PROBE_TOKENS = 8
"""Decoded to see whether an arm loads and runs."""
ON_GPU = ("--gpu-layers", "99", "--fit", "off")
"""Every layer on the GPU, but for what other options keep in host memory."""


@dataclass(frozen=True)
class Placed:
    """An arm with all that its command line needs."""

    words: tuple[str, ...]
    limit_mib: int


class ReplaySteps:
    """Makes the processes of one row's replay."""

    def __init__(self, steps: Steps) -> None:
        protocol = steps.scope.protocols.replay
        if protocol is None:
            raise TecError(
                f"protocol replay is not run for row {steps.row.name}",
                f"study {steps.study.name}",
                f"add it under protocols in configs/studies/{steps.study.name}.yaml",
            )
        self.steps = steps
        self.protocol: ReplayProtocol = protocol

    @cached_property
    def inputs(self) -> ReplayInputs:
        """The files that are decoded; written if need be."""
        steps = self.steps
        folder = input_folder(steps.study.name, steps.row.name)
        n_prompts = steps.scope.parity.prompts or max(steps.scope.parity.batches)
        return write_replay_inputs(steps.row, steps.model, self.protocol, n_prompts, folder)

    @cached_property
    def pins(self) -> Path:
        """The pin list of arms with unified memory; written if need be."""
        return write_pins(self.steps.model, self.protocol, self.inputs.trace)

    def words(self, arm: str) -> tuple[str, ...]:
        """Return the arguments of an arm that is not searched for."""
        given = self.steps.arms[arm].arguments()
        if self.steps.arms[arm].unified:
            given += ["--expert-cache-pin-list", shown(self.pins)]
        ours = zip(ON_GPU[::2], ON_GPU[1::2], strict=True)
        return (*(word for pair in ours if pair[0] not in given for word in pair), *given)

    def decode(self, arm: str, number: int, placed: Placed) -> Step:
        """Decode the tokens along the trace in round `number`.

        Only the resident arm may turn out not to fit: without another one the stock engine would
        look slower than it is.
        """
        step = self._step(arm, placed.words, self.protocol.n_gen, placed.limit_mib)
        parse = partial(
            _parse_replayed,
            expert_cache=step.expert_cache,
            statistics=statistics_file(self.inputs.trace),
            trace=self.inputs.trace,
        )
        step = replace(step, test=REPLAY, round=number, parse=parse)
        if is_resident(arm):
            return replace(step, tolerates=MISFIT)
        return replace(step, explain=partial(self._unexpected, arm, placed.limit_mib))

    def _unexpected(self, arm: str, limit_mib: int, error: ToolError) -> TecError | None:
        """Return what to say of an arm that was found to fit and does not; None of other errors."""
        if not MISFIT.search(error.said):
            return None
        study, row = self.steps.study.name, self.steps.row.name
        return TecError(
            f"arm {arm} was found to fit into {limit_mib} MiB of VRAM and ran out of them when it "
            f"was measured: {error.what}",
            f"row {row}, {error.where}",
            f"raise protocols.replay.margin_mib in configs/studies/{study}.yaml, or delete "
            f"results/{study}/kept/{row}.search.*.jsonl so that it is searched again",
        )

    def probe(self, arm: str, words: Sequence[str], limit_mib: int) -> Step:
        """Decode a few tokens, to see whether the arm fits."""
        step = self._step(arm, words, min(PROBE_TOKENS, self.protocol.n_gen), limit_mib)
        return replace(step, test=PROBE, tolerates=MISFIT)

    def whole(
        self, arm: str, number: int, words: Sequence[str], limit_mib: int | None = None
    ) -> Step:
        """Decode the tokens, for parity; the result is that of a batch of one."""
        step = self._step(arm, words, self.protocol.n_gen, limit_mib, host_limit=False)
        asked = step.expert_cache
        parse = partial(expert_bench.parse_batches, expert_cache=asked, batches=(1,))
        return replace(step, test=REPLAY, round=number, parse=parse)

    def together(self, arm: str, number: int, words: Sequence[str]) -> Step:
        """Decode short prompts in batches, with the router's own choice, for parity."""
        parity, asked = self.steps.scope.parity, option(words, "--expert-cache") or "off"
        batches = tuple(batch for batch in parity.batches if batch > 1)
        command = expert_bench.command(
            self.steps.binary(expert_bench.TOOL),
            self.steps.model.path,
            shown(self.inputs.prompts),
            parity.n_gen,
            self.protocol.threads,
            -(-self.protocol.ctx // max(batches)),
            ("-fa", "on", *words),
            batches,
        )
        parse = partial(expert_bench.parse_batches, expert_cache=asked, batches=batches)
        return Step(arm, "greedy", number, asked, command, parse, reads=(self.inputs.prompts,))

    def _step(
        self,
        arm: str,
        words: Sequence[str],
        n_tokens: int,
        limit_mib: int | None,
        *,
        host_limit: bool = True,
    ) -> Step:
        asked = option(words, "--expert-cache") or "off"
        command = expert_bench.replay_command(
            self.steps.binary(expert_bench.TOOL),
            self.steps.model.path,
            shown(self.inputs.tokens),
            shown(self.inputs.trace),
            n_tokens,
            self.protocol.threads,
            self.protocol.ctx,
            words,
            limit_mib,
            self.protocol.host_limit_mib if host_limit else None,
        )
        parse = partial(expert_bench.parse, expert_cache=asked)
        reads = (self.inputs.tokens, self.inputs.trace)
        return Step(arm, REPLAY, 0, asked, command, parse, reads)


def _parse_replayed(
    finished: Finished, expert_cache: str, statistics: Path, trace: Path
) -> dict[str, Any]:
    """Return the tool's line with what is known of the trace it followed.

    That is `trace_statistics`, of the whole trace, and with the cache on `belady`: what Belady's
    policy misses with as many slots, over exactly the tokens that were decoded.
    """
    result = expert_bench.parse(finished, expert_cache)
    known = json.loads(statistics.read_text(encoding="utf-8"))
    return {**result, "trace_statistics": known, **_belady(result, trace, known["n_expert"])}


def _belady(result: Mapping[str, Any], trace: Path, n_expert: int) -> dict[str, Any]:
    """Return `belady` for a run in which every MoE layer has slots; nothing for another one."""
    run = ExpertBench.model_validate(result)
    whole = read_trace(trace, n_expert)
    if run.capacity is None or len(result["layers"]) != whole.n_layers:
        return {}
    followed = replace(whole, selections=whole.selections[: run.decode_tokens])
    misses = belady_misses(followed, run.capacity)
    sizes = [layer["expert_bytes"] for layer in result["layers"]]
    moved = sum(int(count) * size for count, size in zip(misses, sizes, strict=True))
    return {"belady": {"misses": int(misses.sum()), "bytes": moved}}


def option(words: Sequence[str], name: str) -> str | None:
    """Return the value of an option on a command line."""
    return words[list(words).index(name) + 1] if name in words else None
