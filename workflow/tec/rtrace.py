"""RTRACE01, the routers' scores as llama-router-trace records them.

Little endian: 8 bytes `RTRACE01`, int32 n_expert, int32 version 0; then records of int32 token,
int32 layer, float32[n_expert] scores. Tokens count from 0; each has one record for every MoE layer,
by ascending layer number. The selected experts are the K with the highest scores.

Files are read in pieces: a trace of some minutes is larger than most machines' memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tec.errors import TecError
from tec.files import replacing
from tec.routing_trace import MAX_EXPERTS, RoutingTrace, make_trace

MAGIC = b"RTRACE01"
VERSION = 0

_HEADER = struct.Struct("<8sii")
_CHUNK_BYTES = 16 * 2**20

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class RouterTrace:
    """A checked header and layout; the scores stay in the file."""

    path: Path
    n_expert: int
    layers: tuple[int, ...]
    """Model layers with experts."""
    n_records: int

    @property
    def n_tokens(self) -> int:
        """Tokens with all of their records."""
        return self.n_records // len(self.layers)

    def scores(self) -> Iterator[Scores]:
        """Yield the scores of some tokens after the other, each [tokens, layers, n_expert].

        Raises:
            TecError: a record is out of order or missing, or a score is not a number; names the
                record.
        """
        record = _record(self.n_expert)
        n_layers = len(self.layers)
        at_once = max(1, _CHUNK_BYTES // (record.itemsize * n_layers)) * n_layers
        with self.path.open("rb") as file:
            file.seek(_HEADER.size)
            for first in range(0, self.n_records, at_once):
                records = np.fromfile(file, record, min(at_once, self.n_records - first))
                self._check(records, first)
                if len(records) % n_layers:
                    raise TecError(
                        f"truncated: the last token has records of {len(records) % n_layers} of "
                        f"{n_layers} layers",
                        _place(self.path, first + len(records), self.n_expert),
                        "record the trace again",
                    )
                yield records["scores"].reshape(-1, n_layers, self.n_expert)

    def _check(self, records: NDArray[np.void], start: int) -> None:
        """Refuse records that are not those from number `start` on."""
        tokens, places = np.divmod(np.arange(start, start + len(records)), len(self.layers))
        expected = np.array(self.layers)[places]
        wrong = (records["token"] != tokens) | (records["layer"] != expected)
        if wrong.any():
            i = int(np.argmax(wrong))
            found = records[i]
            raise TecError(
                f"token {found['token']}, layer {found['layer']} where token {tokens[i]}, layer "
                f"{expected[i]} has its place: records are missing or out of order",
                _place(self.path, start + i, self.n_expert),
            )
        unknown = np.isnan(records["scores"]).any(axis=1)
        if unknown.any():
            i = int(np.argmax(unknown))
            expert = int(np.argmax(np.isnan(records["scores"][i])))
            raise TecError(
                f"the score of expert {expert} is not a number",
                _place(self.path, start + i, self.n_expert),
            )


def open_rtrace(path: Path, n_expert: int | None = None) -> RouterTrace:
    """Read the header and the first token's records.

    Args:
        path: the file.
        n_expert: the model's experts per layer, if known.

    Raises:
        TecError: the file is missing, of another format or version, of another model, or ends in a
            record; names the byte and the record.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            found = _check_header(header, path, n_expert)
            record = _record(found)
            size = path.stat().st_size
            n_records, rest = divmod(size - _HEADER.size, record.itemsize)
            if rest or n_records == 0:
                raise TecError(
                    f"truncated: the file ends at byte {size}, in record {n_records}",
                    path,
                    "record the trace again",
                )
            layers = _first_layers(file, record, n_records)
    except OSError as error:
        raise TecError(f"cannot read the trace: {error.strerror}", path) from error
    if layers[0] < 0:
        raise TecError(f"layer {layers[0]} makes no sense", _place(path, 0, found))
    return RouterTrace(path, found, layers, n_records)


def to_selections(trace: RouterTrace, top_k: int) -> RoutingTrace:
    """Return the `top_k` experts with the highest scores, highest first, ties by lower id.

    Raises:
        TecError: `top_k` is more than there are experts, or than have a finite score; and the
            errors of `RouterTrace.scores`.
    """
    if not 1 <= top_k <= trace.n_expert:
        raise TecError(f"cannot take {top_k} of {trace.n_expert} experts", trace.path)
    selections = np.empty((trace.n_tokens, len(trace.layers), top_k), dtype="<i4")
    token = 0
    for scores in trace.scores():
        for k in range(top_k):
            chosen = scores.argmax(axis=2)[:, :, None]  # the first, and so the lowest, of equals
            _check_finite(scores, chosen, trace, token)
            selections[token : token + len(scores), :, k] = chosen[:, :, 0]
            np.put_along_axis(scores, chosen, -np.inf, axis=2)
        token += len(scores)
    return make_trace(selections, trace.n_expert, trace.path)


def write_rtrace(path: Path, trace: RoutingTrace, layers: Sequence[int] | None = None) -> None:
    """Write a routing trace as scores, all of it or nothing.

    The scores are stand-ins: the selected experts share 1 in equal steps, in the trace's order, and
    the others have 0. `to_selections` gives the same trace back.

    Args:
        path: the file.
        trace: what to write.
        layers: the model layer of each MoE layer, ascending; by default from 0 on.
    """
    numbers = np.arange(trace.n_layers) if layers is None else np.array(layers)
    if len(numbers) != trace.n_layers or (np.diff(numbers) <= 0).any() or numbers[0] < 0:
        raise TecError(f"not {trace.n_layers} ascending layer numbers: {list(numbers)}", path)
    record = _record(trace.n_expert)
    shares = np.arange(trace.top_k, 0, -1, dtype=np.float32)
    shares /= shares.sum()
    tokens_at_once = max(1, _CHUNK_BYTES // (record.itemsize * trace.n_layers))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_HEADER.pack(MAGIC, trace.n_expert, VERSION))
        for first in range(0, trace.n_tokens, tokens_at_once):
            selected = np.asarray(trace.selections[first : first + tokens_at_once])
            records = np.zeros(selected.shape[:2], record)
            records["token"] = np.arange(first, first + len(selected))[:, None]
            records["layer"] = numbers
            np.put_along_axis(records["scores"], selected.astype(np.int64), shares, axis=2)
            records.tofile(file)


def _record(n_expert: int) -> np.dtype[np.void]:
    return np.dtype([("token", "<i4"), ("layer", "<i4"), ("scores", "<f4", (n_expert,))])


def _place(path: Path, index: int, n_expert: int) -> str:
    return f"{path}, record {index} at byte {_HEADER.size + index * _record(n_expert).itemsize}"


def _check_header(header: bytes, path: Path, n_expert: int | None) -> int:
    """Return the number of experts."""
    if not header.startswith(MAGIC[: len(header)]):
        raise TecError("not an RTRACE01 file: it begins with something else", f"{path}, byte 0")
    if len(header) < _HEADER.size:
        raise TecError(f"truncated: the file ends at byte {len(header)}, in its header", path)
    _, found, version = _HEADER.unpack(header)
    if version != VERSION:
        raise TecError(f"version {version} of RTRACE01, known is {VERSION}", f"{path}, byte 12")
    if not 1 <= found <= MAX_EXPERTS:
        raise TecError(f"{found} experts make no sense", f"{path}, byte 8")
    if n_expert is not None and found != n_expert:
        raise TecError(
            f"the trace has {found} experts, the model {n_expert}",
            f"{path}, byte 8",
            "take the trace of this model",
        )
    return int(found)


def _first_layers(file: BinaryIO, record: np.dtype[np.void], n_records: int) -> tuple[int, ...]:
    """Return the layers of the records up to the first one that does not ascend."""
    layers: list[int] = []
    for _ in range(n_records):
        entry = np.fromfile(file, record, 1)[0]
        if layers and (entry["token"] != 0 or entry["layer"] <= layers[-1]):
            break
        layers.append(int(entry["layer"]))
    return tuple(layers)


def _check_finite(scores: Scores, chosen: NDArray[np.intp], trace: RouterTrace, first: int) -> None:
    missing = np.take_along_axis(scores, chosen, axis=2)[:, :, 0] == -np.inf
    if missing.any():
        t, layer = np.argwhere(missing)[0]
        index = (first + int(t)) * len(trace.layers) + int(layer)
        raise TecError(
            "fewer experts have a score than are to be taken",
            _place(trace.path, index, trace.n_expert),
            "take as many as the model uses",
        )
