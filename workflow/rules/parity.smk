# Verdicts on every row's parity runs. They are enforced by the rule `outcome`, after the table of
# them exists: a failed check is seen.


rule verdicts:
    localrule: True
    input:
        runs=f"{RESULTS}/runs/{{row}}.parity.jsonl",
        code="workflow/tec/verdicts.py",
    output:
        f"{RESULTS}/verdicts/{{row}}.jsonl",
    shell:
        "{TEC} parity judge {wildcards.row} {input.runs} --out {output} --failure-as-outcome"
