"""What fits: the VRAM limit of each capacity, and the stock engine's best options at it.

The limit of a capacity is what its cached arm uses and a margin; the stock engine's arms get the
same and are searched for at it: fewest layers with their experts on the CPU, most layers on the
GPU, upstream's own fit with the smallest reserve that loads. Every process really has only so much
memory: llama-expert-bench occupies the rest. The resident arm has the whole card, the other fixed
arms the smallest limit at which they load.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from tec.card import FREE, check_one_gpu
from tec.choice import slots_of
from tec.config import SearchedArm, SweptArm
from tec.errors import TecError
from tec.expert_bench import ExpertBench
from tec.layer_sizes import LayerSizes, read_layer_sizes
from tec.prober import Prober
from tec.quantities import MIB
from tec.replay_steps import ON_GPU, Placed, ReplaySteps, option
from tec.session import Step
from tec.vram_search import most_that_fit

FIT_TARGETS = (128, 256, 512, 1024)
"""MiB that upstream's fit is told to leave free, its default last; the first that loads."""

_MORE_THAN_ANY = 9_999_999
_UNSTEADY_MIB = 512
"""MiB of a card's free memory that are left alone: it differs a little from process to process."""
_WIDENINGS = 3


class Placement:
    """Finds out how each arm of a row is run: its limit, and the options that are searched for."""

    def __init__(self, replay: ReplaySteps, prober: Prober) -> None:
        self.replay = replay
        self.prober = prober
        self.steps = replay.steps

    @cached_property
    def card_mib(self) -> int:
        """MiB of the card that any arm may have: what is free, less what varies."""
        check_one_gpu(len(self.prober.session.system.gpus), os.environ.get("CUDA_VISIBLE_DEVICES"))
        words = [*ON_GPU, "--expert-cache", "off"]
        step = replace(self.replay.probe("card", words, _MORE_THAN_ANY), tolerates=FREE)
        return max(1, self.prober.card(step) - _UNSTEADY_MIB)

    @cached_property
    def capacities(self) -> dict[int, str]:
        """The chosen capacities, ascending, with the first cached arm that has each.

        Without a cached arm the stock engine's arms still have their capacities' limits.
        """
        arms = sorted(self.steps.arms.items(), key=lambda item: isinstance(item[1], SearchedArm))
        chosen: dict[int, str] = {}
        for name, arm in arms:  # those with the cache on first
            slots = slots_of(arm)
            if slots is not None:
                chosen.setdefault(slots, name)
        return dict(sorted(chosen.items()))

    @cached_property
    def limits(self) -> dict[int, int]:
        """MiB of VRAM for each capacity that the card has room for.

        The use grows with the slots, and with nothing else; so one loaded arm tells that of all,
        and loading the largest of every policy at its limit checks it.

        Raises:
            TecError: not even the smallest capacity fits.
        """
        if not self.capacities:
            return {}
        margin = self.replay.protocol.margin_mib
        for widening in range(1, _WIDENINGS + 1):
            found = {
                slots: limit
                for slots in self.capacities
                if (limit := self._limit(slots, widening * margin)) is not None
            }
            largest = max(found)
            if self._all_fit(largest, found[largest]):
                return found
        raise TecError(
            f"{largest} slots do not fit at {found[largest]} MiB, where they were expected to",
            f"row {self.steps.row.name}",
            "make margin_mib of the study larger",
        )

    def _limit(self, slots: int, margin: int) -> int | None:
        """Return the limit of a capacity; None, with the evidence, if the card is too small."""
        used = self._smallest_use + (slots - min(self.capacities)) * self._slot_bytes
        wanted = -(-used // MIB) + margin
        if wanted <= self.card_mib:
            return int(wanted)
        return self.card_mib if self._cached_fits(slots, self.card_mib) else None

    @cached_property
    def _smallest(self) -> ExpertBench:
        """A run of the smallest capacity on the whole card."""
        slots = min(self.capacities)
        record = self.prober.run(self._cached(slots, self.card_mib))
        if not record.fits:
            raise TecError(
                f"the smallest capacity, {slots} slots, does not fit: {record.result['error']}",
                f"row {self.steps.row.name}, {self.card_mib} MiB of VRAM",
                "choose smaller capacities, or a row with smaller experts",
            )
        return ExpertBench.model_validate(record.result)

    @property
    def _smallest_use(self) -> int:
        used = self._smallest.vram_bytes
        if used is None:
            raise TecError("the tool reports no GPU", "llama-expert-bench", "build a CUDA target")
        return used

    @property
    def _slot_bytes(self) -> float:
        """Bytes of one slot in every layer."""
        return (self._smallest.status.cache_bytes or 0) / min(self.capacities)

    def _cached_fits(self, slots: int, limit: int) -> bool:
        return self.prober.run(self._cached(slots, limit)).fits

    def _all_fit(self, slots: int, limit: int) -> bool:
        """Say whether every cached arm of a capacity fits: policies differ in their buffers."""
        others = [name for name in self._cached_arms(slots) if name != self.capacities[slots]]
        probes = (self.replay.probe(name, self.replay.words(name), limit) for name in others)
        return self._cached_fits(slots, limit) and all(
            self.prober.run(probe).fits for probe in probes
        )

    def _cached_arms(self, slots: int) -> list[str]:
        arms = self.steps.arms.items()
        return [name for name, arm in arms if isinstance(arm, SweptArm) and slots_of(arm) == slots]

    def _cached(self, slots: int, limit: int) -> Step:
        """Return the probe of a capacity, with the options of its cached arm where it is chosen."""
        name = self.capacities[slots]
        if isinstance(self.steps.arms[name], SearchedArm):
            words: Sequence[str] = (*ON_GPU, "--expert-cache", str(slots), "--n-cpu-moe", "99")
            return self.replay.probe(f"cached-c{slots}", words, limit)
        return self.replay.probe(name, self.replay.words(name), limit)

    def place(self) -> dict[str, Placed]:
        """Return every chosen arm that fits."""
        placed: dict[str, Placed] = {}
        for name, arm in self.steps.arms.items():
            slots = slots_of(arm)
            if slots is None:
                found = self._fixed(name)
            elif slots not in self.limits:
                found = None
            elif isinstance(arm, SearchedArm):
                found = self._searched(name, arm, self.limits[slots])
            else:
                found = Placed(self.replay.words(name), self.limits[slots])
            if found is not None:
                placed[name] = found
        return placed

    def _fixed(self, name: str) -> Placed | None:
        """Place an arm without a capacity: on the whole card where all of it is on the GPU."""
        words = self.replay.words(name)
        in_host = option(words, "--n-cpu-moe") is not None
        limits = [*sorted(self.limits.values()), self.card_mib] if in_host else [self.card_mib]
        for limit in dict.fromkeys(limits):
            if self.prober.run(self.replay.probe(name, words, limit)).fits:
                return Placed(words, limit)
        return None

    def _searched(self, name: str, arm: SearchedArm, limit: int) -> Placed | None:
        """Place an arm of the stock engine, with the best options that load at the limit."""

        def loads(found: Sequence[str]) -> bool:
            words = (*found, *arm.arguments())
            return self.prober.run(self.replay.probe(name, words, limit)).fits

        if arm.search == "fit":
            found = next(filter(loads, map(_fit_flags, FIT_TARGETS)), None)
        elif arm.search == "n-cpu-moe":
            found = self._most(self._experts_estimate(limit), self._n_layer, loads, self._experts)
        else:
            found = self._most(self._layers_estimate(limit), self._n_layer + 1, loads, _layers)
        return Placed((*found, *arm.arguments()), limit) if found else None

    def _most(
        self,
        estimate: int,
        highest: int,
        loads: Callable[[Sequence[str]], bool],
        flags: Callable[[int], tuple[str, ...]],
    ) -> tuple[str, ...] | None:
        """Return the flags that put the most on the GPU; None if nothing loads."""
        most = most_that_fit(estimate, highest, lambda number: loads(flags(number))).value
        return None if most is None else flags(most)

    def _experts(self, on_gpu: int) -> tuple[str, ...]:
        """Return the flags that keep the experts of all but the last layers in host memory."""
        return (*ON_GPU, "--n-cpu-moe", str(self._n_layer - on_gpu))

    @cached_property
    def _sizes(self) -> LayerSizes:
        return read_layer_sizes(self.steps.model)

    @property
    def _n_layer(self) -> int:
        return self.steps.model.n_layer

    def _room(self, limit: int) -> int:
        """Return bytes that state and buffers leave for weights, by what the cached arm uses."""
        cache = self._smallest.status.cache_bytes or 0
        buffers = self._smallest_use - cache - self._sizes.without_experts
        return limit * MIB - buffers

    def _experts_estimate(self, limit: int) -> int:
        return self._sizes.experts_that_fit(self._room(limit) - self._sizes.without_experts)

    def _layers_estimate(self, limit: int) -> int:
        return self._sizes.layers_that_fit(self._room(limit))


def _layers(on_gpu: int) -> tuple[str, ...]:
    return ("--gpu-layers", str(on_gpu), "--fit", "off")


def _fit_flags(target_mib: int) -> tuple[str, ...]:
    return ("--fit", "on", "--fit-target", str(target_mib))
