"""Block layouts against the dequantisation of the package gguf."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from tec.miniature_weights import Tensor, stored_as
from tec.replica_blocks import BLOCKS
from tec.replica_plan import Weights
from tec.replica_weights import PIECE, deviation, draw, is_small, pieces

TYPES = sorted(BLOCKS)
ROW = 2560
EXPERTS = Weights("blk.0.ffn_up_exps.weight", (ROW, 64, 4), "Q8_0")


def drawn(tensor: Weights, seed: int = 1) -> bytes:
    return b"".join(bytes(draw(tensor, *piece, seed, tied=False)) for piece in pieces(tensor))


def weights(kind: str, shape: tuple[int, ...] = (ROW, 300)) -> Weights:
    return Weights("blk.0.ffn_up_exps.weight", shape, kind)


def dequantised(tensor: Weights, data: bytes) -> NDArray[np.float32]:
    raw = np.frombuffer(data, np.uint8).reshape(tensor.size // ROW, -1)
    values: NDArray[np.float32] = gguf.dequantize(raw, gguf.GGMLQuantizationType[tensor.type])
    return values


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_have_the_sizes_of_ggml(kind: str) -> None:
    block = BLOCKS[kind]
    number = gguf.GGMLQuantizationType[kind]
    assert block.code == number.value
    assert (block.weights, block.size) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_finite_centred_and_of_the_wanted_size(kind: str) -> None:
    tensor = weights(kind)
    values = dequantised(tensor, drawn(tensor)).reshape(300, ROW).astype(np.float64)
    wanted = ROW**-0.5
    assert np.isfinite(values).all()
    assert abs(values.mean()) < wanted / 100
    assert values.std() == pytest.approx(wanted, rel=0.01)
    # a mean that rows or columns have in common would add up from layer to layer
    assert abs(values.mean(axis=1)).max() < 6 * wanted / ROW**0.5
    assert abs(values.mean(axis=0)).max() < 6 * wanted / 300**0.5


@pytest.mark.parametrize("kind", [kind for kind in TYPES if BLOCKS[kind].weights > 1])
def test_blocks_differ_in_their_scales(kind: str) -> None:
    tensor = weights(kind)
    values = dequantised(tensor, drawn(tensor)).reshape(-1, BLOCKS[kind].weights)
    peaks = abs(values).max(axis=1)
    assert len(np.unique(peaks)) > (1 if kind == "MXFP4" else 50)


@pytest.mark.parametrize("wanted", [0.003, 0.0221, 0.03125, 0.05, 3.0])
def test_scales_that_are_powers_of_two_meet_every_deviation(wanted: float) -> None:
    raw = np.random.default_rng(1).integers(256, size=17 * 4000, dtype=np.uint8)
    BLOCKS["MXFP4"].fill(raw, wanted)
    values = gguf.dequantize(raw.reshape(1, -1), gguf.GGMLQuantizationType.MXFP4)
    assert values.std() == pytest.approx(wanted, rel=0.02)


def test_every_expert_has_bytes_of_its_own() -> None:
    experts = np.frombuffer(drawn(EXPERTS), np.uint8).reshape(4, 64, -1)
    found = {row.tobytes() for expert in experts for row in expert}
    assert len(found) == 4 * 64


def test_pieces_cover_a_tensor_whole_blocks_each() -> None:
    for kind in TYPES:
        tensor = weights(kind, (ROW, 1000))
        found = list(pieces(tensor))
        assert len(found) > 1
        assert [begin for begin, _ in found[1:]] == [begin + size for begin, size in found[:-1]]
        assert sum(size for _, size in found) == tensor.n_bytes
        assert all(size % tensor.blocks.size == 0 and size <= PIECE for _, size in found)


def test_the_seed_and_the_name_decide_the_bytes() -> None:
    other = Weights("blk.1.ffn_up_exps.weight", EXPERTS.shape, "Q8_0")
    assert drawn(EXPERTS) == drawn(EXPERTS)
    assert len({drawn(EXPERTS), drawn(EXPERTS, seed=2), drawn(other)}) == 3


def test_gains_are_those_of_miniatures() -> None:
    def of(name: str, tied: bool = False) -> float:
        return deviation(Weights(name, (400, 8), "Q8_0"), tied) * 20

    assert of("blk.0.attn_q.weight") == of("blk.0.ffn_up_exps.weight") == pytest.approx(1.0)
    assert of("output.weight") == pytest.approx(3.0)
    assert of("blk.0.ffn_down_exps.weight") == pytest.approx(2.0)
    assert of("token_embd.weight") == pytest.approx(20.0)
    assert of("token_embd.weight", tied=True) == pytest.approx(0.25)


def test_norms_and_routers_are_those_of_miniatures() -> None:
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "output_norm.weight"):
        assert stored_as(Tensor(name, (64, 8))) == np.float32
        assert is_small(Weights(name, (64, 8), "F32"))
    assert not is_small(Weights("blk.0.attn_q.weight", (64, 8), "F32"))
