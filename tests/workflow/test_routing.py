"""Routing recorded, replayed and predicted: llama-expert-bench against the locality library."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_files import N_EXPERT, N_EXPERT_USED, N_LAYER, write_moe
from tec.locality import analyse
from tec.routing_trace import read_trace
from tec.rtrace import open_rtrace, to_selections

TEXT = "def head(tree): return tree.he if tree else None  # the head of the herd"
N_TOKENS = 60
CAPACITIES = (N_EXPERT_USED, 5, 11, N_EXPERT)

Bench = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe(tmp_path_factory.mktemp("models") / "plain.gguf")


@pytest.fixture
def bench(binaries: dict[str, Path], model: Path, tmp_path: Path) -> Bench:
    """Return a function that runs llama-expert-bench on prompts, one thread."""

    def run(prompts: Sequence[dict[str, Any]], *words: object) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        command = [binaries["llama-expert-bench"], "-m", model, "--prompts", file, "-t", 1]
        line = [str(word) for word in (*command, "-c", 512, *words)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    return run


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def text(n_tokens: int = N_TOKENS) -> tuple[list[dict[str, Any]], list[object]]:
    return [{"id": "text", "text": TEXT}], ["--forced", "-n", n_tokens]


def random_routing(path: Path, n_tokens: int = N_TOKENS) -> Path:
    """Write a trace of uniformly random selections in both layers."""
    generator = np.random.default_rng(3)
    scores = generator.random((n_tokens, N_LAYER, N_EXPERT))
    np.save(path, scores.argsort(axis=2)[:, :, :N_EXPERT_USED].astype("<i4"))
    return path


def test_predicted_hits_are_the_counted_ones_at_every_token(bench: Bench, tmp_path: Path) -> None:
    prompts, words = text()
    (off,) = lines(bench(prompts, *words, "--trace-out", tmp_path / "trace.npy"))
    assert off["decode_tokens"] == N_TOKENS == len(off["prompts"][0]["hits"])
    trace = read_trace(tmp_path / "trace.npy", N_EXPERT)
    assert trace.selections.shape == (N_TOKENS, N_LAYER, N_EXPERT_USED)
    hits = analyse(trace).hits["lru"].sum(axis=0)
    for capacity in CAPACITIES:
        (run,) = lines(bench(prompts, *words, "--expert-cache", capacity))
        assert run["hits"] == hits[capacity] == sum(run["prompts"][0]["hits"])
        assert run["hits"] + run["misses"] == N_TOKENS * N_LAYER * N_EXPERT_USED
        assert run["prompts"][0]["logits_hash"] == off["prompts"][0]["logits_hash"]


def test_both_recorders_agree(
    bench: Bench, binaries: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    prompts, words = text()
    lines(bench(prompts, *words, "--trace-out", tmp_path / "trace.npy"))
    command = [
        str(binaries["llama-router-trace"]),
        "-m",
        str(model),
        "-p",
        TEXT,
        "-n",
        "0",
        "-c",
        "512",
    ]
    one_by_one = ["-b", "1", "-ub", "1", "-t", "1"]
    out = tmp_path / "trace.rtrace"
    environment = {"ROUTER_TRACE_OUT": str(out)}
    subprocess.run([*command, *one_by_one], check=True, capture_output=True, env=environment)
    theirs = to_selections(open_rtrace(out, N_EXPERT), N_EXPERT_USED).selections[:N_TOKENS]
    mine = read_trace(tmp_path / "trace.npy", N_EXPERT).selections

    assert (np.sort(mine, axis=2) == np.sort(theirs, axis=2)).all()


def test_replayed_routing_is_the_one_given_in_every_arm(bench: Bench, tmp_path: Path) -> None:
    routing = random_routing(tmp_path / "random.npy")
    prompts, words = text()
    replay = [*words, "--replay", routing]
    (own,) = lines(bench(prompts, *words))
    (off,) = lines(bench(prompts, *replay, "--trace-out", tmp_path / "seen.npy"))
    assert (np.load(tmp_path / "seen.npy") == np.load(routing)).all()
    assert off["prompts"][0]["logits_hash"] != own["prompts"][0]["logits_hash"]
    hits = analyse(read_trace(routing, N_EXPERT)).hits["lru"].sum(axis=0)
    for capacity in CAPACITIES:
        (run,) = lines(bench(prompts, *replay, "--expert-cache", capacity))
        assert run["hits"] == hits[capacity]
        assert run["prompts"][0]["logits_hash"] == off["prompts"][0]["logits_hash"]


def test_replay_follows_one_prompt(bench: Bench, tmp_path: Path) -> None:
    routing = random_routing(tmp_path / "random.npy")
    prompts = [{"id": "one", "text": TEXT}, {"id": "two", "text": TEXT}]
    done = bench(prompts, "--forced", "-n", 8, "--replay", routing)
    assert done.returncode == 1
    assert "there are 2: set --first 1" in done.stderr
    lines(bench(prompts, "--forced", "-n", 8, "--replay", routing, "--first", 1))


def test_replaying_a_recorded_trace_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    prompts, words = text()
    (own,) = lines(bench(prompts, *words, "--trace-out", tmp_path / "trace.npy"))
    (again,) = lines(bench(prompts, *words, "--replay", tmp_path / "trace.npy"))
    assert again["prompts"][0]["logits_hash"] == own["prompts"][0]["logits_hash"]


def test_several_batches_in_one_process_are_those_of_processes_of_their_own(bench: Bench) -> None:
    prompts = [{"id": str(number), "text": TEXT[number:]} for number in range(4)]
    words = ["-n", 6, "--expert-cache", 2 * N_EXPERT_USED]
    together = lines(bench(prompts, *words, "--parallel", "1,2,4"))
    assert [run["parallel"] for run in together] == [1, 2, 4]
    for run in together:
        (alone,) = lines(bench(prompts, *words, "--parallel", run["parallel"]))
        assert (alone["hits"], alone["misses"]) == (run["hits"], run["misses"])
        for one, other in zip(alone["prompts"], run["prompts"], strict=True):
            assert one["tokens"] == other["tokens"]
    assert [run["misses"] > 0 for run in together] == [True, True, False]  # 4 x 2 of 4 slots


def test_only_the_first_prompts_are_decoded(bench: Bench) -> None:
    prompts = [{"id": str(number), "text": TEXT[number:]} for number in range(3)]
    (run,) = lines(bench(prompts, "-n", 4, "--first", 2))
    assert [prompt["id"] for prompt in run["prompts"]] == ["0", "1"]
    done = bench(prompts, "-n", 4, "--first", 4)
    assert done.returncode == 1
    assert "prompts.jsonl: has 3 prompts, not 4" in done.stderr


def test_tokens_stand_for_text(bench: Bench) -> None:
    (run,) = lines(bench([{"id": "given", "tokens": [1, 2, 3, 2, 1]}], "--forced"))
    assert run["decode_tokens"] == 5


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"id": "a", "tokens": [1, 258]}, "line 1: 258 is no token of the model's 258"),
        ({"id": "a", "tokens": [1, "b"]}, "is no token"),
        ({"id": "a", "tokens": []}, "line 1: no tokens"),
        ({"id": "a"}, "line 1: not an object with the string 'id'"),
    ],
)
def test_bad_prompts_are_refused(bench: Bench, prompt: dict[str, Any], message: str) -> None:
    done = bench([prompt], "--forced")
    assert done.returncode == 1
    assert message in done.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def with_header(path: Path, header: str, content: bytes = b"") -> None:
    size = len(header).to_bytes(2, "little")
    path.write_bytes(b"\x93NUMPY\x01\x00" + size + header.encode() + content)


def pad_header(path: Path) -> None:
    """Write a header as long as the format allows."""
    header = "{'descr': '<i4', 'fortran_order': False, 'shape': (60, 2, 2), }"
    with_header(path, header + "x" + " " * (65_000 - len(header)), bytes(960))


def huge(path: Path) -> None:
    """Write a header whose product overflows 64 bits to 0."""
    with_header(
        path, "{'descr': '<i4', 'fortran_order': False, 'shape': (68719476736, 16384, 16384), }"
    )


def rewrite(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda path: np.save(path, change(np.load(path)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "956 bytes of routing, not those of 60 steps, 2 layers and 2 experts"),
        (rewrite(lambda t: t[:, :1]), "1 layers and 2 experts per token does not fit the model"),
        (rewrite(lambda t: t + 15), "routing of token 0, layer 0: not 2 different experts"),
        (rewrite(lambda t: t * 0), "routing of token 0, layer 0: not 2 different experts"),
        (rewrite(lambda t: t.astype("<i8")), "is no routing trace"),
        (rewrite(np.asfortranarray), "is no routing trace"),
        (rewrite(lambda t: t[:0]), "0 bytes of routing, not those of 0 steps"),
        (rewrite(lambda t: t[:9]), "it has 9 steps, 60 tokens are to be decoded"),
        (pad_header, "is no routing trace"),
        (huge, "0 bytes of routing, not those of 68719476736 steps"),
        (lambda path: path.write_text("not a trace"), "is no .npy file"),
        (Path.unlink, "cannot read the routing trace"),
    ],
)
def test_bad_traces_are_refused(
    bench: Bench, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    routing = random_routing(tmp_path / "random.npy")
    damage(routing)
    prompts, words = text()
    done = bench(prompts, *words, "--replay", routing)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ("--replay", "x.npy"),
        ("--forced", "--parallel", "2"),
        ("--parallel", "1,0"),
        ("--parallel", "4", "-b", "2"),
        ("--trace-out", "same", "-o", "same"),
        ("--trace-out", "one-token.npy", "-n", "1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(bench: Bench, words: tuple[str, ...]) -> None:
    done = bench([{"id": "a", "text": TEXT}], "-n", 4, *words)
    assert done.returncode == 1
    assert "error: --" in done.stderr


def test_trace_of_a_run_that_fails_is_not_left_behind(bench: Bench, tmp_path: Path) -> None:
    prompts, words = text()
    out = tmp_path / "trace.npy"
    done = bench(prompts, *words, "--trace-out", out, "--expert-cache", 1)
    assert done.returncode == 1
    assert list(tmp_path.glob("trace.npy*")) == []


def test_few_experts_are_warned_about(bench: Bench) -> None:
    prompts, words = text()
    done = bench(prompts, *words, "--expert-cache", N_EXPERT_USED)
    (run,) = lines(done)
    assert "preconditions not met: 16 experts per layer" in run["status"]["warning"]
    (line,) = [text for text in done.stderr.splitlines() if "expert cache: engaged" in text]
    assert run["status"]["warning"] in line
    (off,) = lines(bench(prompts, *words))
    assert off["status"]["warning"] is None
