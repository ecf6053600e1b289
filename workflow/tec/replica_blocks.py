"""Weights that are drawn in quantised form: random bytes made into blocks of a ggml type.

Every type stores a row of weights in blocks, the layouts of `ggml-common.h`. A block is filled with
random bytes first. Its quants stay as they are, its scales are set so that the weights have the
standard deviation that is asked for and the mean 0: where a type's quants are not symmetric, the
scale of each block has a random sign. Scales differ from block to block by up to a quarter, so that
blocks that were mixed up show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Raw = NDArray[np.uint8]
"""Random bytes of whole blocks, one after another."""


@dataclass(frozen=True)
class BlockType:
    """How a ggml type stores weights."""

    code: int
    """ggml's number of the type."""
    weights: int
    """Per block."""
    size: int
    """Bytes per block."""
    fill: Callable[[Raw, float], None]
    """Make random bytes into blocks whose weights have this standard deviation."""

    def bytes_of(self, n_weights: int) -> int:
        """Return the bytes of so many weights, whole blocks."""
        return n_weights // self.weights * self.size


def _factors(n: int) -> NDArray[np.float64]:
    """Return `n` factors from 0.75 to 1.25 whose mean square is 1."""
    factors = np.linspace(0.75, 1.25, n)
    return factors / math.sqrt(float((factors**2).mean()))


def _scales(scale: float) -> NDArray[np.uint16]:
    """Return 256 positive scales as the bits of half floats, for a random byte to choose from."""
    return (scale * _factors(256)).astype("<f2").view("<u2")


def _signed_scales(scale: float) -> NDArray[np.uint16]:
    """Return 256 scales, half of them negative; their bits as above."""
    factors = _factors(128)
    return (scale * np.concatenate([factors, -factors])).astype("<f2").view("<u2")


def _blocks(raw: Raw, *fields: tuple[str, str]) -> Any:
    """Return the bytes as records of these fields, in order, without gaps."""
    return raw.view(np.dtype(list(fields)))


def _chosen(field: NDArray[np.uint16]) -> NDArray[np.intp]:
    """Return a random number below 256 for each block, from the bytes where its scale will be."""
    return (field >> np.uint16(8)).astype(np.intp)


def _deviation(levels: int) -> float:
    """Return the standard deviation of `levels` successive whole numbers, equally likely."""
    return math.sqrt((levels**2 - 1) / 12)


_AT_ONCE = 2**14
"""Weights that are computed together: few enough to stay in a core's first cache."""


def _parts(n: int) -> Iterator[slice]:
    for begin in range(0, n, _AT_ONCE):
        yield slice(begin, min(begin + _AT_ONCE, n))


def _f32(raw: Raw, deviation: float) -> None:
    values = raw.view("<u4")
    for part in _parts(values.size):
        centred = (values[part] >> np.uint32(8)).astype(np.float32) - np.float32(2**23 - 0.5)
        values[part] = (centred * np.float32(deviation / _deviation(2**24))).view(np.uint32)


def _uniform(words: NDArray[np.int16], deviation: float) -> NDArray[np.float32]:
    """Return a uniform number for each random one of 16 bits."""
    values = words.astype(np.float32)
    values += np.float32(0.5)
    values *= np.float32(deviation / _deviation(2**16))
    return values


def _f16(raw: Raw, deviation: float) -> None:
    words, out = raw.view("<i2"), raw.view("<f2")
    for part in _parts(words.size):
        out[part] = _uniform(words[part], deviation)


def _bf16(raw: Raw, deviation: float) -> None:
    words, out = raw.view("<i2"), raw.view("<u2")
    for part in _parts(words.size):
        out[part] = _uniform(words[part], deviation).view(np.uint32) >> np.uint32(16)


def _q8_0(raw: Raw, deviation: float) -> None:
    raw |= np.uint8(1)  # odd numbers from -127 to 127: no -128, and the mean is 0
    scale = _blocks(raw, ("d", "<u2"), ("qs", "V32"))["d"]
    scale[:] = _scales(deviation / (2 * _deviation(128)))[_chosen(scale)]


def _q5_0(raw: Raw, deviation: float) -> None:
    scale = _blocks(raw, ("d", "<u2"), ("qh", "<u4"), ("qs", "V16"))["d"]
    scale[:] = _signed_scales(deviation / math.sqrt(_deviation(32) ** 2 + 0.25))[_chosen(scale)]


def _q5_1(raw: Raw, deviation: float) -> None:
    blocks = _blocks(raw, ("d", "<u2"), ("m", "<u2"), ("qh", "<u4"), ("qs", "V16"))
    chosen = _chosen(blocks["d"])
    blocks["d"] = _scales(deviation / _deviation(32))[chosen]
    blocks["m"] = _scales(-15.5 * deviation / _deviation(32))[chosen]


_INNER = 16
"""The scale of a part of a block, in units of the block's own scale."""


def _k_quant(raw: Raw, deviation: float, quants: str, levels: int) -> None:
    """Fill Q4_K or Q5_K: every part has the scale 16 and, to centre it, the minimum 16."""
    fields = (("d", "<u2"), ("dmin", "<u2"), ("low", "<u8"), ("high", "<u4"), ("qs", quants))
    blocks = _blocks(raw, *fields)
    chosen = _chosen(blocks["d"])
    scale = deviation / (_INNER * _deviation(levels))
    blocks["d"] = _scales(scale)[chosen]
    blocks["dmin"] = _scales(scale * (levels - 1) / 2)[chosen]
    blocks["low"] = 0x5050505050505050  # 16 of the first four parts; bit 4 of the last four
    blocks["high"] = 0


def _q4_k(raw: Raw, deviation: float) -> None:
    _k_quant(raw, deviation, "V128", 16)


def _q5_k(raw: Raw, deviation: float) -> None:
    _k_quant(raw, deviation, "V160", 32)


def _q6_k(raw: Raw, deviation: float) -> None:
    """Fill Q6_K: the parts have the scales 16, 48, 80 and 112, of either sign."""
    blocks = _blocks(raw, ("q", "V192"), ("s0", "<u8"), ("s1", "<u8"), ("d", "<u2"))
    for part in ("s0", "s1"):
        blocks[part] = (blocks[part] & 0xE0E0E0E0E0E0E0E0) | 0x1010101010101010
    inner = _INNER * math.sqrt((1 + 9 + 25 + 49) / 4)
    scale = deviation / (inner * math.sqrt(_deviation(64) ** 2 + 0.25))
    blocks["d"] = _scales(scale)[_chosen(blocks["d"])]


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the four bits of IQ4_XS stand for."""


def _iq4_xs(raw: Raw, deviation: float) -> None:
    """Fill IQ4_XS: the parts have the scales 16 and -16, which are stored as 48 and 16."""
    fields = (("d", "<u2"), ("scales_h", "<u2"), ("scales_l", "<u4"), ("qs", "V128"))
    blocks = _blocks(raw, *fields)
    blocks["scales_h"] = (blocks["scales_h"] & 0xAAAA) | 0x5555  # upper two bits: 3 or 1
    blocks["scales_l"] = 0
    root_mean_square = math.sqrt(sum(value**2 for value in _IQ4) / len(_IQ4))
    scale = deviation / (_INNER * root_mean_square)
    blocks["d"] = _scales(scale)[_chosen(blocks["d"])]


_MXFP4 = (0, 1, 2, 3, 4, 6, 8, 12)
"""What three bits of MXFP4 stand for, doubled; the fourth is the sign."""


def _mxfp4(raw: Raw, deviation: float) -> None:
    """Fill MXFP4: scales are powers of two, so some blocks have twice the scale of the others."""
    wanted = deviation / math.sqrt(sum(value**2 for value in _MXFP4) / len(_MXFP4))
    exponent = math.floor(math.log2(wanted))
    share = ((wanted / 2.0**exponent) ** 2 - 1) / 3
    table = np.full(256, exponent + 128, dtype=np.uint8)  # stands for 2^(e - 128), by the doubling
    table[: round(256 * share)] += 1
    scale = _blocks(raw, ("e", "u1"), ("qs", "V16"))["e"]
    scale[:] = table[scale]


BLOCKS: dict[str, BlockType] = {
    "F32": BlockType(0, 1, 4, _f32),
    "F16": BlockType(1, 1, 2, _f16),
    "Q5_0": BlockType(6, 32, 22, _q5_0),
    "Q5_1": BlockType(7, 32, 24, _q5_1),
    "Q8_0": BlockType(8, 32, 34, _q8_0),
    "Q4_K": BlockType(12, 256, 144, _q4_k),
    "Q5_K": BlockType(13, 256, 176, _q5_k),
    "Q6_K": BlockType(14, 256, 210, _q6_k),
    "IQ4_XS": BlockType(23, 256, 136, _iq4_xs),
    "BF16": BlockType(30, 1, 2, _bf16),
    "MXFP4": BlockType(39, 32, 17, _mxfp4),
}
"""The types that can be drawn, by ggml's names."""
