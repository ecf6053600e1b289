import csv
import re
from collections.abc import Callable, Iterator, Sequence
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
from tec.figures import FIGURES, figures_of, make_figures
from tec.parity_figure import parity
from tec.paths import ROOT
from tec.rows_figure import miniatures
from tec.table import EMPTY
from tec.token_figures import cold_start, latency, layers

Draw = Callable[[Results], Figure]

ROWS = (ROW, "second-row")
MINIATURES = ("gpt-oss-120b-mxfp4", "mixtral-8x7b-instruct-v0.1-q6_k")
PARITY = "row,arm,check,verdict,detail,evidence,batch"
MAIN = "row,variant,outcome,reason"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("several"), ROWS, gpu=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full row, a miniature, and a miniature that failed."""
    folder = tmp_path_factory.mktemp("demo")
    return write_results(folder, miniatures=MINIATURES, failed=MINIATURES[1:])


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


@pytest.mark.parametrize("draw", [hit_rate, throughput, latency, cold_start, layers])
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


@pytest.mark.parametrize("draw", [hit_rate, throughput, latency, cold_start, layers])
def test_miniatures_have_no_panel_beside_full_rows(one: Path, demo: Path, draw: Draw) -> None:
    assert len(draw(Results(demo)).axes) == len(draw(Results(one)).axes)
    assert not any(name in text for text in texts(draw(Results(demo))) for name in MINIATURES)


def test_miniatures_have_panels_where_there_is_no_full_row(tmp_path: Path) -> None:
    write_results(tmp_path, (), miniatures=MINIATURES, locality=False)
    assert len(hit_rate(Results(tmp_path)).axes) == 2


def test_failed_full_row_is_named_on_figures_without_it(tmp_path: Path) -> None:
    write_results(tmp_path, ROWS, failed=ROWS[1:])
    for draw in (hit_rate, throughput, latency, cold_start, layers):
        figure = draw(Results(tmp_path))
        assert any(f"failed, not shown: {ROWS[1]}" in text for text in texts(figure))
        assert figure.get_figwidth() == COLUMN_WIDTH


def test_figures_say_that_every_row_failed(tmp_path: Path) -> None:
    write_results(tmp_path, (ROW,), failed=(ROW,))
    paths = make_figures(tmp_path, list(FIGURES))
    assert len(paths) == 2 * len(FIGURES)
    assert any("failed: model: no space" in text for text in texts(parity(Results(tmp_path))))


def test_miniatures_figure_has_every_miniature_chance_and_failures(demo: Path) -> None:
    figure = miniatures(Results(demo))
    hits, overlap = figure.axes
    assert [label.get_text() for label in hits.get_yticklabels()] == list(MINIATURES)
    assert "failed" in set(texts(figure))
    measured = [line for line in hits.get_lines() if line.get_marker() not in ("None", "|", "")]
    assert [np.asarray(line.get_xdata()).tolist() for line in measured] == [[0.0], [0.5]]
    joined, chance, value = overlap.get_lines()
    assert np.asarray(joined.get_xdata()).tolist() == [0.25, 0.5]
    assert (chance.get_xdata(), value.get_xdata()) == ([0.25], [0.5])


def cells(figure: Figure) -> list[str]:
    """Return the texts of a parity matrix: of its cells and above it, in order of drawing."""
    return [text.get_text() for text in figure.axes[0].texts]


def write_parity(folder: Path, *lines: str, rows: Sequence[str] = ("a,full,ok,",)) -> Results:
    write_table(folder, "parity", PARITY, *lines)
    write_table(folder, "main", MAIN, *rows)
    return Results(folder)


def test_parity_of_one_row_writes_the_verdict_of_every_arm(tmp_path: Path) -> None:
    results = write_parity(
        tmp_path,
        "a,off,self,pass,,gpu,1",
        "a,cached-c8,bitwise,fail,,gpu,1",
        "a,cached-c8,greedy,not_run,,gpu,1",
    )
    figure = parity(results)
    assert cells(figure)[:6] == ["pass", EMPTY, EMPTY, EMPTY, "fail", EMPTY]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["off", "C = 8"]
    assert "0/1" in cells(figure)


def test_parity_of_rows_counts_capacities_and_rows(tmp_path: Path) -> None:
    passed = [
        f"{row},cached-c{slots},bitwise,pass,,gpu,1" for row in ("a", "b") for slots in (8, 16)
    ]
    results = write_parity(
        tmp_path,
        *passed,
        "b,cached-c24,bitwise,not_run,,gpu,1",
        "c,,self,not_run,model: no space,,",
        rows=("a,full,ok,", "b,miniature,ok,", "c,miniature,failed,model: no space"),
    )
    figure = parity(results)
    found = cells(figure)
    assert found[:3] == ["2/2", "2/3", "failed: model: no space"]
    assert found[3:] == ["bitwise", "1/3"]  # b was not checked at every capacity, c not at all


def test_parity_keeps_steps_past_the_cache_apart(tmp_path: Path) -> None:
    past = "a,cached-c8,{},{},equal; steps of 8 tokens go past the cache (limit 4),gpu,8"
    served = "a,cached-c64,{},pass,equal; 5 experts copied into slots,gpu,8"
    other = "b,cached-c8,bitwise,pass,,gpu,8"
    both = ("a,full,ok,", "b,full,ok,")
    results = write_parity(
        tmp_path,
        *(past.format(check, "pass") for check in ("bitwise", "greedy")),
        *(served.format(check) for check in ("bitwise", "greedy")),
        other,
        rows=both,
    )
    assert cells(parity(results))[:2] == ["1/1", "1/1"]
    results = write_parity(tmp_path, past.format("bitwise", "pass"), other, rows=both)
    assert cells(parity(results))[0] == "past"
    results = write_parity(tmp_path, past.format("bitwise", "fail"), other, rows=both)
    assert cells(parity(results))[0] == "fail"


def test_parity_reads_what_verdicts_say_of_steps_past_the_cache(tmp_path: Path) -> None:
    parity_protocol = {"n_gen": 8, "rounds": 2, "text": str(ROOT / "README.md"), "batches": [1, 8]}
    figure = parity(Results(write_results(tmp_path, ROWS, parity=parity_protocol)))
    # 2, 8 and 16 slots and K = 2: 8 tokens fit in 16 slots alone
    assert cells(figure)[:8] == ["pass", "pass", "3/3", "1/1", "3/3", "1/1", "2/3", "2/3"]


def test_series_differ_in_marker_dashes_and_brightness() -> None:
    drawn = list(looks(["a", "b", "c", "d"]).values())
    assert len({look.marker for look in drawn}) == len({look.dashes for look in drawn}) == 4
    brightness = [sum(look.color) for look in drawn]
    assert brightness == sorted(brightness)


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(TecError, match=r"table not found .*main\.csv"):
        make_figures(tmp_path, ["hit-rate"])
    write_table(tmp_path, "main", MAIN, "a,full,ok,")
    with pytest.raises(TecError, match=r"table not found .*capacity\.csv"):
        make_figures(tmp_path, ["hit-rate"])
    write_table(tmp_path, "capacity", "row,arm", "a,off")
    with pytest.raises(TecError, match="no column 'protocol'"):
        make_figures(tmp_path, ["hit-rate"])
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


def test_figures_of_a_study_are_those_it_has_data_for() -> None:
    assert set(figures_of({"rows", "parity"})) == set(FIGURES) - {
        *("miniatures", "overlap", "reuse", "policies", "policy-hits", "calibration"),
        *("speed", "split", "loss", "replay-start"),
    }
