"""Generated traces: their reuse against what is known of real models, and their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tec.cli import main
from tec.errors import TecError
from tec.locality import analyse
from tec.routing_trace import RoutingTrace, make_trace, read_trace
from tec.trace_generator import generate, statistics_file
from tec.trace_profile import PROFILES, inclusion, profile_for
from tec.trace_statistics import SHARES, statistics

TOLERANCE = 0.015


@pytest.fixture(scope="module")
def qwen() -> RoutingTrace:
    return generate("qwen3-30b-a3b", 1024, 48, 128, 8, seed=1)


@pytest.fixture(scope="module")
def found(qwen: RoutingTrace) -> dict[str, Any]:
    return statistics(qwen)


def test_reuse_is_that_of_qwen3_30b(found: dict[str, Any]) -> None:
    """45 % repeat on the next token, 80 % within 8, the median after 2 (Qwen3-30B-A3B)."""
    assert found["next_token"] == pytest.approx(0.45, abs=TOLERANCE)
    assert found["overlap_8"] == pytest.approx(0.80, abs=TOLERANCE)
    assert found["median_reuse"] == 2
    rates = {line["share"]: line["hit_rate"] for line in found["lru"]}
    assert 0.90 <= rates[0.4] <= 0.953
    assert list(rates) == list(SHARES)
    assert sorted(rates.values()) == list(rates.values())
    assert rates[1.0] == 1.0


def test_reuse_is_that_of_512_experts() -> None:
    """67, 81 to 85 and 92 % LRU hits with 64, 128 and 256 slots (Qwen3.8-Flash-Next)."""
    assert profile_for(512, 10) == "qwen3.8-flash-next"
    rates = statistics(generate("qwen3.8-flash-next", 1024, 8, 512, 10, seed=1))["lru"]
    hits = {line["slots"]: line["hit_rate"] for line in rates}
    assert hits[64] == pytest.approx(0.67, abs=TOLERANCE)
    assert 0.81 <= hits[128] <= 0.85
    assert hits[256] == pytest.approx(0.92, abs=TOLERANCE)


def test_reuse_is_that_of_256_experts() -> None:
    """84 % overlap with the last 8 tokens (Qwen3.5-35B-A3B)."""
    profile = profile_for(256, 8)
    overlap = statistics(generate(profile, 1024, 8, 256, 8, seed=1))["overlap_8"]
    assert overlap == pytest.approx(0.84, abs=TOLERANCE)


def test_the_statistics_are_those_of_the_locality_library(
    qwen: RoutingTrace, found: dict[str, Any]
) -> None:
    theirs = analyse(qwen)
    assert found["overlap_8"] == pytest.approx(theirs.overlap()[7])
    assert found["overlap_8_uniform"] == pytest.approx(theirs.uniform_overlap()[7])
    assert found["next_token"] == pytest.approx(theirs.reuse()[1])
    assert found["within_8"] == pytest.approx(theirs.reuse()[8])
    assert found["median_reuse"] == theirs.median_reuse
    assert found["first_uses"] == pytest.approx(theirs.first_uses)
    for line in found["lru"]:
        assert line["hit_rate"] == pytest.approx(theirs.hit_rate("lru", line["slots"]))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("n_expert", "top_k"),
    [(1, 1), (8, 2), (16, 8), (64, 4), (128, 1), (128, 4), (128, 6), (96, 96)],
)
def test_any_numbers_of_experts_make_a_trace(profile: str, n_expert: int, top_k: int) -> None:
    shares = inclusion(PROFILES[profile], n_expert, top_k)
    assert shares.sum() == pytest.approx(top_k)
    assert 0 <= shares.min() <= shares.max() <= 1
    trace = generate(profile, 40, 2, n_expert, top_k, seed=3)
    assert make_trace(trace.selections, n_expert, "here").selections.shape == (40, 2, top_k)
    assert statistics(trace)["lru"][-1]["hit_rate"] == 1.0


def test_the_seed_decides(qwen: RoutingTrace) -> None:
    again = generate("qwen3-30b-a3b", 1024, 48, 128, 8, seed=1)
    assert (again.selections == qwen.selections).all()
    other = generate("qwen3-30b-a3b", 1024, 48, 128, 8, seed=2)
    assert (other.selections != qwen.selections).mean() > 0.9


def test_layers_go_their_own_ways(qwen: RoutingTrace) -> None:
    same = np.mean([qwen.selections[:, 0] == qwen.selections[:, layer] for layer in (1, 20, 47)])
    assert same < 0.03


def test_every_expert_is_as_popular_as_another_in_the_long_run(qwen: RoutingTrace) -> None:
    counts = np.bincount(qwen.selections.ravel(), minlength=128)
    assert counts.min() > 0.8 * counts.mean()


def test_the_command_writes_a_trace_and_its_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.npy"
    words = ["--row", "gpt-oss-120b-mxfp4", "--tokens", "32", "--seed", "5", "--out", str(out)]
    assert main(["trace", "generate", *words]) == 0
    assert read_trace(out, 128).selections.shape == (32, 36, 4)
    record = json.loads(statistics_file(out).read_text())
    assert record["generator"]["seed"] == 5
    assert record["generator"]["profile"] == "qwen3-30b-a3b"
    assert record["next_token"] == statistics(read_trace(out, 128))["next_token"]
    assert "4 of 128 experts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "how many layers and experts the trace has is not given"),
        (["--layers", "2", "--experts", "8"], "is not given"),
        (["--layers", "2", "--experts", "8", "--used", "9"], "9 of 8 experts selected"),
        (["--layers", "0", "--experts", "8", "--used", "2"], "layers: 0 is no number from 1"),
        (["--row", "gpt-oss-120b-mxfp4", "--tokens", "0"], "tokens: 0 is no number"),
        (["--row", "gpt-oss-120b-mxfp4", "--seed", "-1"], "seed"),
        (["--row", "gpt-oss-120b-mxfp4", "--profile", "qwen3-30b"], "unknown profile 'qwen3-30b'"),
        (["--row", "pydoc-moe"], "row pydoc-moe has no shape"),
        (["--layers", "2", "--experts", "99999", "--used", "2"], "at most 32767 experts"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = tmp_path / "t.npy"
    assert main(["trace", "generate", *words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    words = ["--layers", "2", "--experts", "8", "--used", "2", "--out", str(tmp_path / "t.rtrace")]
    assert main(["trace", "generate", *words]) == 2


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(TecError, match="unknown profile"):
        generate("none", 1, 1, 8, 2, seed=1)
