"""What a measurement depends on, as the hash in the name of the file that keeps it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from functools import partial

from tec import (
    expert_bench,
    inputs,
    llama_bench,
    perplexity,
    replay_inputs,
    trace_generator,
    trace_profile,
    vram_search,
)
from tec.build import Manifest
from tec.choice import Choice
from tec.config import Row, Scope, Study
from tec.files import sha256_file
from tec.paths import ROOT
from tec.records import Protocol
from tec.session import build_info


def _made_by(scope: Scope, protocol: Protocol) -> list[str]:
    """Return the versions of what makes the inputs, and of what finds out which arms fit."""
    versions: dict[str, int] = {}
    if protocol == "locality":
        versions = {"inputs": inputs.VERSION}
    elif protocol == "replay" or (protocol == "parity" and scope.protocols.replay):
        versions = {
            "inputs": replay_inputs.VERSION,
            "generator": trace_generator.VERSION,
            "profiles": trace_profile.VERSION,
            "search": vram_search.VERSION,
        }
    return [f"{name} {version}" for name, version in versions.items()]


def settings_key(study: Study, row: Row, protocol: Protocol, chosen: Choice | None = None) -> str:
    """Return the hash of what a study and row say about a protocol.

    The arms, the capacities and this protocol count, the study's name and other protocols do not;
    of files that are read, the content counts.
    """
    scope = study.scope(row.name)
    settings = scope.parity if protocol == "parity" else getattr(scope.protocols, protocol)
    files = {
        "prompts": [row.prompts],
        "random": [],
        "parity": [row.prompts, scope.parity.text],
        "locality": [scope.parity.text],
        "replay": [],
    }[protocol]
    parts = [
        *(protocol, row.name, study.variant(row.name), settings.model_dump_json()),
        *(shlex.join(command) for command in _commands(scope, protocol)),
        *(f"{name} {arm.model_dump_json()}" for name, arm in scope.arms.items()),
        scope.capacities.model_dump_json(),
        *(sha256_file(ROOT / file) for file in files),
        *_made_by(scope, protocol),
    ]
    return (chosen or Choice()).key(_hash(parts))


def measure_key(settings: str, manifest: Manifest, model_sha256: str, machine: str) -> str:
    """Return the hash of everything that decides what a file of records says.

    It is part of the kept file's name: one key, one measurement.

    Args:
        settings: from `settings_key`.
        manifest: the build: llama.cpp's tree, the series, the target, the compiler, its options.
        model_sha256: of the model file.
        machine: the fingerprint of this machine.
    """
    return _hash([settings, build_info(manifest).model_dump_json(), model_sha256, machine])


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _commands(scope: Scope, protocol: Protocol) -> list[tuple[str, ...]]:
    """Return a protocol's command lines without files and arms: what this package decides."""
    main, protocols, parity = scope.protocols.main, scope.protocols, scope.parity
    decode = partial(expert_bench.command, "", "", "", threads=main.threads, ctx=main.ctx, arm=())
    if protocol == "prompts":
        return [decode(n_gen=main.n_gen)]
    if protocol == "random" and (published := protocols.random):
        tokens = (published.n_prompt, published.n_gen)
        return [llama_bench.command("", "", *tokens, published.threads, ())]
    if protocol == "locality" and (given := protocols.locality):
        return [expert_bench.forced_command("", "", "", given.tokens, given.threads, (), "")]
    replayed = []
    if replay := protocols.replay:
        numbers = (replay.n_gen, replay.threads, replay.ctx)
        replayed = [expert_bench.replay_command("", "", "", "", *numbers, ())]
    if protocol == "replay":
        return replayed
    return [
        *replayed,
        decode(n_gen=parity.n_gen, batches=parity.batches, first=parity.prompts),
        perplexity.reference_command("", "", "", parity.chunks, "", main.threads, ()),
        perplexity.divergence_command("", "", "", main.threads, ()),
    ]
