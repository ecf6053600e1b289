"""Choosing pins from routing, how stable the choice is, and what a list remembers of its origin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from routing import local_trace, traces
from tec.calibration import (
    ENOUGH,
    FEWEST,
    Stability,
    check_length,
    choose_pins,
    count_uses,
    selections_per_expert,
    stability,
    tokens_for,
)
from tec.calibration_record import Calibration, Origin, read_calibration, record_path, why_stale
from tec.calibration_trace import split
from tec.errors import TecError
from tec.files import sha256_file
from tec.pin_list import write_pin_list
from tec.routing_trace import RoutingTrace

ORIGIN = Origin(model="a" * 64, prompt="b" * 64, generated=0, limit=None)


@given(trace=traces())
def test_uses_and_the_order_of_the_list_are_those_of_a_counter(trace: RoutingTrace) -> None:
    pins = choose_pins(trace, tuple(range(trace.n_layers)), trace.n_layers)
    for layer, uses in enumerate(count_uses(trace)):
        counted = Counter(trace.selections[:, layer].ravel().tolist())
        assert {e: n for e, n in enumerate(uses.tolist()) if n} == dict(counted)
        assert pins.layers[layer] == tuple(sorted(counted, key=lambda e: (-counted[e], e)))


def test_a_limit_keeps_the_most_used_and_layers_without_experts_stay_empty() -> None:
    trace = local_trace()
    whole = choose_pins(trace, (1, 2, 4), 6)
    cut = choose_pins(trace, (1, 2, 4), 6, limit=3)
    assert cut.layers == tuple(experts[:3] for experts in whole.layers)
    assert [len(experts) for experts in cut.layers] == [0, 3, 3, 0, 3, 0]


def test_parts_agree_on_everything_or_on_nothing() -> None:
    first = np.tile(np.array([[[0, 1]], [[0, 1]]], dtype=np.int32), (20, 1, 1))
    same = RoutingTrace(np.concatenate([first, first]), 8)
    other = RoutingTrace(np.concatenate([first, first + 4]), 8)
    assert stability(same, 2) == Stability(2, alternate=1.0, halves=1.0, chance=0.25)
    assert stability(other, 2).halves == 0
    assert stability(other, 4).alternate == 1


def test_experts_that_a_part_never_used_are_none_that_parts_agree_on() -> None:
    one = RoutingTrace(np.zeros((40, 1, 1), dtype=np.int32), 8)
    assert stability(one, 4) == Stability(4, alternate=0.25, halves=0.25, chance=0.5)


def test_agreement_grows_with_the_tokens_of_routing_without_subjects() -> None:
    random = np.random.default_rng(2)
    liking = random.gumbel(size=(1, 3, 32))
    scores = liking + random.gumbel(size=(4000, 3, 32))
    selections = np.argsort(-scores, axis=2)[:, :, :4].astype(np.int32)
    found = [stability(RoutingTrace(selections[:n], 32), 8).halves for n in (32, 256, 4000)]
    assert found == sorted(found)
    assert found[-1] > 0.9 > found[0]


def test_prompts_that_are_too_short_are_refused_and_short_ones_named() -> None:
    trace = local_trace(tokens=200)  # 16 experts, top-4
    assert [tokens_for(trace, wanted) for wanted in (FEWEST, ENOUGH)] == [32, 128]
    assert check_length(trace) is None

    def first(tokens: int) -> RoutingTrace:
        return RoutingTrace(trace.selections[:tokens], 16)

    assert selections_per_expert(first(32)) == FEWEST
    assert "128 tokens leave less to chance" in (check_length(first(32)) or "")
    assert check_length(first(128)) is None
    with pytest.raises(TecError, match=r"too short: its 31 tokens.*7\.8 times") as refused:
        check_length(first(31))
    assert refused.value.hint == "take 128 tokens or more (32 are the least)"


def test_pieces_are_the_whole_text_and_end_where_something_ends() -> None:
    text = "".join(f"Paragraph {number}, line one.\nLine two.\n\n" for number in range(12))
    for count in (1, 2, 5, 12):
        pieces = list(split(text, count))
        assert "".join(pieces) == text
        assert len(pieces) == count
        assert all(piece.endswith("\n\n") for piece in pieces)
    assert list(split("one two three four", 2)) == ["one two ", "three four"]
    assert list(split("onetwothreefour", 3)) == ["onetw", "othre", "efour"]
    assert list(split("ab", 5)) == ["a", "b"]


def write_list(pins: Path, trace: RoutingTrace, model: str = ORIGIN.model) -> Path:
    """Write the list of a model whose layers all have experts, with its record."""
    layers = tuple(range(trace.n_layers))
    write_pin_list(pins, choose_pins(trace, layers, trace.n_layers))
    record = Calibration(
        origin=ORIGIN.model_copy(update={"model": model}),
        pins=sha256_file(pins),
        model="toy",
        arch="qwen3moe",
        n_layer=trace.n_layers,
        n_expert=trace.n_expert,
        n_expert_used=trace.top_k,
        moe_layers=layers,
        prompt="text",
        tokens=trace.n_tokens,
        contexts=1,
        selections_per_expert=selections_per_expert(trace),
        stability=stability(trace, trace.n_expert // 2),
        layers=(),
        engine="",
        target="cpu",
    )
    record_path(pins).write_text(record.model_dump_json())
    assert read_calibration(pins) == record
    return pins


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"model": "c" * 64}, "made from another model"),
        ({"prompt": "c" * 64, "generated": 8}, "made from another prompt and generated"),
        ({"limit": 4}, "made from another limit"),
    ],
)
def test_a_list_of_another_origin_is_stale(
    tmp_path: Path, changed: dict[str, str | int], reason: str | None
) -> None:
    wanted = Origin.model_validate(ORIGIN.model_dump() | changed)
    assert why_stale(write_list(tmp_path / "pins.txt", local_trace()), wanted) == reason


def test_a_list_that_was_edited_or_has_no_record_is_stale(tmp_path: Path) -> None:
    pins = write_list(tmp_path / "pins.txt", local_trace())
    whole = pins.read_text()
    pins.write_text(whole.replace("layer 0: ", "layer 0: 15 "))
    assert why_stale(pins, ORIGIN) == "the list is not the one of its record"
    pins.write_text(whole)
    assert why_stale(pins, ORIGIN) is None
    record_path(pins).write_text('{"version": 2}')
    assert "damaged: version" in (why_stale(pins, ORIGIN) or "")
    record_path(pins).unlink()
    assert "no record" in (why_stale(pins, ORIGIN) or "")
