"""`tec trace`: info, convert, pins."""

from pathlib import Path

import pytest

from routing import local_trace
from tec.cli import main
from tec.locality import analyse
from tec.pin_list import most_used, read_pin_list
from tec.routing_trace import read_trace, write_trace
from tec.rtrace import open_rtrace
from tec.trace import shown_capacities

TRACE = local_trace()


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    path = tmp_path / "t.npy"
    write_trace(path, TRACE)
    return path


def test_info_shows_shape_reuse_and_hit_rates(
    npy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "info", str(npy), "--n-expert", "16"]) == 0
    said = capsys.readouterr().out
    found = analyse(TRACE)
    lines = {line[:17].strip(): line[17:].split() for line in said.splitlines()}
    assert [lines[key] for key in ("tokens", "MoE layers", "experts", "per token")] == [
        ["200"], ["3"], ["16"], ["4"],
    ]  # fmt: skip
    assert lines["overlap, W = 8"][0] == f"{found.overlap()[7]:.1%}"
    assert lines["C = 8"][0] == f"{found.hit_rate('lru', 8):.1%}"
    assert lines["C = 16"] == ["100.0%"] * 4


def test_info_says_where_the_number_of_experts_is_from(
    npy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["trace", "info", str(npy)])
    assert "16 (the largest id and one)" in capsys.readouterr().out
    main(["trace", "info", str(npy), "--n-expert", "20"])
    assert "largest" not in capsys.readouterr().out


def test_convert_there_and_back(npy: Path, tmp_path: Path) -> None:
    scores, back = tmp_path / "t.rtrace", tmp_path / "back.npy"
    assert main(["trace", "convert", str(npy), str(scores), "--layers", "1,3-4"]) == 0
    assert open_rtrace(scores).layers == (1, 3, 4)
    assert main(["trace", "convert", str(scores), str(back), "--top-k", "4"]) == 0
    assert back.read_bytes() == npy.read_bytes()


def test_pins_of_both_formats_are_the_same(npy: Path, tmp_path: Path) -> None:
    scores, one, other = (tmp_path / name for name in ("t.bin", "one", "other"))
    main(["trace", "convert", str(npy), str(scores), "--layers", "1-3"])
    layers = ["--layers", "1-3", "--n-layer", "5"]
    assert main(["trace", "pins", str(npy), "-o", str(one), *layers]) == 0
    assert main(["trace", "pins", str(scores), "-o", str(other), "--top-k", "4", *layers]) == 0
    assert one.read_text() == other.read_text()
    assert read_pin_list(one, 5, 16) == most_used(TRACE, [1, 2, 3], 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "t.rtrace"], "how many experts a token selects is not in it"),
        (["info", "t.txt"], "unknown kind of trace '.txt'"),
        (["info", "absent.npy"], "cannot read the trace: No such file"),
        (["info", "t.npy", "--n-expert", "9"], "is not in 0..8"),
        (["convert", "t.npy", "u.npy"], "both files are of the same format"),
        (["convert", "t.rtrace", "u.npy", "--top-k", "17"], "cannot take 17 of 16"),
        (["convert", "t.rtrace", "u.npy", "--top-k", "4", "--n-expert", "9"], "the model 9"),
        (["convert", "t.npy", "u.rtrace", "--layers", "1-x"], "'1-x' is no layer"),
        (["convert", "t.npy", "u.rtrace", "--layers", "1"], "not 3 ascending layer numbers"),
        (["pins", "t.npy", "-o", "pins", "--n-layer", "2"], "cannot be layers"),
        (["pins", "t.rtrace", "-o", "pins", "--top-k", "4", "--layers", "1-3"], "has layers [0"),
    ],
)
def test_what_cannot_be_is_refused(
    npy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(npy.parent)
    main(["trace", "convert", "t.npy", "t.rtrace"])
    before = sorted(npy.parent.iterdir())
    assert main(["trace", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(npy.parent.iterdir()) == before
    assert read_trace(npy).n_tokens == 200


def test_shown_capacities_begin_with_k_and_end_with_all() -> None:
    assert shown_capacities(8, 64) == [8, 16, 24, 32, 40, 48, 56, 64]
    assert shown_capacities(10, 512) == [10, 64, 128, 192, 256, 320, 384, 448, 512]
    assert shown_capacities(2, 8) == [2, 3, 4, 5, 6, 7, 8]
