"""From a study, a row and an arm to the command line of one process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from tec import expert_bench, llama_bench, perplexity
from tec.build import Manifest
from tec.config import Arm, Row, Study
from tec.errors import TecError
from tec.gguf_file import ModelInfo
from tec.paths import CACHE, ROOT, relative
from tec.session import Step


@dataclass(frozen=True)
class Steps:
    """Makes the steps of one study and row, with one build and model file."""

    study: Study
    row: Row
    model: ModelInfo
    manifest: Manifest

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The study's arms for this model, in the study's order."""
        return self.study.expand_arms(self.model.n_expert, self.model.n_expert_used)

    def decode_prompts(self, test: str, arm: str, number: int, n_gen: int) -> Step:
        """Decode the row's prompts greedily, `n_gen` tokens each, in round `number`."""
        protocol = self.study.protocols.prompts
        chosen = self.arms[arm]
        asked = str(chosen.expert_cache)
        return Step(
            arm=arm,
            test=test,
            round=number,
            expert_cache=asked,
            command=expert_bench.command(
                self._binary(expert_bench.TOOL),
                self.model.path,
                str(self.row.prompts),
                n_gen,
                protocol.threads,
                protocol.ctx,
                chosen.arguments(),
            ),
            parse=partial(expert_bench.parse, expert_cache=asked),
            reads=(ROOT / self.row.prompts,),
        )

    def random_tokens(self, arm: str, number: int, n_prompt: int, n_gen: int) -> Step:
        """Run one llama-bench test in round `number`; one of `n_prompt` and `n_gen` is 0."""
        chosen = self.arms[arm]
        asked = str(chosen.expert_cache)
        return Step(
            arm=arm,
            test=llama_bench.test_name(n_prompt, n_gen),
            round=number,
            expert_cache=asked,
            command=llama_bench.command(
                self._binary(llama_bench.TOOL),
                self.model.path,
                n_prompt,
                n_gen,
                self.study.protocols.random.threads,
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
            expert_cache=str(self.arms[arm].expert_cache),
            command=perplexity.reference_command(
                self._binary(perplexity.TOOL),
                self.model.path,
                str(self.study.parity.text),
                _shown(self.reference_file),
                self.study.protocols.prompts.threads,
                self.arms[arm].arguments(),
            ),
            parse=perplexity.parse_reference,
            reads=(ROOT / self.study.parity.text,),
            makes=self.reference_file,
        )

    def divergence(self, arm: str) -> Step:
        """Compare an arm's predictions on the parity text with the reference's."""
        return Step(
            arm=arm,
            test="kl",
            round=0,
            expert_cache=str(self.arms[arm].expert_cache),
            command=perplexity.divergence_command(
                self._binary(perplexity.TOOL),
                self.model.path,
                _shown(self.reference_file),
                self.study.protocols.prompts.threads,
                self.arms[arm].arguments(),
            ),
            parse=perplexity.parse_divergence,
            reads=(ROOT / self.study.parity.text,),
        )

    @property
    def reference_file(self) -> Path:
        """The scratch file with the reference's predictions."""
        return CACHE / "parity" / self.study.name / f"{self.row.name}.logits"

    def _binary(self, name: str) -> str:
        if name not in self.manifest.binaries:
            raise TecError(
                f"the build for {self.manifest.target} has no {name}",
                self.manifest.bin_dir,
                f"build it again: tec build {self.manifest.target}",
            )
        return _shown(self.manifest.bin_dir / name)


def _shown(path: Path) -> str:
    """Return a path as commands name it: relative to the repository where it lies inside."""
    return relative(path) if path.is_relative_to(ROOT) else str(path)
