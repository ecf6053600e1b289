"""Routing traces, router traces and pin lists: what is written is read again, damage is named."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

from pin_lists import N_EXPERT, N_LAYER, RIGHT, WRONG
from routing import local_trace, traces
from tec import routing_trace, rtrace
from tec.errors import TecError
from tec.pin_list import PinList, most_used, read_pin_list, write_pin_list
from tec.routing_trace import RoutingTrace, make_trace, read_trace, write_trace
from tec.rtrace import open_rtrace, to_selections, write_rtrace

on_disk = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

TRACE = RoutingTrace(np.array([[[3, 0], [1, 2]], [[0, 3], [2, 4]]], dtype=np.int32), 6)
RECORD = 8 + 4 * 6
"""Bytes of a record with the scores of 6 experts."""


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def npy(path: Path, array: NDArray[Any], allow_pickle: bool = False) -> Path:
    np.save(path, array, allow_pickle=allow_pickle)
    return path


@on_disk
@given(trace=traces(n_expert=40, top_k=5, layers=3))
def test_traces_are_read_as_written(tmp_path: Path, trace: RoutingTrace) -> None:
    path = tmp_path / "trace.npy"
    write_trace(path, trace)
    again = read_trace(path, trace.n_expert)
    assert (again.selections == trace.selections).all()
    assert again.selections.dtype == np.dtype("<i4")
    assert np.load(path, allow_pickle=False).flags.c_contiguous


@on_disk
@given(trace=traces(n_expert=40, top_k=5, layers=3))
def test_router_traces_are_read_as_written(tmp_path: Path, trace: RoutingTrace) -> None:
    path = tmp_path / "trace.rtrace"
    layers = [3 * layer + 1 for layer in range(trace.n_layers)]
    write_rtrace(path, trace, layers)
    scores = open_rtrace(path, trace.n_expert)
    assert scores.layers == tuple(layers)
    assert (to_selections(scores, trace.top_k).selections == trace.selections).all()


def test_number_of_experts_is_given_or_the_largest_id_and_one(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.npy", TRACE)
    assert read_trace(tmp_path / "t.npy").n_expert == 5
    assert read_trace(tmp_path / "t.npy", 6).n_expert == 6


def test_large_traces_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_trace, "_MAPPED_FROM", 1)
    monkeypatch.setattr(routing_trace, "_CHUNK", 100)
    trace = local_trace()
    write_trace(tmp_path / "t.npy", trace)
    again = read_trace(tmp_path / "t.npy", trace.n_expert)
    assert isinstance(again.selections, np.memmap)
    assert (again.selections == trace.selections).all()


def test_version_2_of_npy_is_read(tmp_path: Path) -> None:
    with (tmp_path / "t.npy").open("wb") as file:
        np.lib.format.write_array(file, TRACE.selections, version=(2, 0))
    assert (read_trace(tmp_path / "t.npy").selections == TRACE.selections).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "No such file"),
        (lambda p: written(p, b""), "not a .npy file"),
        (lambda p: written(p, b"RTRACE01" + bytes(100)), "not a .npy file"),
        (lambda p: written(p, b"\x93NUMPY\x01\x00\x76\x00{'de"), "ends at byte 14, in its header"),
        (lambda p: written(p, b"\x93NUMPY\x01"), "ends at byte 7, in its header"),
        (lambda p: written(p, b"\x93NUMPY\x03\x00\x76\x00" + bytes(200)), "version 3.0"),
        (lambda p: written(p, b"\x93NUMPY\x01\x00\x04\x00{1:2"), "header cannot be read"),
        (lambda p: written(p, b"\x93NUMPY\x01\x00\x04\x00(1,)"), "header cannot be read"),
        (lambda p: npy(p, TRACE.selections.astype("<i8")), "type is '<i8'"),
        (lambda p: npy(p, TRACE.selections.astype(">i4")), "type is '>i4'"),
        (lambda p: npy(p, TRACE.selections.astype("<f4")), "type is '<f4'"),
        (lambda p: npy(p, np.array([{}], dtype=object), allow_pickle=True), r"type is '\|O'"),
        (lambda p: npy(p, np.asfortranarray(TRACE.selections)), "Fortran order"),
        (lambda p: npy(p, TRACE.selections[0]), r"shape is \(2, 2\)"),
        (lambda p: npy(p, TRACE.selections[:0]), r"shape is \(0, 2, 2\)"),
        (lambda p: npy(p, TRACE.selections - 1), r"expert -1 is not in 0..\d+ .*token 0, layer 0"),
        (lambda p: npy(p, TRACE.selections + 2), r"expert 6 is not in 0..5 .*token 1, layer 1"),
        (lambda p: npy(p, TRACE.selections // 3), r"expert 0 is selected twice .*token 0, layer 1"),
    ],
)
def test_wrong_traces_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(TecError, match=message) as refused:
        read_trace(make(tmp_path / "t.npy"), 6)
    assert "t.npy" in str(refused.value)


def test_fault_in_a_later_chunk_names_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_trace, "_CHUNK", 24)
    selections = local_trace().selections.copy()
    selections[177, 2, 3] = selections[177, 2, 1]
    with pytest.raises(TecError, match=r"selected twice .*token 177, layer 2"):
        make_trace(selections, 16, "trace")
    selections[177, 2, 3] = 16
    with pytest.raises(TecError, match=r"expert 16 is not in 0\.\.15 .*token 177, layer 2"):
        make_trace(selections, 16, "trace")


def test_truncated_and_longer_traces_name_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    write_trace(path, TRACE)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    place = f"ends at byte {len(whole) - 5} of {len(whole)}, in token 1 of 2"
    with pytest.raises(TecError, match=place):
        read_trace(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(TecError, match=f"ends at byte {len(whole)}, the file at {len(whole) + 1}"):
        read_trace(path)


def test_header_is_never_evaluated_or_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"{{'descr': __import__('pathlib').Path({str(mark)!r}).touch()}}".encode()
    path = written(tmp_path / "t.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(code)) + code)
    with pytest.raises(TecError, match="header cannot be read"):
        read_trace(path)
    assert not mark.exists()


def rtrace_bytes(tmp_path: Path) -> bytearray:
    write_rtrace(tmp_path / "whole.rtrace", TRACE, [1, 4])
    return bytearray((tmp_path / "whole.rtrace").read_bytes())


def put(data: bytearray, offset: int, kind: str, value: float) -> bytes:
    struct.pack_into(kind, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: b"", "ends at byte 0, in its header"),
        (lambda d: b"\x93NUMPY" + d[6:], "not an RTRACE01 file.*byte 0"),
        (lambda d: d[:7], "ends at byte 7, in its header"),
        (lambda d: d[:16], "ends at byte 16, in record 0"),
        (lambda d: d[:-1], f"ends at byte {16 + 4 * RECORD - 1}, in record 3"),
        (lambda d: put(d, 12, "<i", 1), "version 1 .*byte 12"),
        (lambda d: put(d, 8, "<i", 0), "0 experts make no sense .*byte 8"),
        (lambda d: put(d, 8, "<i", 7), "has 7 experts, the model 6"),
        (lambda d: d[:-RECORD], f"has records of 1 of 2 layers .*record 3 at byte {16 + 3 * 32}"),
        (
            lambda d: d[: 16 + RECORD] + d[16 + 2 * RECORD :],
            r"token 1, layer 4 where token 2, layer 1 has its place.*record 2 at byte 80",
        ),
        (
            lambda d: d[: 16 + 2 * RECORD] + d[16 + 3 * RECORD :],
            r"token 1, layer 4 where token 1, layer 1 has its place.*record 2 at byte 80",
        ),
        (
            lambda d: put(d, 16 + 2 * RECORD, "<i", 7),
            r"token 7, layer 1 where token 1, layer 1 .*record 2 at byte 80",
        ),
        (lambda d: put(d, 16, "<i", 3), "token 3, layer 1 where token 0, layer 1 .*record 0"),
        (lambda d: put(d, 20, "<i", -1), "layer -1 makes no sense .*record 0"),
        (
            lambda d: put(d, 16 + 3 * RECORD + 8 + 4 * 5, "<f", float("nan")),
            "score of expert 5 is not a number .*record 3 at byte 112",
        ),
    ],
)
def test_wrong_router_traces_are_refused(
    tmp_path: Path, damage: Callable[[bytearray], bytes], message: str
) -> None:
    path = written(tmp_path / "t.rtrace", damage(rtrace_bytes(tmp_path)))
    with pytest.raises(TecError, match=message):
        to_selections(open_rtrace(path, 6), 2)


def test_router_traces_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtrace, "_CHUNK_BYTES", 7 * 3 * (8 + 4 * 16))
    trace = local_trace()
    write_rtrace(tmp_path / "t.bin", trace)
    opened = open_rtrace(tmp_path / "t.bin")
    assert [len(scores) for scores in opened.scores()] == [7] * 28 + [4]
    assert (to_selections(opened, 4).selections == trace.selections).all()
    damaged = bytearray((tmp_path / "t.bin").read_bytes())
    put(damaged, 16 + 500 * (8 + 4 * 16), "<i", 0)
    (tmp_path / "t.bin").write_bytes(damaged)
    with pytest.raises(TecError, match=r"token 0, layer 2 where token 166, layer 2.*record 500"):
        to_selections(open_rtrace(tmp_path / "t.bin"), 4)


def test_equal_scores_are_taken_by_lower_id(tmp_path: Path) -> None:
    scores = [0.1, 0.4, 0.4, -np.inf, 0.4, 0.2]
    record = struct.pack("<ii6f", 0, 0, *scores)
    path = written(tmp_path / "t.rtrace", struct.pack("<8sii", b"RTRACE01", 6, 0) + record)
    trace = open_rtrace(path)
    assert to_selections(trace, 5).selections.tolist() == [[[1, 2, 4, 5, 0]]]
    with pytest.raises(TecError, match=r"fewer experts have a score.*record 0 at byte 16"):
        to_selections(trace, 6)
    with pytest.raises(TecError, match="cannot take 7 of 6 experts"):
        to_selections(trace, 7)


def test_layers_of_a_router_trace_ascend(tmp_path: Path) -> None:
    for layers in ([4, 1], [1], [1, 1], [-1, 2]):
        with pytest.raises(TecError, match="not 2 ascending layer numbers"):
            write_rtrace(tmp_path / "t.rtrace", TRACE, layers)
    assert not list(tmp_path.iterdir())


def test_pin_lists_are_read_as_written(tmp_path: Path) -> None:
    pins = PinList(6, ((), (3, 0), (), (5,)))
    write_pin_list(tmp_path / "pins", pins)
    assert (tmp_path / "pins").read_text().splitlines() == [
        "# EXPERT_CACHE_PIN_LIST v1",
        "n_layer 4",
        "n_expert 6",
        "layer 0:",
        "layer 1: 3 0",
        "layer 2:",
        "layer 3: 5",
    ]
    assert read_pin_list(tmp_path / "pins", 4, 6) == pins


def test_most_used_are_listed_first_and_unused_not_at_all() -> None:
    selections = np.array([[[3, 0]], [[3, 1]], [[0, 3]], [[5, 1]]], dtype=np.int32)
    pins = most_used(RoutingTrace(selections, 6), [2], 4)
    assert pins == PinList(6, ((), (), (3, 0, 1, 5), ()))
    assert len(most_used(RoutingTrace(selections, 6)).layers) == 1


@pytest.mark.parametrize(
    ("layers", "n_layer"), [([0], 2), ([1, 0], 2), ([0, 0], 2), ([0, 3], 3), ([-1, 0], 2)]
)
def test_layers_that_the_model_cannot_have_are_refused(layers: list[int], n_layer: int) -> None:
    with pytest.raises(TecError, match="2 MoE layers, which cannot be layers"):
        most_used(TRACE, layers, n_layer)


@pytest.mark.parametrize(("text", "line"), WRONG.items())
def test_wrong_pin_lists_are_refused_with_the_line(tmp_path: Path, text: str, line: str) -> None:
    path = written(tmp_path / "pins", text.encode())
    with pytest.raises(TecError, match=f"pins, {line}"):
        read_pin_list(path, N_LAYER, N_EXPERT)


@pytest.mark.parametrize(("text", "layers"), RIGHT.items())
def test_what_the_programs_accept_is_accepted(
    tmp_path: Path, text: str, layers: tuple[tuple[int, ...], ...]
) -> None:
    path = written(tmp_path / "pins", text.encode())
    assert read_pin_list(path, N_LAYER, N_EXPERT) == PinList(N_EXPERT, layers)
