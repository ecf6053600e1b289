"""Tables made from measured stand-ins."""

import csv
import json
from pathlib import Path

import pytest

from fake_results import CARD
from fake_study import apart_in, make_session, make_steps, make_study
from tec.cli import main
from tec.main_table import main_table
from tec.measure import prompts_plan, random_plan
from tec.outcome import Failure
from tec.parity import parity_plan
from tec.records import Record, read_records
from tec.summary import summarise
from tec.table import EMPTY, Column, digits, escape_latex, escape_markdown
from tec.tables import TABLES, capacity_table, overhead_table
from tec.verdicts import judge


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake study's records, verdicts and tables, made by the commands."""
    folder = tmp_path_factory.mktemp("results")
    with apart_in(folder):
        maker = make_steps(folder, make_study(folder))
        make_session(folder, maker, "prompts").run(prompts_plan(maker), wait=0)
        make_session(folder, maker, "random").run(random_plan(maker), wait=0)
        make_session(folder, maker, "parity").run(parity_plan(maker), wait=0)
    verdicts = folder / "verdicts.jsonl"
    runs = [str(folder / f"toy.{protocol}.jsonl") for protocol in ("prompts", "random")]
    main(["parity", "judge", "toy", str(folder / "toy.parity.jsonl"), "--out", str(verdicts)])
    main(["tables", "--runs", *runs, "--verdicts", str(verdicts), "--out", str(folder / "tables")])
    return folder


@pytest.fixture(scope="module")
def records(results: Path) -> list[Record]:
    files = [results / f"toy.{protocol}.jsonl" for protocol in ("prompts", "random")]
    return [record for file in files for record in read_records(file)]


def with_gpu(records: list[Record]) -> list[Record]:
    """Return the records as if a graphics card had been there."""
    system = records[0].system.model_copy(update={"gpus": (CARD,)})
    build = records[0].build.model_copy(update={"target": "sm_90"})
    return [record.model_copy(update={"system": system, "build": build}) for record in records]


def table(results: Path, name: str) -> list[dict[str, str]]:
    with (results / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", TABLES)
def test_columns_begin_as_other_tools_expect(results: Path, name: str) -> None:
    expected = TABLES[name].split(",")
    header = (results / "tables" / f"{name}.csv").read_text().splitlines()[0].split(",")
    assert header[: len(expected)] == expected


def test_no_speedup_without_a_gpu(results: Path) -> None:
    (row,) = table(results, "main")
    assert (row["baseline_arm"], row["tec_arm"], row["evidence"]) == (
        "off",
        "cached-c8",
        "functional",
    )
    assert row["speedup"] == row["speedup_lo"] == row["speedup_hi"] == ""
    assert float(row["baseline_tps"]) > 0
    assert (row["hit_rate"], row["size_gib"]) == ("0.5", "1.5")


def test_speedup_of_paired_rounds_with_a_gpu(records: list[Record]) -> None:
    (row,) = main_table(summarise(with_gpu(records))).rows
    assert row["evidence"] == "gpu"
    assert row["speedup"] == pytest.approx(
        float(row["tec_tps"] or 0) / float(row["baseline_tps"] or 1)
    )
    assert row["speedup_lo"] is not None


def test_all_resident_cache_is_taken_only_where_there_is_no_other(records: list[Record]) -> None:
    arms = [arm for arm in summarise(records) if arm.arm in ("off", "cached-c16")]
    (row,) = main_table(arms).rows
    assert (row["tec_arm"], row["hit_rate"]) == ("cached-c16", 1)


def test_capacity_has_a_line_per_arm_and_protocol(results: Path) -> None:
    rows = table(results, "capacity")
    prompts = [row for row in rows if row["protocol"] == "prompts"]
    assert [row["arm"] for row in prompts] == [
        "off",
        "off-aa",
        "cached-c2",
        "cached-c8",
        "cached-c16",
    ]
    assert [row["capacity"] for row in prompts] == ["", "", "2", "8", "16"]
    assert [row["capacity_share"] for row in prompts] == ["", "", "0.125", "0.5", "1"]
    assert [row["hit_rate"] for row in prompts] == ["", "", "0", "0.5", "1"]
    assert {row["vram_gib"] for row in rows} == {""}  # there is no VRAM without a GPU
    assert {row["bound_tps"] for row in rows} == {""}
    random = [row for row in rows if row["protocol"] == "random"]
    assert [row["tg_tps"] for row in random] == ["400", "400", "402", "408", "416"]
    assert {row["rounds"] for row in random} == {"2"}


def test_cold_start_is_slower_than_steady_state(results: Path) -> None:
    cached = next(row for row in table(results, "capacity") if row["arm"] == "cached-c8")
    assert float(cached["cold_tps"]) < float(cached["steady_tps"])


def test_overhead_is_a_ratio_to_off_beside_the_noise(results: Path) -> None:
    rows = [row for row in table(results, "overhead") if row["protocol"] == "random"]
    assert [row["arm"] for row in rows] == ["cached-c2", "cached-c8", "cached-c16"]
    assert [row["ratio_to_off"] for row in rows] == ["1.005", "1.02", "1.04"]
    assert {(row["aa_lo"], row["aa_hi"]) for row in rows} == {("1", "1")}


def test_overhead_names_the_arm_it_is_a_ratio_to(records: list[Record]) -> None:
    renamed = {"off": "plain", "off-aa": "plain-aa"}
    arms = [
        record.model_copy(update={"arm": renamed.get(record.arm, record.arm)}) for record in records
    ]
    rows = overhead_table(summarise(arms)).rows
    assert {row["off_arm"] for row in rows} == {"plain"}
    assert all(row["aa_lo"] is not None for row in rows)


def test_resident_arm_is_a_ceiling_and_no_baseline(records: list[Record]) -> None:
    off = [r for r in with_gpu(records) if r.arm == "off"]
    key = off[0].key.model_copy(update={"settings": "f" * 12})
    resident = [r.model_copy(update={"arm": "resident", "key": key}) for r in off]
    arms = summarise([*with_gpu(records), *resident])
    (row,) = main_table(arms).rows
    assert row["baseline_arm"] == "off"
    assert all(row["resident_tps"] is not None for row in capacity_table(arms).rows)


def test_functional_numbers_are_marked_where_they_stand(results: Path) -> None:
    row = table(results, "main")[0]
    for suffix, mark in (("md", " [f]"), ("tex", r"$^{\mathrm{f}}$")):
        text = (results / "tables" / f"main.{suffix}").read_text()
        for key in ("baseline_tps", "tec_tps"):
            assert digits(4)(float(row[key])) + mark in text
        assert "functional, not evidence" in text


def test_gpu_numbers_carry_no_mark(records: list[Record]) -> None:
    arms = summarise(with_gpu(records))
    assert not main_table(arms).marked
    assert not overhead_table(arms).marked
    assert main_table(summarise(records)).marked


def test_markdown_is_a_table(results: Path) -> None:
    for name in TABLES:
        text = (results / "tables" / f"{name}.md").read_text()
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(table(results, name))
        assert len({line.count("|") for line in lines}) == 1


def test_latex_has_as_many_cells_in_every_line(results: Path) -> None:
    for name in TABLES:
        text = (results / "tables" / f"{name}.tex").read_text()
        lines = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 1 + len(table(results, name))
        assert len({line.count(" & ") for line in lines}) == 1


def test_a_divergence_of_zero_has_no_sign(results: Path) -> None:
    """The tool prints -0.000000 where the two agree."""
    runs = [
        run.model_copy(update={"result": {**run.result, "kl_mean": -0.0}})
        if run.test == "kl"
        else run
        for run in read_records(results / "toy.parity.jsonl")
    ]
    details = [v.detail for v in judge(runs) if v.check == "kl" and v.verdict == "pass"]
    assert details
    assert all(detail.startswith("mean 0 nats, off itself 0;") for detail in details)


def test_rows_stand_in_the_order_of_the_study_with_failed_ones(
    results: Path, tmp_path: Path
) -> None:
    """`first` failed before anything was measured, `toy` in one of its protocols."""
    early = Failure(row="first", variant="miniature", stage="model", what="corrupt", where="a.gguf")
    late = Failure(row="toy", variant="full", stage="measure random", what="no memory")
    for name, failure in {
        "first.prompts": early, "first.random": early, "first.verdicts": early, "toy.random": late
    }.items():  # fmt: skip
        (tmp_path / name).write_text(json.dumps({"failure": failure.model_dump()}) + "\n")
    runs = [tmp_path / f"first.{protocol}" for protocol in ("prompts", "random")]
    runs += [results / "toy.prompts.jsonl", tmp_path / "toy.random"]
    words = ["tables", "--runs", *map(str, runs), "--verdicts", str(results / "verdicts.jsonl")]
    words += [str(tmp_path / "first.verdicts"), "--out", str(tmp_path / "tables")]
    assert main(words) == 0

    first, toy = table(tmp_path, "main")
    assert (first["row"], first["variant"], first["outcome"]) == ("first", "miniature", "failed")
    assert first["reason"] == "model: corrupt (a.gguf)"
    assert first["tec_arm"] == first["arch"] == first["evidence"] == ""
    assert (toy["row"], toy["variant"], toy["outcome"]) == ("toy", "full", "failed")
    assert (toy["tec_arm"], toy["reason"]) == ("cached-c8", "measure random: no memory")
    assert {row["row"] for row in table(tmp_path, "capacity")} == {"toy"}
    checks = [row for row in table(tmp_path, "parity") if row["row"] == "first"]
    assert [(row["check"], row["verdict"], row["detail"]) for row in checks] == [
        ("self", "not_run", "model: corrupt (a.gguf)")
    ]
    assert "model: corrupt" in (tmp_path / "tables" / "main.md").read_text()


def test_row_that_passed_says_so_and_why_it_is_in_the_study(records: list[Record]) -> None:
    (row,) = main_table(summarise(records)).rows
    assert (row["outcome"], row["reason"], row["variant"]) == ("ok", None, "full")
    assert row["note"] == "preconditions do not hold"  # it has 16 experts
    many = [
        record.model_copy(update={"model": record.model.model_copy(update={"n_expert": 32})})
        for record in records
    ]
    (row,) = main_table(summarise(many)).rows
    assert row["note"] is None


def test_row_without_random_tokens_has_its_lines(records: list[Record]) -> None:
    other = [
        record.model_copy(update={"row": "other"})
        for record in records
        if record.protocol == "prompts"
    ]
    arms = summarise([*other, *records])
    assert [row["row"] for row in main_table(arms).rows] == ["other", "toy"]
    lines = [(row["row"], row["protocol"]) for row in capacity_table(arms).rows]
    assert list(dict.fromkeys(lines)) == [
        ("other", "prompts"),
        ("toy", "prompts"),
        ("toy", "random"),
    ]


def test_one_arm_alone_has_a_line(records: list[Record]) -> None:
    for arm, empty in (("off", "tec_tps"), ("cached-c8", "baseline_tps")):
        arms = summarise(record for record in records if record.arm == arm)
        (row,) = main_table(arms).rows
        assert row[empty] is None
        assert row["speedup"] is None


def test_records_of_other_protocols_are_no_throughput(results: Path) -> None:
    assert summarise(read_records(results / "toy.parity.jsonl")) == []


def test_escapes() -> None:
    assert escape_latex("a_b 5% {x} \\y ~^ 2\N{MULTIPLICATION SIGN}") == (
        r"a\_b 5\% \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{} 2$\times$"
    )
    assert escape_markdown("a|b_c") == r"a\|b\_c"


@pytest.mark.parametrize(
    ("value", "text"), [(1234.6, "1235"), (123.44, "123.4"), (0.01467, "0.0147"), (0.0, "0.0000")]
)
def test_digits(value: float, text: str) -> None:
    assert digits(4)(value) == text


def test_missing_value_is_a_dash_without_mark() -> None:
    column = Column("speedup", "speed-up", timed=True)
    assert column.cell({"speedup": None, "evidence": "functional"}) == (EMPTY, False)
