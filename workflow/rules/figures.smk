# Figures, from the study's tables and raw records. `tec.figures` lists them with their inputs.

from pathlib import Path

from tec.figures import FIGURES, figures_of


def shown_figures():
    """The figures that the selected rows and arms have the data for."""
    if not SELECTION.compares:  # nothing to compare without the cache on and off
        return []
    subjects = {"parity"}
    if rows_with("prompts"):
        subjects.add("rows")
    if rows_with("replay"):
        subjects.add("replay")
    if SELECTION.has_policies:
        subjects.add("policies")
    if rows_with("locality"):
        subjects.add("locality")
    if any(STUDY.variant(row) == "miniature" for row in ROWS):
        subjects.add("miniatures")
    return figures_of(subjects)


def has_paper():
    """Whether the paper can be made: it is about real prompts and needs the figures."""
    return bool(shown_figures() and rows_with("prompts"))


rule figure:
    input:
        data=lambda wildcards: [str(path) for path in FIGURES[wildcards.figure].inputs(Path(RESULTS), ROWS)],
        code=lambda wildcards: [
            f"workflow/tec/{FIGURES[wildcards.figure].module}.py",
            *(f"workflow/tec/{module}.py" for module in ("figure_style", "figure_data", "stats")),
            "paper/published.json",
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
