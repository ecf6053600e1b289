# The paper, and the claims that give it its numbers.

from pathlib import Path


rule paper:
    input:
        source=sorted(str(path) for path in Path("paper").rglob("*") if path.suffix in {".typ", ".yaml", ".json", ".svg"}),
        tables=all_tables(),
        runs=runs("prompts"),
        figures=expand(f"{RESULTS}/figures/{{figure}}.svg", figure=shown_figures()),
        model=expand(
            "models/pydoc-moe/{name}.json",
            name=["corpus-manifest", "evaluation", "hashes", "train"],
        ),
        reference=sorted(str(path) for path in Path("results/reference").rglob("*") if path.suffix in {".csv", ".svg"}),
        code=expand("workflow/tec/{module}.py", module=["paper", "claims", "prose"]),
    output:
        pdf=report(f"{RESULTS}/paper.pdf", caption="../report/paper.rst", category="Paper"),
        claims=report(f"{RESULTS}/claims.json", caption="../report/claims.rst", category="Paper"),
    localrule: True
    shell:
        "{TEC} paper {RESULTS}"
