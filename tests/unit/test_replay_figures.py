"""Figures of replays: of one row and of several, one of them without a resident run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from replay_results import write_replays
from tec.figure_data import Results
from tec.figure_style import COLUMN_WIDTH, PAGE_WIDTH
from tec.loss_figure import loss
from tec.replay_figures import speed, split
from tec.token_figures import replay_start

Draw = Callable[[Results], Figure]
SEVERAL = ("first", "second", "third")
TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(write_replays(tmp_path_factory.mktemp("one"), ["toy"]))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("several")
    return Results(write_replays(folder, SEVERAL, ["second"], slots=(2, 4, 6, 8, 12, 16)))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def speedups(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts if text.get_text().endswith(TIMES)]


def bars(axis: Axes) -> Iterator[tuple[float, float]]:
    """Yield bottom and top of every bar that is not empty."""
    for patch in axis.patches:
        bottom, top = sorted((patch.get_y(), patch.get_y() + patch.get_height()))  # type: ignore[attr-defined]
        if top > bottom:
            yield bottom, top


@pytest.mark.parametrize(("draw", "panels"), [(speed, 1), (split, 2), (loss, 1), (replay_start, 2)])
def test_one_row_fits_a_column_and_several_a_page(
    one: Results, several: Results, draw: Draw, panels: int
) -> None:
    narrow, wide = draw(one), draw(several)
    assert (narrow.get_figwidth(), len(narrow.axes)) == (COLUMN_WIDTH, panels)
    shown = len(SEVERAL) - (draw is loss)  # which has no bound for the row without a resident run
    assert (wide.get_figwidth(), len(wide.axes)) == (PAGE_WIDTH, panels * shown)


def test_speed_names_every_series_and_shows_each(one: Results) -> None:
    figure = speed(one)
    assert legend(figure) == [
        *("TEC", "TEC's bound (no overlap)", "whole model in VRAM"),
        *("stock, best -ncmoe", "stock --fit", "stock, best -ngl", "stock -ncmoe 99"),
    ]
    assert len(figure.axes[0].get_lines()) == 7


def test_speed_has_capacity_vram_and_speedups_on_the_figure(one: Results) -> None:
    (axis,) = speed(one).axes
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert ticks == ["25%\n9", "50%\n13", "100%\n21"]  # share, and the limit in GiB
    table = one.table("capacity", ["speedup"])["speedup"].dropna()
    assert speedups(axis) == [f"{value:.2f}{TIMES}" for value in table]


def test_speed_labels_few_of_many_capacities(several: Results) -> None:
    axis = speed(several).axes[0]
    assert len(axis.get_xticklabels()) == len(speedups(axis)) == 4
    (line,) = [x for x in axis.get_lines() if x.get_marker() == "o"]
    assert len(np.asarray(line.get_xdata())) == 6


def test_speed_without_a_resident_run_has_no_bound(several: Results) -> None:
    first, second, _ = speed(several).axes
    assert len(first.get_lines()) - len(second.get_lines()) == 2


def test_split_states_of_a_row_share_their_scale(one: Results) -> None:
    cold, steady = split(one).axes
    assert cold.get_ylim() == steady.get_ylim()
    totals = [float(text.get_text()) for text in steady.texts]
    table = one.table("capacity", ["steady_tps"])
    cached = table[table["capacity"].notna()].sort_values("capacity")
    assert totals == pytest.approx(list(1e3 / cached["steady_tps"]), abs=0.05)


def test_split_does_not_divide_what_it_cannot(one: Results, several: Results) -> None:
    assert "not divided: no resident run" in legend(split(several))
    assert legend(split(one)) == ["resident model", "cached graph, no miss", "misses"]


def test_loss_stacks_its_parts_to_the_time_above_the_bound(one: Results) -> None:
    (axis,) = loss(one).axes
    table = one.table("loss", ["loss_ms", "ms_per_token"]).dropna(subset=["loss_ms"])
    drawn = list(bars(axis))
    assert sum((top - bottom) * (1 if top > 0 else -1) for bottom, top in drawn) == pytest.approx(
        table["loss_ms"].sum(), rel=1e-4
    )
    assert [text.get_text() for text in axis.texts] == [
        f"{share:.0%}" for share in table["loss_ms"] / table["ms_per_token"]
    ]


def test_loss_says_when_there_is_no_bound(tmp_path: Path) -> None:
    results = Results(write_replays(tmp_path, ["toy"], ["toy"]))
    assert texts(loss(results)) == ["no row was measured with the whole model in VRAM"]


def test_start_names_slots_and_their_share(one: Results, several: Results) -> None:
    assert legend(replay_start(one)) == [
        "whole model in VRAM", "C = 4 (25 % of N)", "C = 8 (50 % of N)", "C = 16 (100 % of N)",
    ]  # fmt: skip
    assert legend(replay_start(several))[1] == "C = 2 (12.5 % of N)"


def test_start_has_no_line_of_a_stock_arm_with_less_memory(several: Results) -> None:
    axes = replay_start(several).axes
    assert len(axes[0].get_lines()) == 4
    assert len(axes[2].get_lines()) == 3
