# Verdicts on every row's parity runs. They are enforced by the rule `outcome`, after the table of
# them exists: a failed check is seen.


rule verdicts:
    localrule: True
    input:
        runs=f"{RESULTS}/runs/{{row}}.parity.jsonl",
        code=expand("workflow/tec/{module}.py", module=["verdicts", "expert_bench"]),
    output:
        f"{RESULTS}/verdicts/{{row}}.jsonl",
    shell:
        "{TEC} parity judge {wildcards.row} {input.runs} --out {output} --failure-as-outcome"
