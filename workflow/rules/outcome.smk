# The end of a run: it fails if a row failed or a parity check did not pass, when the tables that show
# it are there. What depends on nothing that failed is finished all the same (keep-going).

MAY_FAIL = [
    *(relative(paths.model_record(row, STUDY.variant(row))) for row in ROWS),
    *runs(*COMMANDS),
    *traces(),
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


MAY_HOLD_FAILURES = [Path(file) for file in [*MAY_FAIL, *VERDICTS]]


# A run that was killed leaves failures behind. They are removed, so that the rows are tried again.
if workflow.is_main_process and not workflow.output_settings.dryrun:
    failures.take_away(MAY_HOLD_FAILURES)
for failure in failures.failures_in(MAY_HOLD_FAILURES) if workflow.is_main_process else []:
    print(f"row {failure.row} failed in a run that was killed or still goes on; the next one tries it again", file=sys.stderr)


onsuccess:
    if failed := failures.take_away(MAY_HOLD_FAILURES):
        raise WorkflowError(str(failures.failed_rows(failed)))


onerror:
    if failed := failures.take_away(MAY_HOLD_FAILURES):
        print(failures.failed_rows(failed), file=sys.stderr)
