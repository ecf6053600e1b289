"""Parity runs: what is run and recorded so that the checks of DESIGN section 5 can be judged.

Runs are recorded first, judged from the records (tec.verdicts), and enforced last, so that a failed
check leaves its evidence behind.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tec.errors import TecError
from tec.files import write_atomically
from tec.measure import add_session_arguments, measure, open_session
from tec.records import read_records, read_verdicts
from tec.session import Step
from tec.steps import Steps
from tec.verdicts import enforce, judge


def parity_plan(steps: Steps) -> list[Step]:
    """Return the processes that parity is judged from."""
    parity = steps.study.parity
    reference = _reference(steps)
    cached = [name for name, arm in steps.arms.items() if arm.expert_cache != "off"]
    greedy = [(reference, number) for number in range(parity.rounds)]
    greedy += [(arm, 0) for arm in cached]
    compared = [reference, *dict.fromkeys((cached[0], cached[-1]))] if cached else [reference]
    return [
        *(steps.decode_prompts("greedy", arm, number, parity.n_gen) for arm, number in greedy),
        steps.reference_perplexity(reference),
        *(steps.divergence(arm) for arm in compared),
    ]


def _reference(steps: Steps) -> str:
    """Return the arm that the others are compared with: the first with the cache off."""
    for name, arm in steps.arms.items():
        if arm.expert_cache == "off":
            return name
    raise TecError(
        "parity needs an arm with the cache off",
        f"study {steps.study.name}",
        "add one: off: {expert_cache: off}",
    )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec parity run`, `judge` and `enforce`."""
    parity = sub.add_parser("parity", help="check that the cache leaves the outputs as they are")
    actions = parity.add_subparsers(required=True, metavar="ACTION")
    runs = actions.add_parser("run", help="run and record what the checks need")
    add_session_arguments(runs)
    runs.set_defaults(run=_run)
    judged = actions.add_parser("judge", help="write the verdicts on one row's records")
    judged.add_argument("records", type=Path)
    judged.add_argument("-o", "--out", type=Path, required=True)
    judged.set_defaults(run=_judge)
    enforced = actions.add_parser("enforce", help="fail unless self and bitwise passed")
    enforced.add_argument("verdicts", type=Path, nargs="+")
    enforced.set_defaults(run=_enforce)


def _run(options: argparse.Namespace) -> None:
    session, steps = open_session(options, "parity")
    measure(session, parity_plan(steps), options)
    steps.reference_file.unlink(missing_ok=True)


def _judge(options: argparse.Namespace) -> None:
    verdicts = judge(read_records(options.records))
    write_atomically(options.out, "".join(v.model_dump_json() + "\n" for v in verdicts))


def _enforce(options: argparse.Namespace) -> None:
    enforce([verdict for path in options.verdicts for verdict in read_verdicts(path)])
