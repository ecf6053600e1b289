"""Verdicts: does the cache change what a model says.

1. self: the reference gives the same logits and tokens in fresh processes;
2. bitwise: every step's logits of a cached arm equal the reference's;
3. greedy: the same tokens as the stock engine with its experts on the CPU;
4. ppl, kl: perplexity and KL divergence on a text.

An arm whose misses the CPU computes (the policies `hot` and `hybrid`) is held to the last two: the
CPU's sums have another order than the device's. Where it computed nothing, its bits are compared
too.

The first three are judged for every number of sequences decoded together (batch). A bitwise check
counts only where the cache was at work: steps with more experts than slots go past it, and where
there are fewer slots than experts some expert must have been copied into one.

Of a replica the reference has every expert on the GPU, resident or streamed, and one sequence
follows a trace; the third and fourth are for trained models.

On the CPU back end the arm with the cache off is both the reference and the stock engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tec.errors import TecError
from tec.expert_bench import Batches, ExpertBench, Prompt
from tec.perplexity import Divergence
from tec.policies import ON_CPU
from tec.records import Check, Outcome, Record, Verdict

_Finding = tuple[Outcome, str]

ENFORCED: tuple[Check, ...] = ("self", "bitwise")


@dataclass(frozen=True)
class Tolerance:
    """What passes on a text."""

    ppl: float
    """Largest relative difference of the perplexities."""
    kl: float
    """Largest mean KL divergence, in nats per token above the reference's own."""


SAME_SUMS = Tolerance(ppl=1e-3, kl=1e-4)
OTHER_SUMS = Tolerance(ppl=5e-3, kl=1e-3)
"""For arms whose misses the CPU computes. The stock engine differs from itself by 1.2e-3 and 3.0e-4
on the shipped model, with and without repacked weights: sums in another order, of activations
rounded to 8 bits."""

PAST = "go past the cache"
"""In the detail of a bitwise check: equal, but not the cache's doing."""
BY_CPU = "misses computed by the CPU"
"""In the detail of a bitwise check that was not made, as sums have another order there."""

_GENERATED = "for trained models only: the weights are generated, and text means nothing to them"
_AT_THE_ENDS = "run at the smallest and the largest capacity only"


def judge(records: Sequence[Record]) -> list[Verdict]:
    """Return the verdicts that the records of one row's parity runs support."""
    return list(_Judge(records).verdicts())


def enforce(verdicts: Sequence[Verdict]) -> None:
    """Raise a TecError when a check that decides about the run has not passed.

    Steps that go past the cache decide nothing. Of an arm whose misses the CPU computed, perplexity
    and divergence decide: a difference in the last bits may turn a token over.
    """
    computed = {(v.row, v.arm) for v in verdicts if on_cpu(v)}
    failed = [
        v
        for v in verdicts
        if (v.check in ENFORCED and v.verdict != "pass" and not went_past(v) and not on_cpu(v))
        or ((v.row, v.arm) in computed and v.check in ("ppl", "kl") and v.verdict == "fail")
    ]
    if failed:
        raise TecError(
            "parity failed: " + "; ".join(f"{v.row} {v.arm} {v.check}: {v.detail}" for v in failed),
            hint="the cache or the build is wrong: no number of this run means anything",
        )


def went_past(verdict: Verdict) -> bool:
    """Say whether a check's outputs are equal, but its steps too large for the cache."""
    return verdict.verdict == "not_run" and PAST in verdict.detail


def on_cpu(verdict: Verdict) -> bool:
    """Say whether a check of bits was not made because the CPU computed misses."""
    return verdict.verdict == "not_run" and BY_CPU in verdict.detail


class _Judge:
    """The parity runs of one row, by test and arm."""

    def __init__(self, records: Sequence[Record]) -> None:
        ordered = sorted(records, key=lambda record: record.order)
        self.first = ordered[0]
        self.reference = self.first.arm
        rounds: dict[str, dict[int, dict[int, ExpertBench]]] = {}
        self.divergence: dict[str, Divergence] = {}
        for record in ordered:
            if record.test in ("greedy", "replay"):
                runs = Batches.model_validate(record.result).runs
                of_round = rounds.setdefault(record.arm, {}).setdefault(record.round, {})
                of_round |= {run.parallel: run for run in runs}
            elif record.test == "kl":
                self.divergence[record.arm] = Divergence.model_validate(record.result)
        self.greedy = {arm: list(found.values()) for arm, found in rounds.items()}
        self.generated = self.first.model.variant == "replica"

    def verdicts(self) -> Iterator[Verdict]:
        """Yield the reference's checks, then every cached arm's."""
        for batch in self.greedy[self.reference][0]:
            yield self._verdict(self.reference, "self", self._self(batch), batch)
        for arm, (first, *_) in self.greedy.items():
            if arm != self.reference:
                for batch in first:
                    yield self._verdict(arm, "bitwise", self._bitwise(arm, batch), batch)
                    yield self._verdict(arm, "greedy", self._greedy(arm, batch), batch)
                yield self._verdict(arm, "ppl", self._ppl(arm))
                yield self._verdict(arm, "kl", self._kl(arm))

    def _verdict(
        self, arm: str, check: Check, finding: _Finding, batch: int | None = None
    ) -> Verdict:
        outcome, detail = finding
        return Verdict(
            row=self.first.row,
            arm=arm,
            check=check,
            verdict=outcome,
            detail=detail,
            evidence=self.first.evidence,
            batch=batch,
        )

    def _self(self, batch: int) -> _Finding:
        first, *others = (runs[batch] for runs in self.greedy[self.reference])
        if not others:
            return "not_run", "needs two fresh processes"
        for other in others:
            if (place := _first_difference(first, other, _said)) is not None:
                return "fail", f"two fresh processes differ first at {place}"
        return "pass", f"{_n_steps(first)} steps equal in {1 + len(others)} fresh processes"

    def _bitwise(self, arm: str, batch: int) -> _Finding:
        reference, run = self.greedy[self.reference][0][batch], self.greedy[arm][0][batch]
        if computed := max(run.computed, run.status.computed_by_cpu):
            held = "trained models are" if self.generated else "the arm is"
            why = f"whose sums have another order: {held} held to tokens, perplexity and divergence"
            return "not_run", f"{computed} {BY_CPU}, {why}"
        if (place := _first_difference(reference, run, _logits)) is not None:
            return "fail", f"logits differ from those of {self.reference} first at {place}"
        equal = f"logits of {_n_steps(run)} steps equal those of {self.reference}"
        limit = run.status.batch_limit
        if batch > 1 and limit is not None and batch > limit:  # a single token is always served
            return "not_run", f"{equal}; steps of {batch} tokens {PAST} (limit {limit})"
        if run.hits + run.misses == 0:
            return "not_run", f"{equal}, but no expert was looked up in the cache"
        if run.misses == 0 and (run.capacity or 0) < self.first.model.n_expert:
            return "not_run", f"{equal}, but no expert was copied into a slot: nothing was checked"
        return "pass", f"{equal}; {run.misses} experts copied into slots"

    def _greedy(self, arm: str, batch: int) -> _Finding:
        if self.generated:
            return "not_run", _GENERATED
        reference, run = self.greedy[self.reference][0][batch], self.greedy[arm][0][batch]
        place = _first_difference(reference, run, _tokens)
        if place is None:
            return "pass", f"{_n_steps(run)} tokens equal those of {self.reference}"
        margin = place.margin(reference)
        return "fail", (
            f"tokens differ from those of {self.reference} first at {place}; "
            f"its two best logits are {margin:.4g} apart there"
        )

    def _ppl(self, arm: str) -> _Finding:
        found = self.divergence.get(arm)
        if found is None:
            return "not_run", _GENERATED if self.generated else _AT_THE_ENDS
        # from the same kind of run: the file with the reference's predictions has only 16 bits each
        reference = self.divergence[self.reference].ppl
        apart = found.ppl / reference - 1
        detail = f"{found.ppl:.4f}, {self.reference} {reference:.4f} ({apart:+.1e})"
        return ("pass" if abs(apart) <= self._tolerance(arm).ppl else "fail"), detail

    def _kl(self, arm: str) -> _Finding:
        found = self.divergence.get(arm)
        if found is None:
            return "not_run", _GENERATED if self.generated else _AT_THE_ENDS
        floor = self.divergence[self.reference].kl_mean
        detail = (
            f"mean {_nats(found.kl_mean)} nats, {self.reference} itself {_nats(floor)}; "
            f"same top token {found.same_top:.1f} %"
        )
        return ("pass" if found.kl_mean <= floor + self._tolerance(arm).kl else "fail"), detail

    def _tolerance(self, arm: str) -> Tolerance:
        runs = self.greedy[arm][0].values()
        return OTHER_SUMS if any(run.policy in ON_CPU for run in runs) else SAME_SUMS


@dataclass(frozen=True)
class _Place:
    """A generated token: which prompt, which of its tokens (from 0)."""

    prompt: int
    token: int

    def margin(self, run: ExpertBench) -> float:
        """Return how far apart the two best logits are that the token was chosen from."""
        return run.prompts[self.prompt].logits_margin[self.token]

    def __str__(self) -> str:
        return f"prompt {self.prompt}, token {self.token}"


def _first_difference(
    one: ExpertBench, other: ExpertBench, what: Callable[[Prompt], Sequence[object]]
) -> _Place | None:
    """Return the first generated token at which two runs of the same prompts differ."""
    for index, (left, right) in enumerate(zip(one.prompts, other.prompts, strict=True)):
        for token, (a, b) in enumerate(zip(what(left), what(right), strict=True)):
            if a != b:
                return _Place(index, token)
    return None


def _logits(prompt: Prompt) -> Sequence[object]:
    return prompt.logits_hash


def _tokens(prompt: Prompt) -> Sequence[object]:
    return prompt.tokens


def _said(prompt: Prompt) -> Sequence[object]:
    return list(zip(prompt.logits_hash, prompt.tokens, strict=True))


def _nats(value: float) -> str:
    """Return a divergence with 3 significant digits; rounding can leave a zero with a sign."""
    return f"{value:.2e}" if value else "0"


def _n_steps(run: ExpertBench) -> int:
    return sum(len(prompt.tokens) for prompt in run.prompts)
