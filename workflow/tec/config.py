"""Studies, rows and arms: what configs/ says, checked.

A file under configs/studies is a `Study`, one under configs/models is a `Row`; the file's name is
the study's or row's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Field, PositiveInt, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from tec.errors import TecError
from tec.nearest import check_known
from tec.paths import MODELS, STUDIES
from tec.policies import ON_CPU, CachePolicy
from tec.quantities import Sha256
from tec.system import physical_cores
from tec.yaml_file import Section, load_yaml

Target = Literal["cpu", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"]
TARGETS: tuple[Target, ...] = get_args(Target)

DEFAULT_STUDY = "demo"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]

Variant = Literal["full", "miniature", "replica"]

Share = Annotated[float, Field(gt=0, le=1)]


class FileSource(Section):
    """A model file in the repository or on this machine."""

    kind: Literal["file"]
    path: Path
    """Relative to the repository's root, or absolute."""
    sha256: Sha256


class HubSource(Section):
    """A model file on Hugging Face; the lock file pins its revision, sizes and hashes."""

    kind: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    files: Annotated[list[str], Field(min_length=1)]
    """Paths in the repository, in the order of the splits; the first is the one that is opened."""
    unconfirmed: str | None = None
    """What of the above nobody has read from the hub itself yet."""


class Shape(Section):
    """What the row's file has to have; checked when it is here."""

    arch: str
    n_layer: PositiveInt
    n_moe_layers: PositiveInt
    n_expert: PositiveInt
    n_expert_used: PositiveInt


Key = str | bool | int | float | list[int] | list[bool]


class Miniature(Section):
    """How the row is made at toy size: architecture, experts, K and quantisation stay its own."""

    keys: dict[str, Key]
    """GGUF keys without the architecture's prefix."""
    quantize: str
    """llama-quantize's name of the type, such as `Q8_0`."""
    tensor_types: dict[str, str] = Field(default_factory=dict)
    """Pattern of tensor names -> type, for files that mix types."""
    without: list[str] = Field(default_factory=list)
    """Patterns of optional tensors that the row's file does not have."""
    seed: int = 1


class Replica(Miniature):
    """How the row is made at full size, with generated weights: the keys are the real model's."""

    vocabulary: PositiveInt
    """Tokens of the real model: the length of its first and its last matrix."""


class Row(Section):
    """A model file in the study."""

    name: Name
    title: str
    source: Annotated[FileSource | HubSource, Field(discriminator="kind")] | None = None
    """Where the file is; left out by a row that is only ever a replica."""
    shape: Shape | None = None
    prompts: Path
    """JSON lines, one `{"id": ..., "text": ...}` each; relative to the repository's root."""
    miniature: Miniature | None = None
    replica: Replica | None = None

    @model_validator(mode="after")
    def _can_be_had(self) -> Row:
        if self.source is None and self.replica is None:
            raise PydanticCustomError(
                "no_source", "the row has no source: say where its file is, or add a replica"
            )
        return self


class Arm(Section):
    """The engine in one configuration."""

    expert_cache: Literal["off", "auto", "sweep"] | PositiveInt = "off"
    """Slots per layer; `sweep` stands for one arm per capacity of the study."""
    search: Literal["n-cpu-moe", "gpu-layers", "fit"] | None = None
    """The stock engine at the VRAM of each capacity's cached arm: fewest layers with their experts
    on the CPU, most layers on the GPU, or upstream's own fit; what fits is found by search."""
    expert_cache_policy: CachePolicy | None = None
    """Which experts have the slots, and what becomes of a miss; `lru` if left out."""
    unified: bool = False
    """Pinned experts have no copy in host memory. They are the most used ones of the tokens of the
    replay's trace that are not decoded, half as many as slots or more if host memory demands it."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Other llama.cpp options by their long name without dashes, e.g. `n-cpu-moe: 99`; a flag
    without a value is `true`."""

    @model_validator(mode="after")
    def _fits_its_cache(self) -> Arm:
        if self.search and self.expert_cache != "off":
            raise PydanticCustomError(
                "search", "search is for arms of the stock engine: write expert_cache: off"
            )
        if self.unified and self.expert_cache == "off":
            raise PydanticCustomError("unified", "unified memory is for arms with the cache on")
        for name, value in self.options.items():
            if value is False:
                raise PydanticCustomError(
                    "flag", "option {name} is a flag: write true, or leave it out", {"name": name}
                )
        if self.computes_misses and (self.expert_cache == "off" or self.unified):
            raise PydanticCustomError(
                "policy",
                "policy {policy} is for arms with the cache on and all experts in host memory",
                {"policy": self.expert_cache_policy},
            )
        return self

    @property
    def computes_misses(self) -> bool:
        """Whether the CPU computes misses, in another order of sums than the device."""
        return self.expert_cache_policy in ON_CPU

    def arguments(self) -> list[str]:
        """Return the arm as command-line arguments of the llama.cpp tools."""
        named: dict[str, object] = {
            "expert-cache": self.expert_cache,
            "expert-cache-policy": self.expert_cache_policy,
            **self.options,
        }
        given = {name: value for name, value in named.items() if value is not None}
        if self.unified:
            given["expert-cache-unified"] = True
        return [
            word
            for name, value in given.items()
            for word in (f"--{name}", *(() if value is True else (str(value),)))
        ]


class SweptArm(Arm):
    """An arm with a sweep, at one of the capacities; known from an arm with a similar name."""


class SearchedArm(Arm):
    """An arm with a search, at the VRAM of one of the capacities."""

    slots: PositiveInt
    """Slots per layer of the cached arm whose VRAM it has."""


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


class LocalityProtocol(Section):
    """Routing on given tokens: real text, repetitive text, random tokens; recorded and counted."""

    tokens: Annotated[int, Field(ge=2)]
    """Tokens of each input, decoded one by one."""
    threads: PositiveInt


class ReplayProtocol(Section):
    """llama-expert-bench decodes random tokens along a drawn routing trace, at limits of VRAM.

    The limit of a capacity is what its cached arm uses, and a margin.
    """

    tokens: Annotated[int, Field(ge=2)]
    """Length of the trace."""
    n_gen: Annotated[int, Field(ge=2)]
    """Tokens decoded along it, one by one."""
    rounds: PositiveInt
    """Fresh processes per arm."""
    threads: PositiveInt = Field(
        default_factory=physical_cores,
        description="of the CPU, which computes experts in host memory; if left out, one for each "
        "physical core that the process may use",
    )
    ctx: PositiveInt
    """Context size in tokens."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Of the trace and of the tokens."""
    host_limit_mib: PositiveInt | None = None
    """MiB of host memory that each arm may have; the rest is occupied, but for parity."""
    margin_mib: PositiveInt = 320
    """MiB beyond what the cached arm uses; it leaves 256 of them free when it sizes its slots."""

    @model_validator(mode="after")
    def _trace_is_long_enough(self) -> ReplayProtocol:
        if self.n_gen > min(self.tokens, self.ctx):
            raise PydanticCustomError(
                "n_gen", "n_gen is more than the tokens of the trace or of the context"
            )
        return self


class Protocols(Section):
    """What is run for every row and arm; a protocol that is left out is not run."""

    prompts: PromptsProtocol | None = None
    random: RandomProtocol | None = None
    locality: LocalityProtocol | None = None
    replay: ReplayProtocol | None = None

    @model_validator(mode="after")
    def _measures_something(self) -> Protocols:
        if self.prompts is None and self.replay is None:
            raise PydanticCustomError("protocols", "needs prompts or replay")
        return self

    @property
    def main(self) -> PromptsProtocol | ReplayProtocol:
        """The protocol that the main table and the parity checks go by."""
        main = self.prompts or self.replay
        if main is None:
            raise ValueError("neither prompts nor replay")  # refused when it is read
        return main


class Parity(Section):
    """How equality of outputs is checked."""

    n_gen: Annotated[int, Field(ge=2)]
    rounds: Annotated[int, Field(ge=2)]
    prompts: PositiveInt | None = None
    """How many of the row's prompts are decoded; all if left out."""
    batches: Annotated[list[PositiveInt], Field(min_length=1)] = Field(default=[1])
    """Sequences decoded together, one token each per step."""
    text: Path
    """Plain text for perplexity and KL; relative to the repository's root."""
    chunks: PositiveInt = 6
    """Pieces of the text, 512 tokens each."""


class Scope(Section):
    """Rows and what is run for each of them."""

    rows: Annotated[list[Name], Field(min_length=1)]
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    capacities: Capacities
    protocols: Protocols
    parity: Parity

    @model_validator(mode="after")
    def _pins_for_unified_memory(self) -> Scope:
        replay, prompts = self.protocols.replay, self.protocols.prompts
        unified = [name for name, arm in self.arms.items() if arm.unified]
        if unified and (prompts or replay is None or replay.tokens == replay.n_gen):
            raise PydanticCustomError(
                "unified",
                "arm {arm} pins experts by tokens of a replayed trace that are not decoded: run "
                "protocol replay, without prompts, and with more tokens than n_gen",
                {"arm": unified[0]},
            )
        return self


class Study(Scope):
    """Rows x arms x protocol; rows under `miniatures` are made at toy size."""

    name: Name
    target: Target
    form: Literal["full", "replica"] = "full"
    """Whether `rows` are real files or made at full size with generated weights."""
    miniatures: Scope | None = None

    @property
    def all_rows(self) -> list[str]:
        """Return the full rows, then the miniatures."""
        return [*self.rows, *(self.miniatures.rows if self.miniatures else [])]

    def variant(self, row: str) -> Variant:
        """Say in which form the row takes part."""
        return self.form if row in self.rows else "miniature"

    def scope(self, row: str) -> Scope:
        """Return what is run for the row."""
        if row in self.rows or self.miniatures is None:
            return self
        return self.miniatures

    def expand_arms(self, row: str, n_expert: int, n_expert_used: int) -> dict[str, Arm]:
        """Return a row's arms for its model; sweep and search are an arm `<name>-c<slots>` each.

        Raises:
            TecError: an arm's capacity is below the model's n_expert_used or above its n_expert.
        """
        expanded: dict[str, Arm] = {}
        scope = self.scope(row)
        for name, arm in scope.arms.items():
            if arm.expert_cache == "sweep":
                for slots in scope.capacities.slots(n_expert, n_expert_used):
                    swept = {**arm.model_dump(), "expert_cache": slots}
                    expanded[f"{name}-c{slots}"] = SweptArm(**swept)
            elif arm.search:
                for slots in scope.capacities.slots(n_expert, n_expert_used):
                    expanded[f"{name}-c{slots}"] = SearchedArm(**arm.model_dump(), slots=slots)
            else:
                expanded[name] = arm
        for name, arm in expanded.items():
            capacity = arm.expert_cache
            if isinstance(capacity, int) and not n_expert_used <= capacity <= n_expert:
                raise TecError(
                    f"arm '{name}' asks for {capacity} slots; this model has K = "
                    f"{n_expert_used} experts used per token, the least, of {n_expert} experts",
                    STUDIES / f"{self.name}.yaml",
                    f"choose expert_cache from {n_expert_used} to {n_expert}",
                )
        return expanded


Named = TypeVar("Named", Study, Row)


def load_study(name: str) -> Study:
    """Return the study configs/studies/<name>.yaml."""
    return _load_named("study", STUDIES, name, Study)


def load_row(name: str) -> Row:
    """Return the row configs/models/<name>.yaml."""
    return _load_named("row", MODELS, name, Row)


def _load_named(what: str, folder: Path, name: str, model: type[Named]) -> Named:
    check_known(what, name, [path.stem for path in folder.glob("*.yaml")], where=folder)
    path = folder / f"{name}.yaml"
    loaded = load_yaml(path, model)
    if loaded.name != name:
        raise TecError(
            f"name is '{loaded.name}', but the file is {path.name}", path, f"write name: {name}"
        )
    return loaded
