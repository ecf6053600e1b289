# The paper, and the claims that give it its numbers.

from pathlib import Path

from tec.figures import FIGURES


rule paper:
    input:
        source=sorted(str(path) for path in Path("paper").rglob("*") if path.suffix in {".typ", ".yaml", ".svg"}),
        tables=expand(f"{RESULTS}/tables/{{name}}.csv", name=TABLES),
        runs=expand(f"{RESULTS}/runs/{{row}}.prompts.jsonl", row=ROWS),
        figures=expand(f"{RESULTS}/figures/{{figure}}.svg", figure=FIGURES),
        model=expand(
            "models/pydoc-moe/{name}.json",
            name=["corpus-manifest", "evaluation", "hashes", "train"],
        ),
        code=expand("workflow/tec/{module}.py", module=["paper", "claims", "prose"]),
    output:
        pdf=report(f"{RESULTS}/paper.pdf", caption="../report/paper.rst", category="Paper"),
        claims=report(f"{RESULTS}/claims.json", caption="../report/claims.rst", category="Paper"),
    localrule: True
    shell:
        "{TEC} paper {RESULTS}"
