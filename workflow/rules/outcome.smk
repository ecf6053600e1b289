# The end of a run: it fails if a row failed or a parity check did not pass, when the tables that show
# it are there. What depends on nothing that failed is finished all the same (keep-going).

MAY_FAIL = [
    *(relative(paths.model_record(row, STUDY.variant(row))) for row in ROWS),
    *runs(*COMMANDS),
    *traces(),
    *calibrated(),
]
VERDICTS = expand(rules.verdicts.output, row=ROWS)


rule outcome:
    localrule: True
    priority: -1
    input:
        verdicts=VERDICTS,
        others=MAY_FAIL,
        tables=all_tables(),
    output:
        touch(f"{RESULTS}/verdicts/passed"),
    shell:
        "{TEC} outcome --verdicts {input.verdicts} --others {input.others}"


def shows_results(target):
    """Whether a target of the command line has tables made, not only measurements or programs."""
    if target.startswith(f"{RESULTS}/"):
        return not target.startswith(tuple(f"{RESULTS}/{folder}/" for folder in ("runs", "arms", "traces", "calibration")))
    return target in ("all", "tables", "locality", "calibration", "paper", "outcome")


def documents():
    """What the run makes of the documents that depend on the selected rows and arms."""
    figures = expand([*rules.figure.output], figure=shown_figures())
    return [
        *figures,
        *(rules.paper.output if has_paper() else []),
        *([*rules.locality.output, *rules.calibration.output] if rows_with("locality") else []),
    ]


MAY_HOLD_FAILURES = [Path(file) for file in [*MAY_FAIL, *VERDICTS]]


# A run that was killed leaves failures behind. They are removed, so that the rows are tried again.
if workflow.is_main_process and not workflow.output_settings.dryrun:
    failures.take_away(MAY_HOLD_FAILURES)
    failures.STOPPED.unlink(missing_ok=True)
for failure in failures.failures_in(MAY_HOLD_FAILURES) if workflow.is_main_process else []:
    print(f"row {failure.row} failed in a run that was killed or still goes on; the next one tries it again", file=sys.stderr)


# Beside new tables of a part of the study, documents of the whole would mislead.
onstart:
    targets = [str(target) for target in workflow.dag_settings.targets or ["all"]]
    if any(map(shows_results, targets)):
        outdated.remove(Path(RESULTS), {*map(str, documents()), *targets})


onsuccess:
    failures.STOPPED.unlink(missing_ok=True)
    if failed := failures.take_away(MAY_HOLD_FAILURES):
        raise WorkflowError(str(failures.failed_rows(failed)))


onerror:
    failures.STOPPED.unlink(missing_ok=True)
    if failed := failures.take_away(MAY_HOLD_FAILURES):
        print(failures.failed_rows(failed), file=sys.stderr)
