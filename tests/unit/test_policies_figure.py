"""The figure of policies: what is drawn, named, and called the fastest."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from replay_results import write_replays
from tec.figure_data import Results
from tec.figure_style import COLUMN_WIDTH, NOT_EVIDENCE, PAGE_WIDTH, style
from tec.figures import make_figures
from tec.policies_figure import fastest, policies
from tec.replay_figures import speed, split
from tec.token_figures import replay_start

TIMES = "\N{MULTIPLICATION SIGN}"
SLOTS = (2, 4, 8, 12)
NAMES = {
    "lru": "lru",
    "hybrid": "hybrid*",
    "hot": "hot*",
    "stock": "stock's best",
    "belady": "Belady's bound\nof copying",
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("one")
    return Results(write_replays(folder, ["toy"], slots=SLOTS, policies=("hot", "hybrid")))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("several")
    more = {"slots": SLOTS, "policies": ("hot", "hybrid")}
    return Results(write_replays(folder, ("first", "second", "third"), ["second"], **more))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def said(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def altered(results: Results, folder: Path, **columns: object) -> Results:
    """Return the results with other values in columns of the table of policies."""
    for name in ("main", "policies"):
        table = pd.read_csv(results.folder / "tables" / f"{name}.csv")
        (folder / "tables").mkdir(exist_ok=True)
        if name == "policies":
            table = table.assign(**columns)  # type: ignore[arg-type]
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    return Results(folder)


def test_every_policy_is_a_line_that_is_named_where_it_ends(one: Results) -> None:
    (axis,) = policies(one).axes
    table = one.table("policies", ["policy", "tps", "capacity"]).dropna(subset=["capacity"])
    lines = {str(line.get_label()): line for line in axis.get_lines()}
    for policy, name in NAMES.items():
        drawn = np.asarray(lines[policy].get_ydata(), dtype=float)
        assert list(drawn) == pytest.approx(list(table.loc[table["policy"] == policy, "tps"]))
        assert name in said(axis)
    assert "whole model\nin VRAM" in said(axis)


def test_lines_differ_without_their_colour(one: Results) -> None:
    (axis,) = policies(one).axes
    lines = [line for line in axis.get_lines() if line.get_label() in NAMES]
    marks = [(line.get_marker(), str(line.get_linestyle())) for line in lines]
    dashes = {str(line._dash_pattern) for line in lines}  # type: ignore[attr-defined]
    assert len({mark for mark, _ in marks}) == len(dashes) == len(NAMES)


def test_the_axis_has_shares_and_the_memory_of_all_of_them(one: Results) -> None:
    (axis,) = policies(one).axes
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert ticks == ["12.5 %\n7", "25 %\n9", "50 %\n13", "75 %\n17"]


def test_the_fastest_stands_above_with_its_ratio_to_stock(one: Results) -> None:
    (axis,) = policies(one).axes
    table = one.table("policies", ["policy", "against_stock"])
    ratios = table.loc[table["policy"] == "hybrid", "against_stock"]
    shown = [text for text in said(axis) if text.endswith(TIMES)]
    assert shown == [f"hybrid*\n{ratio:.2f}{TIMES}" for ratio in ratios]


def part(*lines: tuple[str, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=["policy", "tps", "lo", "hi"])


def test_policies_that_rounds_do_not_tell_apart_are_both_the_fastest() -> None:
    bounds = [("belady", 200.0, np.nan, np.nan), ("resident", 250.0, 249.0, 251.0)]
    lru, hot = ("lru", 99.0, 97.0, 101.0), ("hot", 96.0, 95.0, 97.0)
    found = fastest(part(*bounds, lru, hot, ("hybrid", 102.0, 100.0, 103.0)))
    assert list(found["policy"]) == ["hybrid", "lru"]
    assert list(fastest(part(lru, hot, ("stock", 120.0, 119.0, 121.0)))["policy"]) == ["stock"]


def test_names_do_not_overlap(several: Results) -> None:
    with style():
        figure = policies(several)
        figure.draw_without_rendering()
    names = {*NAMES.values(), "whole model\nin VRAM"}
    for axis in figure.axes:
        found = [text for text in axis.texts if text.get_text() in names]
        boxes = [Text.get_window_extent(text) for text in found]  # without the line to it
        boxes.sort(key=lambda box: box.y0)
        assert all(a.y1 <= b.y0 for a, b in pairwise(boxes))
        assert boxes[-1].y1 <= axis.get_window_extent().y1


def test_one_row_fits_a_column_and_several_a_page(one: Results, several: Results) -> None:
    assert (policies(one).get_figwidth(), len(policies(one).axes)) == (COLUMN_WIDTH, 1)
    figure = policies(several)
    assert (figure.get_figwidth(), len(figure.axes)) == (PAGE_WIDTH, 3)
    first, second, _ = figure.axes
    assert len(first.get_lines()) - len(second.get_lines()) == 2  # no ceiling, no bound


def test_it_says_which_outputs_are_not_equal(one: Results, tmp_path: Path) -> None:
    assert "* the CPU computes misses: outputs not equal to the bit" in texts(policies(one))
    functional = altered(one, tmp_path, evidence="functional", against_stock=np.nan)
    figure = policies(functional)
    assert NOT_EVIDENCE in " ".join(texts(figure)).replace("\n", " ")
    assert not [text for text in texts(figure) if TIMES in text or text.startswith("fastest")]


def test_it_is_drawn_into_files_and_left_out_without_the_table(
    one: Results, tmp_path: Path
) -> None:
    svg, pdf = make_figures(one.folder, ["policies"])
    assert (svg.name, pdf.name) == ("policies.svg", "policies.pdf")
    assert not Results(write_replays(tmp_path, ["toy"])).has("policies")


def test_other_figures_of_replays_are_about_arms_that_copy(one: Results, tmp_path: Path) -> None:
    plain = Results(write_replays(tmp_path, ["toy"], slots=SLOTS))
    for draw in (speed, split, replay_start):
        mine, its = draw(one), draw(plain)
        assert [t for t in texts(mine) if t] == [t for t in texts(its) if t]
