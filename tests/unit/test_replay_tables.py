"""Tables and figures of replays: the bound, the ceiling, and baselines with no more memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fake_study import make_model
from tec.config import load_study
from tec.headline_table import headline_table
from tec.main_table import main_table
from tec.quantities import GIB
from tec.records import Outcome, Verdict
from tec.replay_figures import time_split
from tec.summary import ArmSummary, Role, best_baseline, bound_tps
from tec.tables import capacity_table, overhead_table


def arm(
    name: str, role: Role, tps: float | Mapping[int, float], limit_gib: float, **more: Any
) -> ArmSummary:
    values: dict[str, Any] = {
        "row": "toy",
        "arm": name,
        "protocol": "replay",
        "role": role,
        "evidence": "gpu",
        "tg": tps if isinstance(tps, Mapping) else {0: tps, 1: tps},
        "pp": {},
        "hit_rate": None,
        "limit_bytes": int(limit_gib * GIB),
        "bandwidth": 50e9,
    }
    return ArmSummary(**{**values, **more})


@pytest.fixture
def group(tmp_path: Path) -> list[ArmSummary]:
    model = make_model(tmp_path)  # 16 experts
    moved = {"bytes_per_token": 50e6, "misses_per_token": 25.0, "hit_rate": 0.9}
    return [
        arm("resident", "resident", 250.0, 76, model=model, settings="r"),
        arm("ncmoe-all-aa", "aa", 52.0, 8, model=model, settings="n"),
        arm("resident-aa", "aa", 251.0, 76, model=model, settings="r"),
        arm("ncmoe-all", "baseline", 50.0, 8, model=model, settings="n"),
        arm("ncmoe-c8", "baseline", 80.0, 16, model=model),
        arm("fit-c8", "baseline", 90.0, 16, model=model),
        arm("ncmoe-c12", "baseline", 120.0, 24, model=model),
        arm("cached-c4", "tec", 150.0, 8, model=model, capacity=4, **moved),
        arm("cached-c8", "tec", {0: 180.0, 1: 198.0}, 16, model=model, capacity=8, **moved),
        arm("cached-c16", "tec", 245.0, 30, model=model, capacity=16, bytes_per_token=0.0),
    ]


def without_resident(group: list[ArmSummary]) -> list[ArmSummary]:
    return [arm for arm in group if not arm.arm.startswith("resident")]


def line(group: list[ArmSummary], name: str) -> Mapping[str, Any]:
    return next(row for row in capacity_table(group).rows if row["arm"] == name)


def test_the_bound_adds_the_copies_to_the_resident_time(group: list[ArmSummary]) -> None:
    # 1/250 s + 50 MB / 50 GB/s = 4 ms + 1 ms
    row = line(group, "cached-c8")
    assert row["bound_tps"] == pytest.approx(200)
    assert row["bound_share"] == pytest.approx(189 / 200)
    assert row["resident_share"] == pytest.approx(189 / 250)
    assert row["misses_per_token"] == 25
    assert row["bandwidth_gbs"] == 50
    assert row["pp_tps"] is None
    assert line(group, "cached-c16")["bound_tps"] == pytest.approx(250)
    assert line(group, "ncmoe-c8")["bound_tps"] is None


def test_without_a_resident_arm_there_is_no_bound(group: list[ArmSummary]) -> None:
    group = without_resident(group)
    assert bound_tps(group[-2], group) is None
    row = line(group, "cached-c8")
    assert row["resident_tps"] is row["resident_share"] is row["bound_share"] is None


def test_a_baseline_has_no_more_memory_than_the_cached_arm(group: list[ArmSummary]) -> None:
    best = {a.arm: best_baseline(a, group) for a in group if a.role == "tec"}
    names = {name: found.arm if found else None for name, found in best.items()}
    assert names == {"cached-c4": "ncmoe-all", "cached-c8": "fit-c8", "cached-c16": "ncmoe-c12"}
    row = line(group, "cached-c8")
    assert (row["baseline_arm"], row["baseline_tps"]) == ("fit-c8", 90)
    assert row["speedup"] == pytest.approx((180 * 198) ** 0.5 / 90)
    assert row["speedup_lo"] < row["speedup"] < row["speedup_hi"]


def test_the_headline_is_half_of_the_experts_and_not_the_fastest(group: list[ArmSummary]) -> None:
    table = main_table(group)
    (row,) = table.rows
    assert (row["tec_arm"], row["baseline_arm"]) == ("cached-c8", "fit-c8")
    assert row["speedup"] == pytest.approx((180 * 198) ** 0.5 / 90)
    assert (row["protocol"], row["vram_limit_gib"]) == ("replay", 16)
    assert "same VRAM" in table.caption
    assert "vram_limit_gib" in [column.key for column in table.columns]


def test_no_ratio_is_shown_that_was_not_measured_on_a_card(group: list[ArmSummary]) -> None:
    from dataclasses import replace

    functional = [replace(arm, evidence="functional") for arm in group]
    assert line(functional, "cached-c8")["speedup"] is None
    assert main_table(functional).rows[0]["speedup"] is None


def test_overhead_at_limits_is_against_the_resident_arm(group: list[ArmSummary]) -> None:
    rows = {str(row["arm"]): row for row in overhead_table(group).rows}
    assert {row["off_arm"] for row in rows.values()} == {"resident"}
    assert rows["cached-c16"]["ratio_to_off"] == pytest.approx(245 / 250)
    assert rows["cached-c16"]["aa_hi"] == pytest.approx(251 / 250)
    assert overhead_table(without_resident(group)).rows == ()


def test_there_is_a_noise_floor_where_the_model_does_not_fit(group: list[ArmSummary]) -> None:
    row = line(without_resident(group), "cached-c8")
    assert row["aa_arm"] == "ncmoe-all"
    assert (row["aa_lo"], row["aa_hi"]) == pytest.approx((1.04, 1.04))
    bare = [arm for arm in group if arm.arm != "ncmoe-all-aa"]
    assert line(bare, "cached-c8")["aa_arm"] is None


def test_every_stock_arm_without_a_search_in_study_replicas_has_a_twin() -> None:
    arms = load_study("replicas").arms
    assert arms["ncmoe-all-aa"] == arms["ncmoe-all"]
    assert arms["resident-aa"] == arms["resident"]


def test_captions_say_where_hit_rates_come_from(group: list[ArmSummary]) -> None:
    assert "generated trace" in main_table(group).caption
    assert "generated trace" in capacity_table(group).caption
    assert "generated trace" not in capacity_table([]).caption


def frame(lines: list[tuple[str, float | None, float]]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=["arm", "capacity_share", "steady_tps"])


def test_a_tokens_time_is_split_into_compute_resolve_and_fill() -> None:
    part = frame([("resident", None, 250), ("cached-c8", 0.5, 160), ("cached-c16", 1, 200)])
    times = time_split(part, "steady_tps")
    assert list(times.index) == [0.5, 1]
    assert list(times["compute"]) == [4, 4]
    assert list(times["resolve"]) == [1, 1]
    assert list(times["fill"]) == [pytest.approx(1.25), 0]


def test_the_split_does_without_what_was_not_measured() -> None:
    part = frame([("resident", None, 250), ("cached-c8", 0.5, 200)])
    assert list(time_split(part, "steady_tps").iloc[0]) == [4, 0, 1, 0]
    assert list(time_split(part[1:], "steady_tps").iloc[0]) == [0, 0, 0, 5]


def verdict(batch: int, outcome: Outcome) -> Verdict:
    return Verdict(
        row="toy", arm="cached-c8", check="bitwise", verdict=outcome, detail="", evidence="gpu",
        batch=batch,
    )  # fmt: skip


def headlines(group: list[ArmSummary], *verdicts: Verdict) -> dict[Any, Mapping[str, Any]]:
    table = headline_table(capacity_table(group).rows, group, [verdicts])
    return {row["arm"]: row for row in table.rows}


def test_the_headline_has_the_capacities_nearest_to_its_shares(group: list[ArmSummary]) -> None:
    assert list(headlines(group)) == ["cached-c4", "cached-c8", "cached-c16"]
    assert list(headlines(without_resident(group)[:-1])) == ["cached-c4", "cached-c8"]


def test_the_headline_repeats_the_capacity_table(group: list[ArmSummary]) -> None:
    found, whole = headlines(group)["cached-c8"], line(group, "cached-c8")
    for key in ("speedup", "speedup_lo", "hit_rate", "resident_share", "bound_share", "rounds"):
        assert found[key] == whole[key]
    assert found["tec_tps"] == whole["tg_tps"]


def test_the_headline_names_the_option_of_the_best_stock_arm(group: list[ArmSummary]) -> None:
    words = ("bench", "--fit", "on", "--fit-target", "128", "--gpu-layers", "99")
    group = [replace(a, command=words) if a.arm == "fit-c8" else a for a in group]
    group = [a if a.command else replace(a, command=("--n-cpu-moe", "3")) for a in group]
    assert headlines(group)["cached-c8"]["baseline_option"] == "--fit-target 128"
    assert headlines(group)["cached-c4"]["baseline_option"] == "--n-cpu-moe 3"


def test_the_headline_says_where_bits_are_equal_and_where_not(group: list[ArmSummary]) -> None:
    judged = [verdict(2, "pass"), verdict(1, "pass"), verdict(4, "not_run"), verdict(8, "fail")]
    found = headlines(group, *judged)
    assert found["cached-c8"]["batches_equal"] == "1 2"
    assert found["cached-c8"]["batches_unequal"] == "8"
    assert found["cached-c4"]["batches_equal"] is None


def test_the_printed_headline_has_the_interval_beside_the_speedup(group: list[ArmSummary]) -> None:
    table = headline_table(capacity_table(group).rows, group, [])
    (shown,) = [row["speedup"] for row in table.lines if row["arm"] == "cached-c8"]
    assert shown == "2.10\N{MULTIPLICATION SIGN} [2.00, 2.20]"
