# The history of measurements, drawn. `tec history append` writes the history; no rule makes it.

HISTORY_CODE = [
    *("history_page", "history_view", "history_command", "commit_subjects"),
    *("history", "trends", "change_points"),
]


rule history_page:
    localrule: True
    input:
        history=relative(paths.HISTORY),
        templates=sorted(map(str, Path("workflow/report/history").iterdir())),
        code=expand("workflow/tec/{module}.py", module=HISTORY_CODE),
    output:
        "results/history.html",
    shell:
        "{TEC} history page --history {input.history} --out {output}"
