# The study's measurements beside the history, and appended to it. The history is no output: it is
# never made again, only longer. The report is made where anything was measured anew; the status is
# read from it every time, and an improvement passes.


rule regress_report:
    localrule: True
    input:
        runs(*COMMANDS),
    output:
        report=f"{RESULTS}/regress/report.json",
        summary=f"{RESULTS}/regress/summary.md",
    shell:
        "{TEC} regress {input} --append --json {output.report} --markdown {output.summary} --status-zero"


rule regress:
    localrule: True
    input:
        rules.regress_report.output.report,
    shell:
        "{TEC} regress --status {input} || [ $? -eq 11 ]"
