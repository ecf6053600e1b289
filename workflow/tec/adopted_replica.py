"""The record of a replica that was written from a plan, for a machine without the build's tools.

    python3 -m tec.replica_file PLAN MODEL.gguf
    python3 -m tec.adopted_replica PLAN MODEL.gguf --out RECORD

The record is what `tec model ROW --variant replica` leaves; the plan is put beside the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tec.errors import TecError
from tec.files import write_atomically
from tec.gguf_file import ModelInfo, Part, read_geometry
from tec.models import named
from tec.replica import identity, plan_file
from tec.replica_file import file_size
from tec.replica_plan import read_plan


def record(plan: Path, model: Path) -> ModelInfo:
    """Return the record of the replica at `model`; put its plan beside it.

    Raises:
        TecError: the model is not there, or does not have the plan's size.
    """
    planned = read_plan(plan)
    size = model.stat().st_size if model.is_file() else 0
    if size != file_size(planned):
        raise TecError(
            f"the replica has {size} bytes, its plan {file_size(planned)}",
            model,
            f"python3 -m tec.replica_file {plan} {model}",
        )
    if plan_file(model).resolve() != plan.resolve():
        write_atomically(plan_file(model), plan.read_bytes())
    part = Part(path=named(model.resolve()), bytes=size, sha256=identity(model))
    return ModelInfo(
        row=planned.row,
        variant="replica",
        path=part.path,
        bytes=size,
        sha256=part.sha256,
        parts=(part,),
        **read_geometry(model, 1).model_dump(),
    )


def main() -> None:
    """Write the record of a replica."""
    parser = argparse.ArgumentParser(prog="python -m tec.adopted_replica", description=main.__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("model", type=Path, help="made by: python3 -m tec.replica_file PLAN MODEL")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        made = record(options.plan, options.model)
    except TecError as error:
        sys.exit(f"error: {error}")
    write_atomically(options.out, made.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
