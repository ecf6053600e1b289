"""From a study, a row and an arm to the command line of one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tec import expert_bench, llama_bench, perplexity
from tec.build import Manifest
from tec.choice import Choice
from tec.config import (
    Arm,
    LocalityProtocol,
    PromptsProtocol,
    RandomProtocol,
    ReplayProtocol,
    Row,
    Scope,
    Study,
)
from tec.errors import TecError
from tec.gguf_file import ModelInfo
from tec.inputs import Input
from tec.measure_key import measure_key
from tec.paths import CACHE, ROOT, relative
from tec.session import Parser, Step


@dataclass(frozen=True)
class Steps:
    """Makes the steps of one study and row, with one build and model file."""

    study: Study
    row: Row
    model: ModelInfo
    manifest: Manifest
    choice: Choice = field(default_factory=Choice)

    @cached_property
    def scope(self) -> Scope:
        """What the study runs for this row."""
        return self.study.scope(self.row.name)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The chosen arms for this model, in the study's order."""
        n_expert, n_expert_used = self.model.n_expert, self.model.n_expert_used
        return self.choice.narrow(self.study.expand_arms(self.row.name, n_expert, n_expert_used))

    @property
    def cached(self) -> list[str]:
        """The arms with the cache on."""
        return [name for name, arm in self.arms.items() if arm.expert_cache != "off"]

    @property
    def copying(self) -> list[str]:
        """Those of them that copy every miss: the device computes all, and bits can be compared."""
        return [name for name in self.cached if not self.arms[name].computes_misses]

    @cached_property
    def reference(self) -> str:
        """The arm that the others are compared with: the first with the cache off.

        Raises:
            TecError: there is none.
        """
        for name, arm in self.arms.items():
            if arm.expert_cache == "off":
                return name
        raise TecError(
            "parity and locality need an arm with the cache off",
            f"study {self.study.name}",
            "add one: off: {expert_cache: off}",
        )

    def rounds(self, protocol: PromptsProtocol | RandomProtocol | ReplayProtocol) -> int:
        """Return how often each arm runs: what was chosen, or what the protocol says."""
        return self.choice.rounds or protocol.rounds

    def decode_prompts(self, arm: str, number: int) -> Step:
        """Decode the row's prompts greedily in round `number`."""
        parse = partial(expert_bench.parse, expert_cache=self._asked(arm))
        return self._decode("prompts", arm, number, self.scope.protocols.main.n_gen, parse)

    def decode_batches(self, arm: str, number: int) -> Step:
        """Decode prompts greedily in every batch size of the parity checks, in round `number`."""
        parity = self.scope.parity
        parse = partial(
            expert_bench.parse_batches,
            expert_cache=self._asked(arm),
            batches=tuple(parity.batches),
        )
        more = {"batches": parity.batches, "first": parity.prompts}
        return self._decode("greedy", arm, number, parity.n_gen, parse, **more)

    def _decode(
        self, test: str, arm: str, number: int, n_gen: int, parse: Parser, **more: Any
    ) -> Step:
        protocol = self.scope.protocols.main
        return Step(
            arm=arm,
            test=test,
            round=number,
            expert_cache=self._asked(arm),
            command=expert_bench.command(
                self.binary(expert_bench.TOOL),
                self.model.path,
                str(self.row.prompts),
                n_gen,
                protocol.threads,
                protocol.ctx,
                self.arms[arm].arguments(),
                **more,
            ),
            parse=parse,
            reads=(ROOT / self.row.prompts,),
        )

    def decode_input(
        self, protocol: LocalityProtocol, tokens: Input, arm: str, trace: Path | None
    ) -> Step:
        """Decode an input's tokens one by one; with `trace`, record the routing there."""
        asked = self._asked(arm)
        parse = partial(expert_bench.parse, expert_cache=asked)
        if trace:
            parse = partial(expert_bench.parse_traced, expert_cache=asked, trace=trace)
        return Step(
            arm=arm,
            test=tokens.name,
            round=0,
            expert_cache=asked,
            command=expert_bench.forced_command(
                self.binary(expert_bench.TOOL),
                self.model.path,
                shown(tokens.path),
                protocol.tokens,
                protocol.threads,
                self.arms[arm].arguments(),
                shown(trace) if trace else None,
            ),
            parse=parse,
            reads=(tokens.path,),
            makes=trace,
        )

    def random_tests(self, protocol: RandomProtocol, arm: str, number: int) -> list[Step]:
        """Run the published protocol in round `number`: prompt and decode apart."""
        tests = ((protocol.n_prompt, 0), (0, protocol.n_gen))
        return [self.random_tokens(protocol, arm, number, *test) for test in tests]

    def random_tokens(
        self, protocol: RandomProtocol, arm: str, number: int, n_prompt: int, n_gen: int
    ) -> Step:
        """Run one llama-bench test in round `number`; one of `n_prompt` and `n_gen` is 0."""
        chosen = self.arms[arm]
        asked = self._asked(arm)
        return Step(
            arm=arm,
            test=llama_bench.test_name(n_prompt, n_gen),
            round=number,
            expert_cache=asked,
            command=llama_bench.command(
                self.binary(llama_bench.TOOL),
                self.model.path,
                n_prompt,
                n_gen,
                protocol.threads,
                chosen.arguments(),
            ),
            parse=partial(llama_bench.parse, expert_cache=asked),
        )

    def reference_perplexity(self, arm: str) -> Step:
        """Compute the parity text's perplexity and keep the predictions as the reference."""
        return Step(
            arm=arm,
            test="ppl",
            round=0,
            expert_cache=self._asked(arm),
            command=perplexity.reference_command(
                self.binary(perplexity.TOOL),
                self.model.path,
                str(self.scope.parity.text),
                self.scope.parity.chunks,
                shown(self.reference_file),
                self.scope.protocols.main.threads,
                self.arms[arm].arguments(),
            ),
            parse=perplexity.parse_reference,
            reads=(ROOT / self.scope.parity.text,),
            makes=self.reference_file,
        )

    def divergence(self, arm: str) -> Step:
        """Compare an arm's predictions on the parity text with the reference's."""
        return Step(
            arm=arm,
            test="kl",
            round=0,
            expert_cache=self._asked(arm),
            command=perplexity.divergence_command(
                self.binary(perplexity.TOOL),
                self.model.path,
                shown(self.reference_file),
                self.scope.protocols.main.threads,
                self.arms[arm].arguments(),
            ),
            parse=perplexity.parse_divergence,
            reads=(ROOT / self.scope.parity.text,),
        )

    @property
    def reference_file(self) -> Path:
        """The scratch file with the predictions of this build and model on the parity text."""
        parity = self.scope.parity.model_dump_json()
        key = measure_key(parity, self.manifest, self.model.sha256, machine="")
        return CACHE / "parity" / self.study.name / f"{self.row.name}.{key}.logits"

    def _asked(self, arm: str) -> str:
        """Return what an arm asks of the cache: off, auto or slots per layer."""
        return str(self.arms[arm].expert_cache)

    def binary(self, name: str) -> str:
        """Return a tool of the build as commands name it; a TecError if the build has none."""
        if name not in self.manifest.binaries:
            raise TecError(
                f"the build for {self.manifest.target} has no {name}",
                self.manifest.bin_dir,
                f"build it again: tec build {self.manifest.target}",
            )
        return shown(self.manifest.bin_dir / name)


def shown(path: Path) -> str:
    """Return a path as commands name it: relative to the repository where it lies inside."""
    return relative(path) if path.is_relative_to(ROOT) else str(path)
