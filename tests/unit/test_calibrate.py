"""`tec calibrate` with a stand-in for llama-router-trace: what it writes, and when it does not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gguf_files import N_EXPERT, N_EXPERT_USED, N_LAYER, write_dense, write_moe, write_split_moe
from tec import calibration_model
from tec.build import Binary, Manifest
from tec.calibrate import BUILT_IN
from tec.calibration_model import find_model
from tec.cli import main
from tec.pin_list import most_used, read_pin_list
from tec.routing_trace import read_trace

pytestmark = pytest.mark.usefixtures("apart")

TOOL = '''
"""Every word is a token; its length says which experts it selects."""
import os, struct, sys, time
from pathlib import Path

option = lambda name: sys.argv[sys.argv.index(name) + 1]
with Path(__file__).with_name("calls.txt").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
words = Path(option("-f")).read_text().split()
if "sleep" in words:
    time.sleep(60)
if "fail" in words:
    sys.exit("error: out of luck")
n_prompt, n_gen, room = len(words), int(option("-n")), int(option("-c"))
words += ["more"] * n_gen
if len(words) > room:
    sys.exit(f"error: the prompt of {n_prompt} tokens and {n_gen} more do not fit the "
             f"context of {room}: set -c")
with open(os.environ["ROUTER_TRACE_OUT"], "wb") as out:
    out.write(struct.pack("<8sii", b"RTRACE01", 16, 0))
    for token, word in enumerate(words):
        for layer in range(2):
            scores = [0.0] * 16
            scores[(len(word) + layer) % 16] = 0.6
            scores[(token + layer) % 16] += 0.3
            out.write(struct.pack("<ii16f", token, layer, *scores))
'''


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The manifest of a build with the stand-in."""
    monkeypatch.setattr("tec.verified.VERIFIED", tmp_path / "verified.json")
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "llama-router-trace"
    tool.write_text(f"#!{sys.executable} -IS\n{TOOL}")
    tool.chmod(0o755)
    manifest = Manifest(
        target="cpu",
        commit="c" * 40,
        digest="d" * 64,
        series_hash="e" * 64,
        build_type="Release",
        compiler="",
        cuda=None,
        cmake_args=[],
        bin_dir=folder,
        binaries={tool.name: Binary(path=Path("bin/llama-router-trace"), sha256="f" * 64)},
        libraries={},
        seconds=0,
    )
    path = tmp_path / "manifest.json"
    path.write_text(manifest.model_dump_json())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for what is made, beside a model and a text."""
    write_moe(tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over it " * 30)
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def arguments(build: Path, *words: object) -> list[str]:
    """Return the command line that calibrates the model on the text."""
    here = build.parent
    prompt = [] if "--prompt" in words else ["--prompt", here / "text.txt"]
    model = [] if words and str(words[0]).endswith(".gguf") else [here / "model.gguf"]
    command = ["calibrate", *model, *words, *prompt, "--out", here / "made" / "pins.txt"]
    return [str(word) for word in (*command, "--build", build, "--log", here / "log.txt")]


def calls(build: Path) -> list[str]:
    file = build.parent / "bin" / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_list_and_record_say_what_the_trace_says(build: Path, folder: Path) -> None:
    assert main(arguments(build, "--trace", folder / "trace.npy")) == 0
    trace = read_trace(folder / "trace.npy", N_EXPERT)
    assert trace.selections.shape == (210, N_LAYER, N_EXPERT_USED)
    pins = read_pin_list(folder / "pins.txt", N_LAYER, N_EXPERT)
    assert pins == most_used(trace)
    record = json.loads((folder / "pins.txt.json").read_text())
    assert (record["tokens"], record["contexts"]) == (210, 1)
    uses = np.bincount(trace.selections[:, 0].ravel(), minlength=N_EXPERT)
    assert record["layers"][0] == {
        "layer": 0,
        "used": int((uses > 0).sum()),
        "top": int(uses.max()),
        "covered": pytest.approx(np.sort(uses)[-6:].sum() / uses.sum()),
    }


def test_the_tool_is_called_as_published_clients_call_it(build: Path, folder: Path) -> None:
    assert main(arguments(build, "--tokens", 5)) == 0
    (call,) = calls(build)
    assert f"-m {build.parent / 'model.gguf'} -f " in call
    assert " -n 5 -ngl 99 -ncmoe 99 -fa 1 " in call


def test_the_same_again_gives_the_same_bytes_and_is_not_run_twice(
    build: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(build))
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(arguments(build)) == 0
    assert "up to date" in capsys.readouterr().out
    assert len(calls(build)) == 1
    for path in folder.iterdir():
        path.unlink()
    main(arguments(build))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


def test_a_stale_list_is_named_and_made_again(
    build: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(build))
    (build.parent / "text.txt").write_text("a text of other words entirely, " * 40)
    capsys.readouterr()
    assert main(arguments(build)) == 0
    assert "is stale (made from another prompt)" in capsys.readouterr().err
    assert main(arguments(build)) == 0
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(("pinned", "most"), [("3", 3), ("25%", 4), ("0.5", 8), ("16", 16)])
def test_the_list_is_cut_to_the_pinned(build: Path, folder: Path, pinned: str, most: int) -> None:
    assert main(arguments(build, "--pinned", pinned)) == 0
    pins = read_pin_list(folder / "pins.txt")
    assert max(map(len, pins.layers)) == most
    stability = json.loads((folder / "pins.txt.json").read_text())["stability"]
    assert (stability["slots"], stability["chance"]) == (most, most / N_EXPERT)


def test_a_text_longer_than_the_context_is_read_in_pieces(build: Path, folder: Path) -> None:
    (build.parent / "text.txt").write_text("one three fifteen\n\n" * 2000)
    assert main(arguments(build, "--tokens", 7, "--trace", folder / "t.npy")) == 0
    record = json.loads((folder / "pins.txt.json").read_text())
    assert (record["tokens"], record["contexts"]) == (6007, 4)
    generated = [call.split(" -n ")[1].split()[0] for call in calls(build)]
    assert generated == ["7", "0", "0", "0", "7"]
    assert read_trace(folder / "t.npy").n_tokens == 6007


def test_the_parts_of_a_split_model_are_one_model(build: Path, folder: Path) -> None:
    first, *rest = write_split_moe(build.parent / "parts.gguf")
    assert main(arguments(build, first)) == 0
    before = json.loads((folder / "pins.txt.json").read_text())["origin"]["model"]
    rest[0].write_bytes(rest[0].read_bytes() + bytes(32))
    assert main(arguments(build, first)) == 0
    assert json.loads((folder / "pins.txt.json").read_text())["origin"]["model"] != before


def test_held_out_text_is_shown_beside_the_calibrations(
    build: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (build.parent / "other.txt").write_text("entirely different vocabulary everywhere " * 40)
    assert main(arguments(build, "--held-out", build.parent / "other.txt")) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rates = {tuple(line[:3]): line[3:] for line in lines if line[0] in ("pins", "lru", "pins+lru")}
    assert len(rates) == 12
    assert rates["pins+lru", "8", "4"]
    own, other, lost = (float(rate.rstrip("%")) for rate in rates["pins", "4", "4"])
    assert lost == pytest.approx(own - other, abs=0.11)
    assert lost > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pinned", "17"], "17 is 17 slots to pin, the model has 16 experts per layer"),
        (["--pinned", "0"], "0 is 0 slots to pin"),
        (["--pinned", "110%"], "110% is 18 slots to pin"),
        (["--pinned", "many"], "'many' is no number of slots"),
        (["--pinned", "nan%"], "'nan%' is no number of slots"),
        (["--tokens", "-1"], "-1 tokens cannot be generated"),
        (["--tokens", "2048"], "2048 tokens to generate leave no room in the context of 2048"),
        (["--prompt", "absent.txt"], "cannot read the text: No such file or directory (absent"),
        (["--prompt", "."], "cannot read the text: Is a directory"),
        (["--prompt", "empty.txt"], "the text is empty"),
        (["--prompt", "latin.txt"], "not UTF-8 text: byte 2"),
        (["--prompt", "short.txt"], "the prompt is too short: its 3 tokens select each of 16"),
        (["--prompt", "fail.txt"], "llama-router-trace failed (exit 1): error: out of luck"),
        (["--held-out", "absent.txt"], "cannot read the text: No such file"),
        (["dense.gguf"], "qwen3 model without experts (a dense model)"),
        (["absent.gguf"], "cannot read the model: No such file or directory"),
        (["short.txt.gguf"], "not a GGUF file"),
        (["--build", "absent.json"], "this build does not exist"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    build: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(build.parent)
    for name, text in (("empty", b" \n"), ("latin", b"et\xe9"), ("short", b"one two three")):
        Path(f"{name}.txt").write_bytes(text)
    Path("fail.txt").write_text("fail " * 50)
    Path("short.txt.gguf").write_text("nothing")
    write_dense(Path("dense.gguf"))
    line = arguments(build, *words)
    if "--build" in words:
        line = line[: line.index(str(build)) - 1] + line[line.index(str(build)) + 1 :]
    assert main(line) == 2
    assert message in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_an_unknown_row_is_named_with_the_nearest(
    build: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = arguments(build)
    line[1] = "pydoc-mow"
    assert main(line) == 2
    assert "pydoc-moe" in capsys.readouterr().err


def test_a_failed_row_hands_its_failure_on(build: Path, folder: Path) -> None:
    failure = {"row": "toy", "stage": "model", "what": "no space"}
    record = build.parent / "toy.full.json"
    record.write_text(json.dumps({"failure": failure}))
    line = arguments(build, "--trace", folder / "toy.npy", "--failure-as-outcome")
    line[1] = str(record)
    assert main(line) == 0
    for name in ("pins.txt", "pins.txt.json", "toy.npy"):
        found = json.loads((folder / name).read_text())["failure"]
        assert (found["row"], found["what"]) == ("toy", "no space")


def test_what_no_calibration_wrote_is_not_overwritten(
    build: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = folder / "pins.txt"
    pins.write_text("by hand")
    assert main(arguments(build)) != 0
    assert "no calibration left like this" in capsys.readouterr().err
    assert (pins.read_text(), calls(build)) == ("by hand", [])


def test_the_prompt_is_not_overwritten(
    build: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = build.parent / "text.txt"
    before = text.read_bytes()
    assert main([*arguments(build), "--out", str(text)]) != 0
    assert "two files have the same name" in capsys.readouterr().err
    assert text.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_and_stops_the_tool(
    build: Path, folder: Path, number: signal.Signals
) -> None:
    (build.parent / "text.txt").write_text("sleep " * 100)
    (build.parent / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tec", *arguments(build)],
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(build.parent / "tmp")},
    )
    deadline = time.monotonic() + 30
    while not calls(build) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert not list(folder.iterdir())
    assert {path.name for path in (build.parent / "tmp").iterdir()} <= {"tec-measure.lock"}


def test_the_built_in_prompt_is_long_enough_for_the_largest_models() -> None:
    """512 experts, top-10; four bytes are about a token, more of them in few vocabularies."""
    assert len(BUILT_IN.read_bytes()) / 4 * 10 / 512 > 32


def test_the_context_is_found_at_the_beginning_or_behind_a_long_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tec.verified.VERIFIED", tmp_path / "verified.json")
    path = write_moe(tmp_path / "model.gguf")
    assert find_model(str(path)).context == 2048
    monkeypatch.setattr(calibration_model, "_HEAD", 100)
    assert find_model(str(path)).context == 2048
