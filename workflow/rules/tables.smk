# The study's tables, from the raw records and verdicts of its rows.

from tec.tables import TABLES


rule tables:
    localrule: True
    input:
        runs=expand(rules.measure.output, row=ROWS, protocol=["prompts", "random"]),
        verdicts=expand(rules.verdicts.output, row=ROWS),
        templates=expand("paper/templates/table.{suffix}.j2", suffix=["md", "tex"]),
        code=expand("workflow/tec/{module}.py", module=["tables", "table", "summary", "stats"]),
    output:
        report(
            expand(f"{RESULTS}/tables/{{name}}.csv", name=TABLES),
            caption="../report/table.rst",
            category="Tables",
        ),
        expand(f"{RESULTS}/tables/{{name}}.{{suffix}}", name=TABLES, suffix=["md", "tex"]),
    shell:
        "{TEC} tables --runs {input.runs} --verdicts {input.verdicts} --out {RESULTS}/tables"
