# Verdicts are written first and enforced after the table of them exists: a failed check is seen.


rule verdicts:
    localrule: True
    input:
        runs=f"{RESULTS}/runs/{{row}}.parity.jsonl",
        code="workflow/tec/verdicts.py",
    output:
        f"{RESULTS}/verdicts/{{row}}.jsonl",
    shell:
        "{TEC} parity judge {input.runs} --out {output}"


rule parity:
    localrule: True
    input:
        verdicts=expand(rules.verdicts.output, row=ROWS),
        table=f"{RESULTS}/tables/parity.csv",
    output:
        touch(f"{RESULTS}/verdicts/passed"),
    shell:
        "{TEC} parity enforce {input.verdicts}"
