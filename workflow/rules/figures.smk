# Figures, from the study's tables and raw records. `tec.figures` lists them with their inputs.

from pathlib import Path

from tec.figures import FIGURES


rule figure:
    input:
        data=lambda wildcards: [str(path) for path in FIGURES[wildcards.figure].inputs(Path(RESULTS), ROWS)],
        code=lambda wildcards: [
            f"workflow/tec/{FIGURES[wildcards.figure].module}.py",
            *(f"workflow/tec/{module}.py" for module in ("figure_style", "figure_data", "stats")),
        ],
    output:
        svg=report(
            f"{RESULTS}/figures/{{figure}}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        pdf=f"{RESULTS}/figures/{{figure}}.pdf",
    wildcard_constraints:
        figure="|".join(FIGURES),
    localrule: True
    params:
        title=lambda wildcards: FIGURES[wildcards.figure].title,
    shell:
        "{TEC} figures {RESULTS} {wildcards.figure}"
