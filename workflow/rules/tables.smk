# The study's tables, from the raw records, traces and verdicts of its rows.

from tec.tables import CALIBRATION_TABLES, LOCALITY_TABLES, POLICY_TABLES, REPLAY_TABLES, TABLES

TABLE_CODE = [
    *("tables", "main_table", "rows_table", "baselines_table", "traces_table", "table", "summary", "stats"),
    *("headline_table", "loss", "loss_table", "policies_table"),
    *("outcome", "expert_bench", "llama_bench", "routing_summary"),
]


def tables_of_records():
    """The tables that are made from records and verdicts."""
    replays = REPLAY_TABLES if rows_with("replay") else []
    return [*TABLES, *replays, *(POLICY_TABLES if SELECTION.has_policies else [])]


rule tables:
    localrule: True
    input:
        runs=runs(*COMMANDS),
        verdicts=expand(rules.verdicts.output, row=ROWS),
        templates=expand("paper/templates/table.{suffix}.j2", suffix=["md", "tex"]),
        code=expand("workflow/tec/{module}.py", module=TABLE_CODE),
    output:
        report(
            expand(f"{RESULTS}/tables/{{name}}.csv", name=tables_of_records()),
            caption="../report/table.rst",
            category="Tables",
        ),
        expand(f"{RESULTS}/tables/{{name}}.{{suffix}}", name=tables_of_records(), suffix=["md", "tex"]),
    params:
        baselines="--baselines" if rows_with("replay") else "",
        policies="--policies" if SELECTION.has_policies else "",
    shell:
        "{TEC} tables --runs {input.runs} --verdicts {input.verdicts} {params.baselines}"
        " {params.policies} --out {RESULTS}/tables"


rule locality:
    localrule: True
    input:
        runs=runs("locality"),
        traces=traces(),
        templates=expand("paper/templates/table.{suffix}.j2", suffix=["md", "tex"]),
        code=expand("workflow/tec/{module}.py", module=["locality_table", "locality_check", "locality", "locality_kernels", "table"]),
    output:
        report(
            expand(f"{RESULTS}/tables/{{name}}.csv", name=LOCALITY_TABLES),
            caption="../report/table.rst",
            category="Tables",
        ),
        expand(f"{RESULTS}/tables/{{name}}.{{suffix}}", name=list(LOCALITY_TABLES)[:-1], suffix=["md", "tex"]),
    params:
        rows=shlex.join(word for row in rows_with("locality") for word in ("--row", row)),
    shell:
        "{TEC} locality {RESULTS} {params.rows}"


def all_tables():
    """The CSV files of every table that the selected rows have."""
    names = [*tables_of_records(), *([*LOCALITY_TABLES, *CALIBRATION_TABLES] if rows_with("locality") else [])]
    return expand(f"{RESULTS}/tables/{{name}}.csv", name=names)
