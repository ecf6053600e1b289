"""Measuring: a row's arms, interleaved, a fresh process for every repetition."""

from __future__ import annotations

import argparse
import hashlib
import random
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tec import expert_bench, llama_bench, perplexity
from tec.build import load_manifest
from tec.config import Row, Study, load_row, load_study
from tec.files import sha256_file, write_atomically
from tec.models import read_model
from tec.paths import ROOT
from tec.records import Protocol
from tec.session import Session, Step, build_info
from tec.steps import Steps

PROTOCOLS = ("prompts", "random")


def prompts_plan(steps: Steps) -> list[Step]:
    """Return the processes that decode the row's prompts."""
    protocol = steps.study.protocols.prompts
    order = interleaved(list(steps.arms), protocol.rounds, f"{steps.row.name} prompts")
    return [steps.decode_prompts("prompts", arm, number, protocol.n_gen) for number, arm in order]


def random_plan(steps: Steps) -> list[Step]:
    """Return the processes of the published protocol: prompt and decode tests apart."""
    protocol = steps.study.protocols.random
    order = interleaved(list(steps.arms), protocol.rounds, f"{steps.row.name} random")
    tests = ((protocol.n_prompt, 0), (0, protocol.n_gen))
    return [
        steps.random_tokens(arm, number, n_prompt, n_gen)
        for number, arm in order
        for n_prompt, n_gen in tests
    ]


def interleaved(arms: Sequence[str], rounds: int, seed: str) -> Iterator[tuple[int, str]]:
    """Yield (round, arm): every round has every arm once, in an order rotated from round to round.

    Args:
        arms: names of the arms.
        rounds: how often each arm runs.
        seed: decides the order of round 0; equal seeds give equal orders.
    """
    order = sorted(arms)
    random.Random(seed).shuffle(order)  # noqa: S311 (an order, not a secret)
    for number in range(rounds):
        turn = number % len(order)
        for arm in order[turn:] + order[:turn]:
            yield number, arm


def measure_key(
    study: Study, row: Row, protocol: Protocol, build: Sequence[str], machine: str
) -> str:
    """Return the hash of everything that decides what a file of records says.

    It is part of the kept file's name: one key, one measurement.

    Args:
        study: its arms, its capacities and this protocol count, its name does not.
        row: its model file and its prompts count.
        protocol: which file of records.
        build: what decides the programs: llama.cpp's tree, the series, the target, cmake's options.
        machine: the fingerprint of this machine.
    """
    settings = study.parity if protocol == "parity" else getattr(study.protocols, protocol)
    files = {
        "prompts": [row.prompts],
        "random": [],
        "parity": [row.prompts, study.parity.text],
    }[protocol]
    parts = [
        *(protocol, *build, machine, row.source.model_dump_json(), settings.model_dump_json()),
        *(shlex.join(command) for command in _commands(study, protocol)),
        *(f"{name} {arm.model_dump_json()}" for name, arm in study.arms.items()),
        study.capacities.model_dump_json(),
        *(sha256_file(ROOT / file) for file in files),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _commands(study: Study, protocol: Protocol) -> list[tuple[str, ...]]:
    """Return a protocol's command lines without files and arms: what this package decides."""
    prompts, published = study.protocols.prompts, study.protocols.random
    tokens = (published.n_prompt, published.n_gen)
    decode = partial(
        expert_bench.command, "", "", "", threads=prompts.threads, ctx=prompts.ctx, arm=()
    )
    if protocol == "prompts":
        return [decode(n_gen=prompts.n_gen)]
    if protocol == "random":
        return [llama_bench.command("", "", *tokens, published.threads, ())]
    return [
        decode(n_gen=study.parity.n_gen),
        perplexity.reference_command("", "", "", "", prompts.threads, ()),
        perplexity.divergence_command("", "", "", prompts.threads, ()),
    ]


def measure(session: Session, steps: Sequence[Step], options: argparse.Namespace) -> None:
    """Run the session unless its file is kept already, and write a copy of it to `--out`."""
    session.run(steps, options.wait)
    write_atomically(options.out, session.kept.read_bytes())


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec measure`."""
    parser = sub.add_parser("measure", help="run a row's arms under one protocol")
    parser.add_argument("protocol", choices=PROTOCOLS)
    add_session_arguments(parser)
    parser.set_defaults(run=_measure)


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `open_session` reads."""
    parser.add_argument("study")
    parser.add_argument("row")
    parser.add_argument("--build", type=Path, required=True, help="manifest.json of the build")
    parser.add_argument("--model", type=Path, required=True, help="the row's record of its model")
    parser.add_argument(
        "--kept",
        type=Path,
        required=True,
        help="file that keeps the records; where it exists, nothing is measured",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="copy of the kept file")
    parser.add_argument("--log", type=Path, required=True, help="where the tools' messages go")
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds to wait for another measurement (0)"
    )


def open_session(options: argparse.Namespace, protocol: Protocol) -> tuple[Session, Steps]:
    """Return the session and the maker of its steps for the parsed arguments."""
    manifest = load_manifest(options.build)
    model = read_model(options.model)
    study = load_study(options.study)
    session = Session(
        study=study.name,
        protocol=protocol,
        build=build_info(manifest),
        model=model,
        kept=options.kept,
        log=options.log,
    )
    return session, Steps(study, load_row(options.row), model, manifest)


def _measure(options: argparse.Namespace) -> None:
    session, steps = open_session(options, options.protocol)
    plan = {"prompts": prompts_plan, "random": random_plan}[options.protocol]
    measure(session, plan(steps), options)
