"""The eleven rows of the study against what is known of their models."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tec.config import HubSource, Row, load_row, load_study
from tec.paths import MODELS

# arch, blocks, blocks with experts, experts, used, widths that decide how rows are quantised
FACTS: dict[str, tuple[str, int, int, int, int, dict[str, int]]] = {
    "qwen3.5-122b-a10b-ud-q2_k_xl": ("qwen35moe", 48, 48, 256, 8, {"embd": 3072, "exp": 1024}),
    "qwen3.5-122b-a10b-ud-iq4_xs": ("qwen35moe", 48, 48, 256, 8, {"embd": 3072, "exp": 1024}),
    "qwen3.5-35b-a3b-q8_0": ("qwen35moe", 40, 40, 256, 8, {"embd": 2048, "exp": 512}),
    "qwen3-coder-next-ud-iq4_xs": ("qwen3next", 48, 48, 512, 10, {"embd": 2048, "exp": 512}),
    "gpt-oss-120b-reap-58b-q4_k_s": ("gpt-oss", 36, 36, 64, 4, {"embd": 2880, "exp": 2880}),
    "gpt-oss-120b-mxfp4": ("gpt-oss", 36, 36, 128, 4, {"embd": 2880, "exp": 2880}),
    "glm-4.7-flash-ud-q8_k_xl": ("deepseek2", 47, 46, 64, 4, {"embd": 2048, "exp": 1536}),
    "gemma-4-26b-a4b-it-bf16": ("gemma4", 30, 30, 128, 8, {"embd": 2816, "exp": 704}),
    "nemotron-cascade-2-30b-a3b-q8_0": (
        "nemotron_h_moe",
        52,
        23,
        128,
        6,
        {"embd": 2688, "exp": 1856, "shexp": 3712},
    ),
    "nemotron-3-nano-30b-a3b-q8_0": (
        "nemotron_h_moe",
        52,
        23,
        128,
        6,
        {"embd": 2688, "exp": 1856, "shexp": 3712},
    ),
    "mixtral-8x7b-instruct-v0.1-q6_k": ("llama", 32, 32, 8, 2, {"embd": 4096, "ff": 14336}),
}
WIDTHS = {
    "embd": "embedding_length",
    "exp": "expert_feed_forward_length",
    "shexp": "expert_shared_feed_forward_length",
    "ff": "feed_forward_length",
}
BLOCK = 256
"""Weights that K and IQ types quantise together."""


@pytest.fixture(params=FACTS)
def row(request: pytest.FixtureRequest) -> Row:
    return load_row(request.param)


def keys(row: Row) -> dict[str, Any]:
    assert row.miniature is not None
    return dict(row.miniature.keys)


def test_there_is_a_file_for_each_of_them_our_own_model_and_the_baseline() -> None:
    others = {"pydoc-moe", "qwen3-30b-a3b-q8_0"}
    assert {path.stem for path in MODELS.glob("*.yaml")} == {*FACTS, *others}


def test_the_measured_baseline_is_made_here_and_in_no_study_of_files() -> None:
    baseline = load_row("qwen3-30b-a3b-q8_0")
    assert baseline.source is None
    assert baseline.miniature is None
    for study in (load_study("demo"), load_study("paper")):
        assert baseline.name not in study.all_rows


def test_the_shape_is_the_model_s(row: Row) -> None:
    arch, n_layer, n_moe_layers, n_expert, n_expert_used, _ = FACTS[row.name]
    assert row.shape is not None
    assert row.shape.model_dump() == {
        "arch": arch,
        "n_layer": n_layer,
        "n_moe_layers": n_moe_layers,
        "n_expert": n_expert,
        "n_expert_used": n_expert_used,
    }


def test_the_miniature_has_the_experts_of_the_row(row: Row) -> None:
    _, n_layer, _, n_expert, n_expert_used, _ = FACTS[row.name]
    assert keys(row)["expert_count"] == n_expert
    assert keys(row)["expert_used_count"] == n_expert_used
    assert keys(row)["block_count"] < n_layer


def test_rows_of_weights_end_in_a_block_as_in_the_real_file(row: Row) -> None:
    for width, real in FACTS[row.name][5].items():
        assert keys(row)[WIDTHS[width]] % BLOCK == real % BLOCK, width


def test_splits_are_complete_and_in_order(row: Row) -> None:
    assert isinstance(row.source, HubSource)
    numbers = [re.search(r"-(\d{5})-of-(\d{5})\.gguf$", name) for name in row.source.files]
    if len(row.source.files) > 1:
        found = [(int(match[1]), int(match[2])) for match in numbers if match]
        count = len(row.source.files)
        assert found == [(number, count) for number in range(1, count + 1)]
    else:
        assert numbers == [None]


def test_patterns_are_regular_expressions(row: Row) -> None:
    assert row.miniature is not None
    for pattern in [*row.miniature.without, *row.miniature.tensor_types]:
        re.compile(pattern)
