"""A part of a study's arms and capacities, asked for by name."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tec.config import Arm, Scope, SearchedArm, SweptArm
from tec.errors import TecError
from tec.nearest import check_known, suggestion
from tec.records import Protocol

_WITH_REFERENCE: tuple[Protocol, ...] = ("parity", "locality", "replay")
"""What is compared with the arm whose cache is off, so that this arm is always run."""


@dataclass(frozen=True)
class Choice:
    """What is run of a row's arms; empty means all."""

    arms: tuple[str, ...] = ()
    """Names as in the study (`cached`: the whole sweep) or expanded (`cached-c16`)."""
    capacities: tuple[int, ...] = ()
    """Slots per layer at which arms with a sweep run, in place of the study's."""
    rounds: int | None = None
    """Fresh processes per arm, in place of the study's; parity has its own number."""

    def narrow(self, arms: Mapping[str, Arm]) -> dict[str, Arm]:
        """Return the chosen ones of a row's expanded arms, in their order.

        Raises:
            TecError: nothing is left.
        """
        offered = self._at_capacities(arms)
        chosen = {name: arm for name, arm in offered.items() if self._has(name, arm)}
        if not chosen:
            raise TecError(
                f"none of the arms {', '.join(self.arms)}",
                "the choice of arms",
                suggestion(self.arms[0], self.known(arms)),
            )
        return chosen

    def check(self, row: str, arms: Mapping[str, Arm], n_expert: int, n_expert_used: int) -> None:
        """Raise a TecError for an arm the row does not have, or a capacity its model cannot have.

        Args:
            row: the row's name.
            arms: its expanded arms.
            n_expert: the model's experts per layer, N.
            n_expert_used: the experts used per token, K.
        """
        for slots in self.capacities:
            if not n_expert_used <= slots <= n_expert:
                raise TecError(
                    f"row {row} cannot have {slots} slots per layer",
                    "the choice of capacities",
                    f"choose from {n_expert_used} (K, experts used per token) to {n_expert} (N)",
                )
        known = self.known(arms)
        for name in self.arms:
            check_known("arm", name, known, where=f"row {row}")

    def known(self, arms: Mapping[str, Arm]) -> list[str]:
        """Return the names that can be chosen from a row's expanded arms."""
        offered = self._at_capacities(arms)
        sweeps = (sweep_of(name, arm) for name, arm in offered.items())
        return list(dict.fromkeys([*offered, *(sweep for sweep in sweeps if sweep)]))

    def of_row(self, arms: Mapping[str, Arm]) -> Choice:
        """Return the choice without the arms that this row does not have."""
        known = self.known(arms)
        return replace(self, arms=tuple(name for name in self.arms if name in known))

    def with_reference(self, scope: Scope, protocol: Protocol) -> Choice:
        """Return the choice with the arm that this protocol compares the others with."""
        off = next((name for name, arm in scope.arms.items() if arm.expert_cache == "off"), None)
        if protocol not in _WITH_REFERENCE or not self.arms or off is None or off in self.arms:
            return self
        return replace(self, arms=(off, *self.arms))

    def key(self, key: str) -> str:
        """Return the key of a measurement of this part; that of everything is `key` itself."""
        if self == Choice():
            return key
        part = f"{key} {sorted(self.arms)} {self.capacities}"
        if self.rounds is not None:
            part += f" {self.rounds}"
        return hashlib.sha256(part.encode()).hexdigest()[:12]

    def words(self) -> list[str]:
        """Return the choice as arguments of a command."""
        given = {
            "--arms": self.arms,
            "--capacities": [str(slots) for slots in self.capacities],
            "--rounds": [] if self.rounds is None else [str(self.rounds)],
        }
        return [word for name, value in given.items() if value for word in (name, ",".join(value))]

    def _at_capacities(self, arms: Mapping[str, Arm]) -> dict[str, Arm]:
        """Return the arms with every sweep run at the chosen capacities."""
        if not self.capacities:
            return dict(arms)
        offered: dict[str, Arm] = {}
        for name, arm in arms.items():
            if (sweep := sweep_of(name, arm)) is None:
                offered[name] = arm
            else:
                for slots in self.capacities:
                    offered[f"{sweep}-c{slots}"] = at_capacity(arm, slots)
        return offered

    def _has(self, name: str, arm: Arm) -> bool:
        return not self.arms or name in self.arms or sweep_of(name, arm) in self.arms


def slots_of(arm: Arm) -> int | None:
    """Return the capacity at which an arm with a sweep or a search is run; None of another arm."""
    if isinstance(arm, SearchedArm):
        return arm.slots
    return int(arm.expert_cache) if isinstance(arm, SweptArm) else None


def at_capacity(arm: Arm, slots: int) -> Arm:
    """Return an arm with a sweep or a search at another capacity."""
    key = "slots" if isinstance(arm, SearchedArm) else "expert_cache"
    return arm.model_copy(update={key: slots})


def sweep_of(name: str, arm: Arm) -> str | None:
    """Return the name in the study of an expanded arm that comes from a sweep or a search."""
    slots = slots_of(arm)
    return None if slots is None else name.removesuffix(f"-c{slots}")


def choose(arms: object = None, capacities: object = None, rounds: object = None) -> Choice:
    """Return the choice of what was given: texts with commas, numbers, lists, or None.

    Raises:
        TecError: a capacity is not a whole number, or the rounds are not one from 1.
    """
    try:
        slots = sorted({int(word) for word in names(capacities)})
    except ValueError:
        raise TecError(
            f"capacities '{capacities}' are not numbers",
            "the choice of capacities",
            "give slots per layer, such as capacities=16,32",
        ) from None
    return Choice(tuple(dict.fromkeys(names(arms))), tuple(slots), _rounds(rounds))


def _rounds(given: object) -> int | None:
    if given is None:
        return None
    text = str(given)
    if not text.isdecimal() or int(text) < 1:
        raise TecError(f"rounds '{text}' is no number from 1", "the choice of rounds", "rounds=3")
    return int(text)


def names(given: object) -> list[str]:
    """Return one name or several, in a list or separated by commas, as a list."""
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return [str(name) for name in given]
    return str(given).split(",")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--arms`, `--capacities` and `--rounds`, which `choose` takes."""
    parser.add_argument("--arms", help="only these arms, separated by commas")
    parser.add_argument("--capacities", help="slots per layer of arms with a sweep, with commas")
    parser.add_argument("--rounds", help="fresh processes per arm, in place of the study's")
