# The pipeline's table of contents: source -> patched source -> build -> models -> measure -> parity
# -> tables, figures, paper. One file per stage under workflow/rules.
#
#   snakemake --cores all all
#   snakemake --cores all all --config study=NAME rows=NAME,NAME arms=NAME,NAME capacities=SLOTS,SLOTS rounds=N
#   snakemake --cores all results/STUDY/arms/ROW.PROTOCOL.ARM.jsonl

import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from tec import outcome as failures
from tec import outdated, paths, run_lock
from tec.config import TARGETS
from tec.errors import TecError
from tec.patches import load_series
from tec.paths import relative
from tec.pin import load_pin
from tec.selection import select


workdir: workflow.basedir


try:
    SELECTION = select(config)
    PIN = load_pin()
    SERIES = load_series()
    if workflow.is_main_process and not workflow.output_settings.dryrun:
        run_lock.hold(paths.CACHE / "pipeline.lock", "running this pipeline")
except TecError as error:
    raise WorkflowError(str(error)) from None

STUDY = SELECTION.study
ROWS = SELECTION.rows
TARGET = SELECTION.target
ENGINE = SERIES.hash(PIN.digest)  # what of llama.cpp a measurement depends on
RESULTS = f"results/{STUDY.name}"
TEC = shlex.join([sys.executable, "-m", "tec"])

# The profile gives `machine`; a job that asks for all of it runs alone.
if "machine" not in workflow.global_resources:
    raise WorkflowError(
        "profile workflow/profiles/default is not loaded\n"
        "  next: leave out --workflow-profile; the symbolic link `profiles` must lead to "
        "workflow/profiles (if it is missing or a plain file: ln -sfn workflow/profiles profiles)"
    )
WHOLE_MACHINE = workflow.global_resources["machine"].value


def checked(check, *asked):
    """End the program with one message where a check finds that what was asked for cannot be.

    For functions of wildcards, whose exceptions Snakemake wraps in a traceback.
    """
    try:
        check(*asked)
    except TecError as error:
        sys.exit(f"error: {error}")


wildcard_constraints:
    target="|".join(TARGETS),
    row="|".join(map(re.escape, ROWS)),
    variant="full|miniature|replica",


report: "workflow/report/workflow.rst"


include: "workflow/rules/source.smk"
include: "workflow/rules/build.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/calibration.smk"
include: "workflow/rules/parity.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/outcome.smk"
include: "workflow/rules/regress.smk"
include: "workflow/rules/history.smk"


rule all:
    default_target: True
    localrule: True
    input:
        runs(*COMMANDS),
        rules.tables.output,
        rules.locality.output if rows_with("locality") else [],
        rules.calibration.output if rows_with("locality") else [],
        rules.outcome.output,
        expand(rules.figure.output, figure=shown_figures()),
        rules.paper.output if has_paper() else [],
