"""The beginning of a GGUF file, version 3: metadata and where each tensor's data is.

Written here so that a machine that has NumPy and nothing else can write a model; the layout is that
of ggml's `gguf.h`. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scalar = str | bool | int | float
Value = Scalar | list[str] | list[bool] | list[int] | list[float]

ALIGNMENT = 32
"""Every tensor's data begins at a multiple of so many bytes."""

_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is."""

    name: str
    shape: tuple[int, ...]
    """Fastest dimension first."""
    code: int
    """ggml's number of the type."""
    offset: int
    """Bytes from the end of the header."""


def padded(size: int) -> int:
    """Return `size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """Return the bytes of a file up to its first tensor's data.

    Args:
        metadata: key -> value. A whole number becomes a uint32, in a list an int32, as llama.cpp's
            converters write them.
        tensors: the file's tensors.
    """
    out = bytearray(b"GGUF")
    out += struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += _string(key) + _typed(value)
    for tensor in tensors:
        rank = len(tensor.shape)
        out += _string(tensor.name)
        out += struct.pack(f"<I{rank}QIQ", rank, *tensor.shape, tensor.code, tensor.offset)
    return bytes(out.ljust(padded(len(out)), b"\0"))


def _typed(value: Value) -> bytes:
    """Return the number of the value's type and the value."""
    if isinstance(value, list):
        code = _INT32 if _code(value[0]) == _UINT32 else _code(value[0])
        elements = b"".join(_plain(code, element) for element in value)
        return struct.pack("<IIQ", _ARRAY, code, len(value)) + elements
    return struct.pack("<I", _code(value)) + _plain(_code(value), value)


def _code(value: Scalar) -> int:
    codes: dict[type, int] = {bool: _BOOL, int: _UINT32, float: _FLOAT32, str: _STRING}
    return codes[type(value)]


def _plain(code: int, value: Scalar) -> bytes:
    if isinstance(value, str):
        return _string(value)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[code], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
