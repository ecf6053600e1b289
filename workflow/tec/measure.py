"""Measuring: a row's arms, interleaved, a fresh process for every repetition."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tec import choice, outcome
from tec.build import Manifest, load_manifest
from tec.choice import Choice
from tec.config import Row, Study, load_row, load_study
from tec.errors import TecError
from tec.files import write_atomically
from tec.gguf_file import ModelInfo, Part
from tec.inputs import INPUTS, InputName, input_folder, write_inputs
from tec.measure_key import measure_key, settings_key
from tec.models import read_model
from tec.order import interleaved
from tec.paths import RESULTS, ROOT
from tec.records import Protocol, read_records
from tec.session import Session, Step, build_info
from tec.steps import Steps
from tec.system import read_system
from tec.verified import sha256_of

PROTOCOLS: tuple[Protocol, ...] = ("prompts", "random", "locality", "replay")


def prompts_plan(steps: Steps) -> list[Step]:
    """Return the processes that decode the row's prompts."""
    protocol = steps.scope.protocols.prompts
    if protocol is None:
        raise not_in_study(steps, "prompts")
    order = interleaved(list(steps.arms), steps.rounds(protocol), f"{steps.row.name} prompts")
    return [steps.decode_prompts(arm, number) for number, arm in order]


def random_plan(steps: Steps) -> list[Step]:
    """Return the processes of the published protocol: prompt and decode tests apart."""
    protocol = steps.scope.protocols.random
    if protocol is None:
        raise not_in_study(steps, "random")
    order = interleaved(list(steps.arms), steps.rounds(protocol), f"{steps.row.name} random")
    return [step for number, arm in order for step in steps.random_tests(protocol, arm, number)]


def locality_plan(steps: Steps, kept: Path) -> list[Step]:
    """Return the processes that record the routing of each input and count every capacity's hits.

    The counts are those of LRU: other policies are no part of it.

    Args:
        steps: of a row whose scope has the protocol.
        kept: the file that keeps the records; each input's trace lies beside it.
    """
    protocol = steps.scope.protocols.locality
    if protocol is None:
        raise not_in_study(steps, "locality")
    folder = input_folder(steps.study.name, steps.row.name)
    inputs = write_inputs(steps.model, steps.scope.parity.text, protocol.tokens, folder)
    return [
        steps.decode_input(
            protocol, tokens, arm, kept_trace(kept, tokens.name) if number == 0 else None
        )
        for tokens in inputs
        for number, arm in enumerate([steps.reference, *steps.copying])
    ]


def kept_trace(kept: Path, name: str) -> Path:
    """Return where the routing trace of an input lies that belongs to a kept file."""
    return kept.with_name(f"{kept.stem}.{name}.npy")


def not_in_study(steps: Steps, protocol: Protocol) -> TecError:
    """Return the error that a study does not run a protocol for a row."""
    return TecError(
        f"protocol {protocol} is not run for row {steps.row.name}",
        f"study {steps.study.name}",
        f"add it under protocols in configs/studies/{steps.study.name}.yaml",
    )


@dataclass(frozen=True)
class Job:
    """A session, the maker of its steps, and where its results go."""

    session: Session
    steps: Steps
    out: Path
    wait: float

    def run(self, plan: Sequence[Step]) -> None:
        """Run the steps unless their file is kept already, and write a copy of it."""
        self.session.run(plan, self.wait)
        write_atomically(self.out, self.session.kept.read_bytes())


def open_job(options: argparse.Namespace, protocol: Protocol) -> Job:
    """Return the job for the parsed arguments of `add_job_arguments`.

    Raises:
        TecError: the model is not the one of its record any more, among others.
    """
    manifest, model = load_manifest(options.build), read_model(options.model)
    check_parts(model, options.model)
    study, row = load_study(options.study), load_row(options.row)
    chosen = choice.choose(options.arms, options.capacities, options.rounds)
    chosen = chosen.with_reference(study.scope(row.name), protocol)
    n_expert, n_expert_used = model.n_expert, model.n_expert_used
    arms = study.expand_arms(row.name, n_expert, n_expert_used)
    chosen.check(row.name, arms, n_expert, n_expert_used)
    session = Session(
        study=study.name,
        protocol=protocol,
        build=build_info(manifest),
        model=model,
        kept=options.kept / _kept_name(study, row, protocol, chosen, manifest, model),
        log=options.log,
    )
    return Job(session, Steps(study, row, model, manifest, chosen), options.out, options.wait)


def kept_file(
    study: Study, row: str, protocol: Protocol, chosen: Choice, build: Path, record: Path
) -> Path:
    """Return the file that keeps what the pipeline measures of a row, whether it is there or not.

    Args:
        study: the study.
        row: one of its rows.
        protocol: one of the row's.
        chosen: the arms that are asked for.
        build: manifest of the build.
        record: the row's record of its model.
    """
    chosen = chosen.with_reference(study.scope(row), protocol)
    names = (study, load_row(row), protocol, chosen, load_manifest(build), read_model(record))
    return RESULTS / study.name / "kept" / _kept_name(*names)


def _kept_name(
    study: Study,
    row: Row,
    protocol: Protocol,
    chosen: Choice,
    manifest: Manifest,
    model: ModelInfo,
) -> str:
    """Return the name of the file that keeps a measurement with these settings on this machine."""
    settings = settings_key(study, row, protocol, chosen)
    key = measure_key(settings, manifest, model.sha256, read_system().fingerprint)
    return f"{row.name}.{protocol}.{key}.jsonl"


def check_parts(model: ModelInfo, record: Path) -> None:
    """Raise a TecError unless the model's files are those of its record."""
    for part in model.parts:
        path = ROOT / part.path
        if not path.is_file() or _identity(path, model, part) != part.sha256:
            raise TecError(
                "the model file is gone or has changed since it was checked",
                part.path,
                f"delete {record} and run again",
            )


def _identity(path: Path, model: ModelInfo, part: Part) -> str:
    """Return the hash that a model's file is known by; a replica's is not that of its bytes."""
    if model.variant != "replica":
        return sha256_of(path, lambda: None)
    from tec import replica  # as above

    plan_is_there = replica.plan_file(path).is_file() and path.stat().st_size == part.bytes
    return replica.identity(path) if plan_is_there else "no plan"


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec measure`."""
    parser = sub.add_parser("measure", help="run a row's arms under one protocol")
    parser.add_argument("protocol", choices=PROTOCOLS)
    add_job_arguments(parser)
    parser.add_argument("--traces", type=Path, help="folder for copies of the routing traces")
    parser.set_defaults(run=_measure)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `open_job` reads."""
    parser.add_argument("study")
    parser.add_argument("row")
    parser.add_argument("--build", type=Path, required=True, help="manifest.json of the build")
    parser.add_argument("--model", type=Path, required=True, help="the row's record of its model")
    parser.add_argument(
        "--kept",
        type=Path,
        required=True,
        help="folder that keeps measurements; what is there already is not measured again",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="copy of the kept file")
    parser.add_argument("--log", type=Path, required=True, help="where the tools' messages go")
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds to wait for another measurement (0)"
    )
    choice.add_arguments(parser)
    outcome.add_argument(parser)


def attempt_row(
    options: argparse.Namespace,
    stage: str,
    work: Callable[[argparse.Namespace], None],
    makes: Sequence[Path],
) -> None:
    """Do a row's work; a failure of the row becomes its outcome where that is asked for."""
    outcome.attempt(
        partial(work, options),
        options,
        row=options.row,
        variant=load_study(options.study).variant(options.row),
        stage=stage,
        reads=[options.model],
        makes=makes,
    )


def _measure(options: argparse.Namespace) -> None:
    work = {
        "prompts": _prompts,
        "random": _random,
        "locality": _locality,
        "replay": _replay,
    }[options.protocol]
    makes = [options.out, *_traces(options).values()]
    attempt_row(options, f"measure {options.protocol}", work, makes)


def _prompts(options: argparse.Namespace) -> None:
    job = open_job(options, "prompts")
    job.run(prompts_plan(job.steps))


def _random(options: argparse.Namespace) -> None:
    job = open_job(options, "random")
    job.run(random_plan(job.steps))


def _locality(options: argparse.Namespace) -> None:
    job = open_job(options, "locality")
    kept = job.session.kept
    job.run(locality_plan(job.steps, kept))
    traces = {name: _read_trace(kept_trace(kept, name), kept) for name in INPUTS}
    _check_counts(job.session)
    for name, out in _traces(options).items():
        write_atomically(out, traces[name])


def _replay(options: argparse.Namespace) -> None:
    from tec import replay  # draws traces; other protocols need not

    job = open_job(options, "replay")
    replay.measure(job.steps, job.session, job.wait)
    write_atomically(job.out, job.session.kept.read_bytes())


def _check_counts(session: Session) -> None:
    """Raise a TecError unless the counted hits are those that the traces predict."""
    from tec.locality_check import check_input  # compiles its loops; other protocols need not

    records = read_records(session.kept)
    hint = f"move {session.kept} away and run again"
    for name in INPUTS:
        check_input(kept_trace(session.kept, name), name, records, hint)


def _read_trace(trace: Path, kept: Path) -> bytes:
    if not trace.is_file():
        raise TecError(
            "the routing trace that belongs to kept records is missing",
            trace,
            f"move {kept} away and run again",
        )
    return trace.read_bytes()


def _traces(options: argparse.Namespace) -> dict[InputName, Path]:
    """Return input -> the copy of its trace, where copies are asked for."""
    if options.traces is None:
        return {}
    return {name: options.traces / f"{options.row}.{name}.npy" for name in INPUTS}
