# The study's tables, from the raw records and verdicts of its rows.


rule tables:
    localrule: True
    input:
        runs=expand(rules.measure.output, row=ROWS, protocol=["prompts", "random"]),
        verdicts=expand(rules.verdicts.output, row=ROWS),
        templates=expand("paper/templates/table.{suffix}.j2", suffix=["md", "tex"]),
    output:
        expand(
            f"{RESULTS}/tables/{{name}}.{{suffix}}",
            name=["main", "capacity", "overhead", "parity"],
            suffix=["csv", "md", "tex"],
        ),
    shell:
        "{TEC} tables --runs {input.runs} --verdicts {input.verdicts} --out {RESULTS}/tables"
