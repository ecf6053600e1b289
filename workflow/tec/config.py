"""Studies, rows and arms: what configs/ says, checked.

A file under configs/studies is a `Study`, one under configs/models is a `Row`; the file's name is
the study's or row's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints

from tec.errors import TecError
from tec.nearest import suggestion
from tec.paths import MODELS, STUDIES
from tec.quantities import Sha256
from tec.yaml_file import Section, load_yaml

Target = Literal["cpu", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"]
TARGETS: tuple[Target, ...] = get_args(Target)

DEFAULT_STUDY = "demo"
SELECTION_KEYS = ("study", "rows", "target")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]

Share = Annotated[float, Field(gt=0, le=1)]


class FileSource(Section):
    """A model file in the repository or on this machine."""

    kind: Literal["file"]
    path: Path
    """Relative to the repository's root, or absolute."""
    sha256: Sha256


class Row(Section):
    """A model file in the study."""

    name: Name
    title: str
    source: FileSource
    prompts: Path
    """JSON lines, one `{"id": ..., "text": ...}` each; relative to the repository's root."""


class Arm(Section):
    """The engine in one configuration."""

    expert_cache: Literal["off", "auto", "sweep"] | PositiveInt = "off"
    """Slots per layer; `sweep` stands for one arm per capacity of the study."""
    expert_cache_policy: Literal["lru"] | None = None
    expert_cache_pinned: NonNegativeInt | None = None
    options: dict[str, str | int | float] = Field(default_factory=dict)
    """Other llama.cpp options by their long name without dashes, e.g. `n-cpu-moe: 99`."""

    def arguments(self) -> list[str]:
        """Return the arm as command-line arguments of the llama.cpp tools."""
        named: dict[str, object] = {
            "expert-cache": self.expert_cache,
            "expert-cache-policy": self.expert_cache_policy,
            "expert-cache-pinned": self.expert_cache_pinned,
            **self.options,
        }
        given = {name: value for name, value in named.items() if value is not None}
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]


class Capacities(Section):
    """The capacities that arms with `expert_cache: sweep` run at."""

    shares: Annotated[list[Share], Field(min_length=1)]
    """Shares of n_expert; rounded to slots, and never below n_expert_used."""

    def slots(self, n_expert: int, n_expert_used: int) -> list[int]:
        """Return the capacities in slots per layer, ascending, each once."""
        return sorted({max(n_expert_used, round(share * n_expert)) for share in self.shares})


class PromptsProtocol(Section):
    """llama-expert-bench decodes the row's prompts."""

    n_gen: Annotated[int, Field(ge=2)]
    """Tokens generated after each prompt."""
    rounds: PositiveInt
    """Fresh processes per arm."""
    threads: PositiveInt
    ctx: PositiveInt
    """Context size in tokens."""


class RandomProtocol(Section):
    """llama-bench on its random tokens: the published protocol."""

    n_prompt: PositiveInt
    n_gen: PositiveInt
    rounds: PositiveInt
    threads: PositiveInt


class Protocols(Section):
    """What is run for every row and arm."""

    prompts: PromptsProtocol
    random: RandomProtocol


class Parity(Section):
    """How equality of outputs is checked."""

    n_gen: Annotated[int, Field(ge=2)]
    rounds: Annotated[int, Field(ge=2)]
    text: Path
    """Plain text for perplexity and KL; relative to the repository's root."""


class Study(Section):
    """Rows x arms x protocol."""

    name: Name
    rows: Annotated[list[Name], Field(min_length=1)]
    target: Target
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    capacities: Capacities
    protocols: Protocols
    parity: Parity

    def expand_arms(self, n_expert: int, n_expert_used: int) -> dict[str, Arm]:
        """Return the arms for a model; a sweep becomes one arm `<name>-c<slots>` per capacity.

        Raises:
            TecError: an arm's capacity is below the model's n_expert_used or above its n_expert.
        """
        expanded: dict[str, Arm] = {}
        for name, arm in self.arms.items():
            if arm.expert_cache == "sweep":
                for slots in self.capacities.slots(n_expert, n_expert_used):
                    expanded[f"{name}-c{slots}"] = arm.model_copy(update={"expert_cache": slots})
            else:
                expanded[name] = arm
        for name, arm in expanded.items():
            capacity = arm.expert_cache
            if isinstance(capacity, int) and not n_expert_used <= capacity <= n_expert:
                raise TecError(
                    f"arm '{name}' asks for {capacity} slots; this model needs at least "
                    f"{n_expert_used} (experts used per token) and has {n_expert} experts",
                    STUDIES / f"{self.name}.yaml",
                    f"choose expert_cache from {n_expert_used} to {n_expert}",
                )
        return expanded


@dataclass(frozen=True)
class Selection:
    """What one run of the pipeline covers."""

    study: Study
    rows: dict[str, Row]
    target: Target


Named = TypeVar("Named", Study, Row)


def load_study(name: str) -> Study:
    """Return the study configs/studies/<name>.yaml."""
    return _load_named("study", STUDIES, name, Study)


def load_row(name: str) -> Row:
    """Return the row configs/models/<name>.yaml."""
    return _load_named("row", MODELS, name, Row)


def select(config: Mapping[str, Any]) -> Selection:
    """Return the study, rows and target that `snakemake --config` names; all have defaults.

    Args:
        config: `study`, a name; `rows`, names separated by commas or a list; `target`, a name.

    Raises:
        TecError: an unknown key, study, row or target, with the nearest known name.
    """
    for key in config:
        _known("--config key", key, SELECTION_KEYS)
    study = load_study(str(config.get("study", DEFAULT_STUDY)))
    names = config.get("rows", study.rows)
    wanted = [
        str(name) for name in (names.split(",") if isinstance(names, str) else _listed(names))
    ]
    for name in wanted:
        _known("row", name, study.rows, where=f"study {study.name}")
    target = str(config.get("target", study.target))
    _known("target", target, TARGETS)
    return Selection(
        study=study,
        rows={name: load_row(name) for name in dict.fromkeys(wanted)},
        target=next(known for known in TARGETS if known == target),
    )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec check`."""
    parser = sub.add_parser("check", help="check a study's configuration")
    parser.add_argument("study", nargs="?", default=DEFAULT_STUDY)
    parser.set_defaults(run=lambda options: _check(options.study))


def _check(name: str) -> None:
    selection = select({"study": name})
    print(f"{name}: {len(selection.rows)} rows, {len(selection.study.arms)} arms, no errors")


def _load_named(what: str, folder: Path, name: str, model: type[Named]) -> Named:
    _known(what, name, [path.stem for path in folder.glob("*.yaml")], where=folder)
    path = folder / f"{name}.yaml"
    loaded = load_yaml(path, model)
    if loaded.name != name:
        raise TecError(
            f"name is '{loaded.name}', but the file is {path.name}", path, f"write name: {name}"
        )
    return loaded


def _known(what: str, name: str, known: Iterable[str], where: object = None) -> None:
    names = list(known)
    if name not in names:
        raise TecError(f"unknown {what} '{name}'", where, suggestion(name, names))


def _listed(names: object) -> list[object]:
    """Return one name or several as a list (a YAML value may be either)."""
    return list(names) if isinstance(names, list | tuple) else [names]
