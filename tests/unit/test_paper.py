import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fake_results import write_model, write_results
from tec.errors import TecError
from tec.figures import FIGURES, make_figures
from tec.paper import make_paper
from tec.paths import PAPER


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
    with (root / "paper" / "sections" / "6-limits.typ").open("a") as file:
        file.write("\nIt is 3.7 times as fast.\n")
    with pytest.raises(TecError, match=r"'3\.7' is typed"):
        make_paper(root / "results" / "demo", root)


def test_results_outside_the_repository_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(TecError, match="outside the repository"):
        make_paper(tmp_path / "elsewhere", root)
