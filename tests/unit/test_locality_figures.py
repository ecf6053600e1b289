"""Figures of the locality study, on the fake study's tables."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fake_results import ROW, write_results
from tec.errors import TecError
from tec.figure_data import Results
from tec.figure_style import COLUMN_WIDTH, PAGE_WIDTH
from tec.figures import make_figures
from tec.locality import POLICIES
from tec.locality_figures import overlap, policy_hits, reuse

ROWS = (ROW, "second-row")
INPUTS = ("text", "random")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(write_results(tmp_path_factory.mktemp("one")))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(write_results(tmp_path_factory.mktemp("several"), ROWS))


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}


def curves(figure: Figure, panel: int = 0) -> list[tuple[list[float], list[float]]]:
    lines = figure.axes[panel].get_lines()
    points = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in lines]
    return [(x.astype(float).tolist(), y.astype(float).tolist()) for x, y in points]


def test_overlap_has_random_routing_every_input_and_the_published_point(one: Results) -> None:
    figure = overlap(one)
    uniform, text, random, published = curves(figure)
    table = one.table("overlap", ["trace", "window", "overlap"])
    shown = table[(table["trace"] == "text") & (table["window"] <= 64)]
    assert text == (list(range(1, 65)), shown["overlap"].tolist())
    assert random != text
    assert uniform[1][0] == pytest.approx(2 / 16)
    assert published == ([8], [0.84])
    assert {"84%", "real text", "random tokens", "uniformly random routing"} <= texts(figure)
    assert any("published" in text and "Qwen3.5-35B-A3B" in text for text in texts(figure))
    assert f"{ROW} (K / N = 12.5%)" in texts(figure)


def test_reuse_goes_up_to_the_whole_trace(one: Results) -> None:
    half, *inputs = curves(reuse(one))
    assert half[1] == [0.5, 0.5]
    assert len(inputs) == len(INPUTS)
    for distances, shares in inputs:
        assert (distances[0], distances[-1]) == (1, 79)
        assert shares == sorted(shares)


def test_policy_hits_has_every_capacity_and_the_counted_points_on_the_lru_line(
    one: Results,
) -> None:
    figure = policy_hits(one)
    assert [axis.get_title() for axis in figure.axes] == ["real text", "random tokens"]
    _, *lines, counted = curves(figure)
    assert len(lines) == len(POLICIES)
    assert all(x == [capacity / 16 for capacity in range(2, 17)] for x, _ in lines)
    lru = dict(zip(*lines[0], strict=True))
    assert counted == ([2 / 16, 8 / 16, 1], [lru[2 / 16], lru[8 / 16], lru[1]])
    assert {"LRU", "LFU", "Belady's bound", "LRU as counted"} <= texts(figure)


@pytest.mark.parametrize(("draw", "panels"), [(overlap, 2), (reuse, 2), (policy_hits, 4)])
def test_several_rows_have_panels_on_a_page(
    several: Results, draw: Callable[[Results], Figure], panels: int
) -> None:
    figure = draw(several)
    assert len(figure.axes) == panels
    assert figure.get_figwidth() == PAGE_WIDTH
    assert any(ROWS[1] in text for text in texts(figure))


@pytest.mark.parametrize("draw", [overlap, reuse])
def test_one_row_fits_a_column(one: Results, draw: Callable[[Results], Figure]) -> None:
    assert draw(one).get_figwidth() == COLUMN_WIDTH


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(TecError, match=r"table not found .*overlap\.csv"):
        make_figures(tmp_path, ["overlap"])
