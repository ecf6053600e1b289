import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from fake_results import ROW, write_results
from tec.capacity_figures import hit_rate, throughput
from tec.errors import TecError
from tec.figure_data import Results
from tec.figure_style import COLUMN_WIDTH, PAGE_WIDTH, looks
from tec.figures import FIGURES, make_figures
from tec.parity_figure import parity
from tec.token_figures import cold_start, latency, layers

Draw = Callable[[Results], Figure]

ROWS = (ROW, "second-row")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("several"), ROWS, gpu=True)


def texts(figure: Figure) -> Iterator[str]:
    return (text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def heights(axis: Axes) -> list[list[float]]:
    """Return the lines that are drawn, each by its heights."""
    return [np.asarray(line.get_ydata(), dtype=float).tolist() for line in axis.get_lines()]


def write_table(folder: Path, name: str, header: str, *lines: str) -> None:
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / f"{name}.csv").write_text("\n".join((header, *lines)) + "\n")


@pytest.fixture(scope="module")
def drawn(one: Path) -> dict[str, Path]:
    """Every file of every figure of one row, by name."""
    return {path.name: path for path in make_figures(one, list(FIGURES))}


def test_every_figure_is_an_svg_and_a_pdf(drawn: dict[str, Path]) -> None:
    assert set(drawn) == {f"{name}{suffix}" for name in FIGURES for suffix in (".svg", ".pdf")}


def test_drawing_again_gives_the_same_bytes(one: Path, drawn: dict[str, Path]) -> None:
    first = {name: path.read_bytes() for name, path in drawn.items()}
    again = make_figures(one, ["layers", "throughput"])
    assert {path.name: path.read_bytes() for path in again}.items() <= first.items()


def test_files_hold_no_date_and_text_is_outlines(drawn: dict[str, Path]) -> None:
    svg, pdf = (drawn[f"hit-rate{suffix}"].read_bytes() for suffix in (".svg", ".pdf"))
    assert b"<dc:date>" not in svg
    assert b"<text" not in svg
    assert b"CreationDate" not in pdf


def test_hit_rate_keeps_protocols_apart_and_draws_uniform_routing(one: Path) -> None:
    (axis,) = hit_rate(Results(one)).axes
    prompts, random, uniform = [0, 0.5, 1], [0.125, 0.5, 1], [0, 1]
    assert heights(axis) == [uniform, prompts, random]
    assert "toy (N = 16)" in set(texts(axis.figure))  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [throughput, latency, cold_start])
def test_times_without_a_gpu_are_marked_on_the_figure(one: Path, several: Path, draw: Draw) -> None:
    assert "functional, not evidence: run on the CPU back end" in set(texts(draw(Results(one))))
    assert not any("functional" in text for text in texts(draw(Results(several))))


@pytest.mark.parametrize("draw", [hit_rate, layers, parity])
def test_counts_and_verdicts_without_a_gpu_say_so(one: Path, several: Path, draw: Draw) -> None:
    assert any("CPU back end" in text for text in texts(draw(Results(one))))
    assert not any("CPU back end" in text for text in texts(draw(Results(several))))


def test_one_functional_row_among_others_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, ROWS, gpu=True)
    path = tmp_path / "tables" / "capacity.csv"
    first, second = path.read_text().split(f"\n{ROWS[1]},", 1)
    path.write_text(f"{first}\n{ROWS[1]}," + second.replace(",gpu,", ",functional,"))
    found = set(texts(throughput(Results(tmp_path))))
    assert f"functional, not evidence: run on the CPU back end ({ROWS[1]})" in found


@pytest.mark.parametrize("draw", [hit_rate, throughput, latency, cold_start, layers, parity])
def test_one_row_fits_a_column_and_several_have_panels_on_a_page(
    one: Path, several: Path, draw: Draw
) -> None:
    narrow, wide = draw(Results(one)), draw(Results(several))
    assert narrow.get_figwidth() == COLUMN_WIDTH
    assert wide.get_figwidth() == PAGE_WIDTH
    assert len(wide.axes) == 2 * len(narrow.axes)


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_smaller_than_seven_points(drawn: dict[str, Path], name: str) -> None:
    svg = drawn[f"{name}.svg"].read_text()
    scales = [float(size) for size in re.findall(r"scale\(([\d.]+) -[\d.]+\)", svg)]
    assert scales
    assert min(scales) >= 0.07  # outlines of DejaVu Sans are drawn at 100 units per em


def test_throughput_shows_the_noise_band_around_the_cache_off(one: Path) -> None:
    axis = throughput(Results(one)).axes[0]
    (band,) = [patch for patch in axis.patches if patch.get_facecolor()[0] == 0.8]
    low, high = band.get_extents().transformed(axis.transData.inverted()).intervaly
    with (one / "tables" / "overhead.csv").open(newline="") as file:
        noise = next(csv.DictReader(file))
    (off, *_), *_ = heights(axis)
    assert (low / off, high / off) == pytest.approx((float(noise["aa_lo"]), float(noise["aa_hi"])))


def test_layers_shows_hits_per_layer_and_arm(one: Path) -> None:
    (axis,) = layers(Results(one)).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["C = 2", "C = 8", "C = 16"]
    assert len(axis.get_xticklabels()) == 2


def test_parity_writes_every_verdict(tmp_path: Path) -> None:
    verdicts = {"self": "pass", "bitwise": "fail", "greedy": "not_run"}
    lines = [f"a,off,{check},{verdict},gpu" for check, verdict in verdicts.items()]
    write_table(tmp_path, "parity", "row,arm,check,verdict,evidence", *lines)
    assert {"pass", "fail", "not run"} <= set(texts(parity(Results(tmp_path))))


def test_series_differ_in_marker_dashes_and_brightness() -> None:
    drawn = list(looks(["a", "b", "c", "d"]).values())
    assert len({look.marker for look in drawn}) == len({look.dashes for look in drawn}) == 4
    brightness = [sum(look.color) for look in drawn]
    assert brightness == sorted(brightness)


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(TecError, match=r"table not found .*capacity\.csv"):
        make_figures(tmp_path, ["hit-rate"])
    write_table(tmp_path, "capacity", "row,arm", "a,off")
    with pytest.raises(TecError, match="no column 'protocol'"):
        make_figures(tmp_path, ["hit-rate"])
    write_table(tmp_path, "main", "row", "a")
    with pytest.raises(TecError, match=r"a\.prompts\.jsonl"):
        make_figures(tmp_path, ["layers"])
    assert not (tmp_path / "figures").exists()


def test_unknown_figure_names_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="did you mean 'hit-rate'"):
        make_figures(tmp_path, ["hitrate"])


def test_inputs_of_a_figure_are_tables_and_records_of_every_row() -> None:
    assert FIGURES["latency"].inputs(Path("r"), ["a", "b"]) == [
        Path("r/tables/main.csv"),
        Path("r/runs/a.prompts.jsonl"),
        Path("r/runs/b.prompts.jsonl"),
    ]
