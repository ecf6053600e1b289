"""Parity runs: what is run and recorded so that the checks of DESIGN section 5 can be judged.

Runs are recorded first, judged from the records (tec.verdicts), and enforced last, so that a failed
check leaves its evidence behind.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tec import outcome
from tec.files import write_atomically
from tec.measure import add_job_arguments, attempt_row, open_job
from tec.records import read_records
from tec.session import Step
from tec.steps import Steps
from tec.verdicts import judge


def parity_plan(steps: Steps) -> list[Step]:
    """Return the processes that parity is judged from.

    Perplexity and divergence stand beside the bits of the smallest and the largest capacity; where
    the CPU computes misses they stand in their place, and every capacity has them.
    """
    reference, copying = steps.reference, steps.copying
    greedy = [(reference, number) for number in range(steps.scope.parity.rounds)]
    greedy += [(arm, 0) for arm in steps.cached]
    ends = dict.fromkeys((*copying[:1], *copying[-1:]))
    compared = [reference, *ends, *(arm for arm in steps.cached if arm not in copying)]
    return [
        *(steps.decode_batches(arm, number) for arm, number in greedy),
        steps.reference_perplexity(reference),
        *(steps.divergence(arm) for arm in compared),
    ]


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec parity run` and `judge`."""
    parity = sub.add_parser("parity", help="check that the cache leaves the outputs as they are")
    actions = parity.add_subparsers(required=True, metavar="ACTION")
    runs = actions.add_parser("run", help="run and record what the checks need")
    add_job_arguments(runs)
    runs.set_defaults(run=lambda options: attempt_row(options, "parity", _run, [options.out]))
    judged = actions.add_parser("judge", help="write the verdicts on one row's records")
    judged.add_argument("row")
    judged.add_argument("records", type=Path)
    judged.add_argument("-o", "--out", type=Path, required=True)
    outcome.add_argument(judged)
    judged.set_defaults(run=_attempt_to_judge)


def _run(options: argparse.Namespace) -> None:
    job = open_job(options, "parity")
    if job.steps.scope.protocols.replay:
        from tec import replay  # draws traces; other rows need not

        if job.session.is_there():  # what fits need not be asked again
            write_atomically(job.out, job.session.kept.read_bytes())
        else:
            job.run(replay.parity_plan(job.steps, job.session, job.wait))
        return
    job.run(parity_plan(job.steps))
    for scratch in job.steps.reference_file.parent.glob(f"{options.row}.*.logits"):
        scratch.unlink()


def _attempt_to_judge(options: argparse.Namespace) -> None:
    outcome.attempt(
        partial(_judge, options),
        options,
        row=options.row,
        stage="parity judge",
        reads=[options.records],
        makes=[options.out],
    )


def _judge(options: argparse.Namespace) -> None:
    verdicts = judge(read_records(options.records))
    write_atomically(options.out, "".join(v.model_dump_json() + "\n" for v in verdicts))
