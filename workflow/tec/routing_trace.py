"""Routing traces: which experts the router selected, for replay and analysis.

A routing trace is a NumPy `.npy` file, format version 1.0 or 2.0, that holds one array:

    dtype    little-endian int32 (`<i4`)
    order    C (rows last), never Fortran, never Python objects
    shape    (tokens, layers, K), each at least 1
    value    [t, l, k] is the k-th expert, in the router's order, that token t selected in the
             l-th MoE layer; 0 to n_expert - 1, and no expert twice in one token and layer

Tokens are in the order in which they were decoded. Layers are the MoE layers alone, by ascending
number; layers without experts have no place. The file does not say how many experts there are.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tec.errors import TecError
from tec.files import replacing

Selections = NDArray[np.int32]
"""Expert ids [tokens, MoE layers, K]."""

MAX_EXPERTS = 2**15 - 1

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}
_LONGEST_HEADER = 10_000
_MAPPED_FROM = 64 * 2**20
_CHUNK = 2**20
_HINT = "record the trace again, or convert one with: tec trace convert"


@dataclass(frozen=True)
class RoutingTrace:
    """Selected experts and how many there are to select from."""

    selections: Selections
    n_expert: int

    @property
    def n_tokens(self) -> int:
        """Decoded tokens."""
        return int(self.selections.shape[0])

    @property
    def n_layers(self) -> int:
        """MoE layers."""
        return int(self.selections.shape[1])

    @property
    def top_k(self) -> int:
        """Experts that a token selects in a layer."""
        return int(self.selections.shape[2])


def make_trace(selections: Selections, n_expert: int | None, where: object) -> RoutingTrace:
    """Check selections and return them as a trace.

    Args:
        selections: expert ids [tokens, MoE layers, K].
        n_expert: experts per layer; if None, one more than the largest id that occurs, which is
            less than the model has where its last experts were never selected.
        where: what an error names, such as the file.

    Raises:
        TecError: an id is out of range, or twice in one token and layer; names the place.
    """
    limit = MAX_EXPERTS if n_expert is None else n_expert
    if not selections.shape[2] <= limit <= MAX_EXPERTS:
        raise TecError(
            f"{limit} experts with {selections.shape[2]} selected per token make no sense", where
        )
    largest = 0
    step = max(1, _CHUNK // (selections.shape[1] * selections.shape[2]))
    for first in range(0, len(selections), step):
        chunk = np.asarray(selections[first : first + step])
        _check(chunk, first, limit, where)
        largest = max(largest, int(chunk.max()))
    return RoutingTrace(selections, largest + 1 if n_expert is None else n_expert)


def read_trace(path: Path, n_expert: int | None = None) -> RoutingTrace:
    """Read a routing trace; a large file is mapped into memory rather than read.

    Args:
        path: the `.npy` file.
        n_expert: as for `make_trace`.

    Raises:
        TecError: the file is missing, truncated, no `.npy` file, another array than described
            above, or holds ids that cannot be; names the byte, or the token, layer and value.
    """
    try:
        with path.open("rb") as file:
            shape, start = _read_header(file, path)
            values = _read_values(file, path, shape, start)
    except OSError as error:
        raise TecError(f"cannot read the trace: {error.strerror}", path) from error
    return make_trace(values, n_expert, path)


def write_trace(path: Path, trace: RoutingTrace) -> None:
    """Write a routing trace, all of it or nothing."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        values = np.ascontiguousarray(trace.selections, dtype="<i4")
        np.lib.format.write_array(file, values, version=(1, 0), allow_pickle=False)


def _read_header(file: BinaryIO, path: Path) -> tuple[tuple[int, int, int], int]:
    """Return the array's shape and the byte at which its values begin."""
    magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise TecError("not a .npy file: it does not begin with its magic bytes", path, _HINT)
    version = file.read(2)
    if len(version) == 2 and version not in _LENGTH_BYTES:
        raise TecError(f"version {version[0]}.{version[1]} of the .npy format", path, _HINT)
    size = _LENGTH_BYTES.get(version, 2)
    length = int.from_bytes(file.read(size), "little")
    text = file.read(min(length, _LONGEST_HEADER))
    if len(version) < 2 or length == 0 or len(text) < min(length, _LONGEST_HEADER):
        raise TecError(f"truncated: the file ends at byte {file.tell()}, in its header", path)
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
        found = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, MemoryError, RecursionError, KeyError, TypeError) as error:
        raise TecError("the .npy header cannot be read", f"{path}, byte 10", _HINT) from error
    return _shape(*found, path), len(_MAGIC) + 2 + size + length


def _shape(descr: object, fortran: object, shape: object, path: Path) -> tuple[int, int, int]:
    """Return the header's shape if the header is that of a routing trace."""
    if descr != "<i4":
        raise TecError(f"the array's type is {descr!r}, a routing trace has '<i4'", path, _HINT)
    if fortran is not False:
        raise TecError("the array is in Fortran order, a routing trace in C order", path, _HINT)
    if not (
        isinstance(shape, tuple)
        and len(shape) == 3
        and all(type(size) is int and size > 0 for size in shape)
    ):
        raise TecError(
            f"the array's shape is {shape}, a routing trace has (tokens, layers, K)", path, _HINT
        )
    return shape


def _read_values(file: BinaryIO, path: Path, shape: tuple[int, int, int], start: int) -> Selections:
    n_tokens, n_layers, top_k = shape
    expected = start + 4 * n_tokens * n_layers * top_k
    size = path.stat().st_size
    if size < expected:
        token = max(0, size - start) // (4 * n_layers * top_k)
        raise TecError(
            f"truncated: the file ends at byte {size} of {expected}, in token {token} of "
            f"{n_tokens}",
            path,
            _HINT,
        )
    if size > expected:
        raise TecError(f"the array ends at byte {expected}, the file at {size}", path, _HINT)
    if size >= _MAPPED_FROM:
        return np.memmap(path, dtype="<i4", mode="r", offset=start, shape=shape)
    file.seek(start)
    return np.frombuffer(file.read(), dtype="<i4").reshape(shape)


def _check(chunk: Selections, first: int, limit: int, where: object) -> None:
    """Refuse ids that cannot be; `first` is the chunk's first token."""
    wrong = (chunk < 0) | (chunk >= limit)
    if wrong.any():
        t, layer, k = np.argwhere(wrong)[0]
        raise TecError(
            f"expert {chunk[t, layer, k]} is not in 0..{limit - 1}",
            f"{where}, token {first + t}, layer {layer}",
            "the trace belongs to another model or is damaged",
        )
    ordered = np.sort(chunk, axis=2)
    twice = ordered[:, :, 1:] == ordered[:, :, :-1]
    if twice.any():
        t, layer, k = np.argwhere(twice)[0]
        raise TecError(
            f"expert {ordered[t, layer, k]} is selected twice",
            f"{where}, token {first + t}, layer {layer}",
            "the trace is damaged: a token selects K different experts in a layer",
        )
