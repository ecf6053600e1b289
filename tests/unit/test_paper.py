import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fake_results import write_model, write_results
from replay_results import write_replays
from tec import figures
from tec.errors import TecError
from tec.figure_data import Subject
from tec.figures import FIGURES, figures_of, make_figures
from tec.paper import make_paper
from tec.paths import PAPER, REFERENCE


@pytest.fixture(scope="module", autouse=True)
def _drawn_for_the_paper() -> Iterator[None]:
    """Figures as SVG only, which is what the paper includes: the fonts of PDFs take most time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "SUFFIXES", (".svg",))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the real paper's source and a study that never ran."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(PAPER, root / "paper")
    write_model(root / "models" / "pydoc-moe")
    results = write_results(root / "results" / "demo")
    make_figures(results, list(FIGURES))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "repository"))


def test_paper_and_claims_are_made_and_made_again_to_the_same_bytes(root: Path) -> None:
    results = root / "results" / "demo"
    first = {path: path.read_bytes() for path in make_paper(results, root)}
    assert {path.name for path in first} == {"paper.pdf", "claims.json"}
    assert first[results / "paper.pdf"].startswith(b"%PDF")
    again = {path: path.read_bytes() for path in make_paper(results, root)}
    assert again == first


def test_claims_carry_value_text_and_source(root: Path) -> None:
    claims = json.loads(make_paper(root / "results" / "demo", root)[0].read_text())
    assert claims["middle_capacity"] == {
        "value": 8,
        "text": "8",
        "source": (
            "tables/capacity.csv: capacity where row = toy, protocol = prompts, arm = cached-c8"
        ),
    }


def test_several_rows_with_a_gpu_make_a_paper(root: Path) -> None:
    results = write_results(root / "results" / "paper", ["a", "b"], gpu=True)
    make_figures(results, list(FIGURES))
    assert (results / "paper.pdf") in make_paper(results, root)


FULL, FINE, BROKEN = "pydoc-moe", "gpt-oss-120b-mxfp4", "mixtral-8x7b-instruct-v0.1-q6_k"


def claims_of(root: Path, name: str, subjects: set[Subject], **what: Any) -> dict[str, Any]:
    """Return the claims of the paper on a study with these rows; the rule's figures only."""
    results = write_results(root / "results" / name, **what)
    make_figures(results, figures_of({"rows", "parity", *subjects}))
    claims: dict[str, Any] = json.loads(make_paper(results, root)[0].read_text())
    return {claim: fields["value"] for claim, fields in claims.items()}


def test_paper_counts_rows_and_the_one_that_failed(root: Path) -> None:
    both = {"rows": [FULL], "miniatures": [FINE, BROKEN]}
    claims = claims_of(root, "whole", {"miniatures", "locality"}, **both)
    assert (claims["rows_bitwise"], claims["rows_count"], claims["rows_failed"]) == (3, 3, 0)
    assert (claims["miniatures_bitwise"], claims["miniatures"]) == (2, 2)
    claims = claims_of(root, "part", {"miniatures", "locality"}, **both, failed=[BROKEN])
    assert (claims["rows_bitwise"], claims["rows_count"], claims["rows_failed"]) == (2, 3, 1)
    assert (claims["miniatures_bitwise"], claims["miniatures"]) == (1, 2)
    assert claims["row"] == FULL
    assert claims["miniature_overlap_min"] == claims["miniature_overlap_max"] == 0.5
    assert claims["miniature_order_min"] == claims["miniature_order_max"] == 1.25


def test_paper_of_a_failed_full_row_is_about_the_next_one(root: Path) -> None:
    claims = claims_of(
        root, "next", {"miniatures", "locality"}, rows=[FULL], miniatures=[FINE], failed=[FULL]
    )
    assert claims["row"] == FINE
    assert claims["locality_row"] is None


def test_paper_of_one_miniature_alone(root: Path) -> None:
    claims = claims_of(root, "mini", {"miniatures"}, rows=[], miniatures=[FINE], locality=False)
    assert (claims["row"], claims["rows_count"], claims["locality_row"]) == (FINE, 1, None)


def test_paper_without_locality_and_miniatures(root: Path) -> None:
    claims = claims_of(root, "plain", set(), locality=False)
    assert claims["miniatures"] == 0
    assert claims["locality_lru"] is claims["counted_points"] is None


def test_locality_is_stated_from_tables_and_counted_where_arms_ran(root: Path) -> None:
    claims = json.loads(make_paper(root / "results" / "demo", root)[0].read_text())
    assert claims["locality_lru"]["text"] == claims["locality_counted"]["text"]
    assert claims["locality_lru"]["value"] < claims["locality_belady"]["value"] < 1
    assert claims["counted_points"]["value"] == 3 * 2  # capacities of the fake study, inputs
    assert claims["published_overlap"]["text"] == "84 %"
    assert "published.json" in claims["published_overlap"]["source"]
    assert claims["locality_lru_repetitive"]["text"] is None  # an input that the stand-in lacks


def test_locality_of_another_row_that_is_left_from_an_earlier_run_is_not_told(root: Path) -> None:
    results = root / "results" / "demo"
    for path in (results / "tables").glob("*.csv"):
        if path.stem in ("locality", "reuse", "overlap"):
            path.write_text(path.read_text().replace("toy,", "earlier,"))
    assert json.loads(make_paper(results, root)[0].read_text())["locality_row"]["value"] is None


def keep_records(root: Path, resident: bool = True) -> list[dict[str, str]]:
    """Put the kept tables and figures into a repository; return the lines of the headline.

    Without a resident run nothing is known of a bound.
    """
    kept = root / "results" / "reference"
    shutil.copytree(REFERENCE, kept, ignore=shutil.ignore_patterns("runs"))
    (table,) = kept.glob("nvidia-*/replicas/tables/loss.csv")
    if not resident:
        lines = list(csv.DictReader(table.read_text().splitlines()))
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows({**line, "loss_ms": ""} for line in lines)
    return list(csv.DictReader((table.parent / "headline.csv").read_text().splitlines()))


def test_kept_records_of_a_graphics_card_are_stated_as_such(root: Path) -> None:
    results = root / "results" / "demo"
    alone = json.loads(make_paper(results, root)[0].read_text())
    assert alone["reference"]["text"] is alone["half_speedup"]["text"] is None
    without = (results / "paper.pdf").read_bytes()
    (half,) = [line for line in keep_records(root) if line["capacity_share"] == "0.5"]
    claims = json.loads(make_paper(results, root)[0].read_text())
    assert claims["half_speedup"]["text"] == f"{float(half['speedup']):.2f}"
    assert claims["half_arm"]["value"] == half["arm"]
    assert claims["fit_copy_gbs"]["value"] > claims["fit_fill_gbs"]["value"] > 0
    assert claims["reference_unequal"]["value"] == 0
    assert "tables/headline.csv: speedup" in claims["half_speedup"]["source"]
    assert claims["evidence"]["value"] == "functional"  # that of the study the paper is about
    assert (results / "paper.pdf").read_bytes() != without


def test_kept_records_without_a_resident_run_make_a_paper(root: Path) -> None:
    keep_records(root, resident=False)
    claims = json.loads(make_paper(root / "results" / "demo", root)[0].read_text())
    assert claims["quarter_loss"]["text"] is None
    assert claims["half_speedup"]["text"] is not None


def test_kept_runs_of_the_policies_have_their_section_and_figure(root: Path) -> None:
    keep_records(root)
    index = root / "results" / "reference" / "index.csv"
    lines = list(csv.DictReader(index.read_text().splitlines()))
    lines.append({**lines[0], "folder": "card/policies", "study": "policies"})
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    kept = index.parent / "card" / "policies"
    make_figures(write_replays(kept, ["toy"], policies=("hot", "hybrid")), ["policies"])
    results = root / "results" / "demo"
    claims = json.loads(make_paper(results, root)[0].read_text())
    table = csv.DictReader((kept / "tables" / "policies.csv").read_text().splitlines())
    half = {line["policy"]: line for line in table if line["capacity"] == "8"}
    for policy in ("lru", "hot", "hybrid"):
        assert claims[f"policies_{policy}"]["text"] == f"{float(half[policy]['against_stock']):.2f}"
    assert claims["policies_share"]["text"] == "50 %"
    (kept / "figures" / "policies.svg").unlink()
    with pytest.raises(TecError, match=r"policies\.svg"):
        make_paper(results, root)


OFF, AUTO, SWEEP = ({"expert_cache": value} for value in ("off", "auto", "sweep"))
AGAIN = {**SWEEP, "options": {"ubatch-size": 64}}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"arms": {"off": OFF, "off-aa": OFF, "cached": SWEEP, "again": AGAIN, "auto": AUTO}}, ()),
        (
            {"arms": {"off": OFF, "cached": SWEEP}, "capacities": {"shares": [0.125, 0.5]}},
            ("full_ratio", "noise"),
        ),
        ({"arms": {"stock": OFF, "stock-aa": OFF, "auto": AUTO}}, ("full_ratio",)),
    ],
    ids=["auto and two sweeps", "no A/A arm and no share of 1", "auto alone and no arm named off"],
)
def test_another_choice_of_arms_makes_a_paper(
    root: Path, changes: dict[str, Any], missing: Sequence[str]
) -> None:
    results = write_results(root / "results" / "other", **changes)
    make_figures(results, list(FIGURES))
    claims = json.loads(make_paper(results, root)[0].read_text())
    assert claims["middle_hit_rate"]["text"] is not None
    for name in ("full_ratio", "full_ratio_lo", "noise_lo", "noise_hi"):
        assert (claims[name]["text"] is None) == (
            name.rpartition("_")[0] in missing or name in missing
        ), name


def test_a_missing_figure_is_named_and_leaves_no_paper(root: Path) -> None:
    results = root / "results" / "demo"
    (results / "figures" / "parity.svg").unlink()
    with pytest.raises(TecError, match=r"parity\.svg"):
        make_paper(results, root)
    assert [path for path in results.iterdir() if "paper" in path.name] == []


def test_a_missing_table_names_the_claim(root: Path) -> None:
    (root / "results" / "demo" / "tables" / "overhead.csv").unlink()
    with pytest.raises(TecError, match=r"claim 'off_arm': file not found .*overhead\.csv"):
        make_paper(root / "results" / "demo", root)


def test_a_typed_number_stops_the_paper(root: Path) -> None:
    with (root / "paper" / "sections" / "7-limits.typ").open("a") as file:
        file.write("\nIt is 3.7 times as fast.\n")
    with pytest.raises(TecError, match=r"'3\.7' is typed"):
        make_paper(root / "results" / "demo", root)


def test_results_outside_the_repository_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(TecError, match="outside the repository"):
        make_paper(tmp_path / "elsewhere", root)
