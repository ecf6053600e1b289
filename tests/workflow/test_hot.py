"""The policy hot: chosen experts in slots, the others computed by the CPU.

Its outputs are those of the cache off up to the order of sums, and to the bit where every selected
expert is in a slot.
"""

from __future__ import annotations

import json
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest

from hot_model import simulate
from shipped_decode import (
    MODEL,
    PLAIN,
    PROMPTS,
    Attempt,
    Run,
    assert_agree,
    assert_refused,
    decode_with,
    hashes,
)
from tec.config import load_study
from tec.gguf_file import Geometry, read_geometry
from tec.paths import ROOT
from tec.perplexity import (
    Divergence,
    divergence_command,
    parse_divergence,
    parse_reference,
    reference_command,
)
from tec.process import run_tool
from tec.routing_trace import read_trace

N_GEN = 12
BYPASS = "LLAMA_MOE_HOT_PP_BYPASS_N_TOKENS"


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    return read_geometry(MODEL)


@pytest.fixture(scope="module")
def decode(attempt: Attempt) -> Run:
    return decode_with(attempt, N_GEN)


@pytest.mark.parametrize("slots", [8, 11, 32])
def test_tokens_are_those_of_off(decode: Run, slots: int) -> None:
    hot = decode("--moe-hot-k", slots, "--moe-hot-rebalance-interval", 5, first=4)
    assert hot["misses"] > 0
    assert_agree(hot, decode(first=4), N_GEN)


def test_all_experts_in_slots_are_bitwise_those_of_off(decode: Run, geometry: Geometry) -> None:
    hot = decode("--moe-hot-k", geometry.n_expert)
    assert hot["misses"] == hot["computed"] == hot["bytes_moved"] == 0
    assert hashes(hot) == hashes(decode())


def pin_list(path: Path, layers: list[list[int]]) -> Path:
    """Write a pin list of the shipped model; its order is that in which experts get slots."""
    head = ["# EXPERT_CACHE_PIN_LIST v1", f"n_layer {len(layers)}", "n_expert 64"]
    lines = [f"layer {i}: {' '.join(map(str, experts))}" for i, experts in enumerate(layers)]
    path.write_text("\n".join([*head, *lines]) + "\n")
    return path


def test_steps_without_a_miss_are_bitwise_those_of_off(
    decode: Run, geometry: Geometry, tmp_path: Path
) -> None:
    """Of each layer the expert has no slot whose first use is the latest."""
    trace = tmp_path / "trace.npy"
    forced = ("--forced", "-n", 60)
    (off,) = decode(*forced, "--trace-out", trace)["prompts"]
    layers = []
    for selections in read_trace(trace, geometry.n_expert).selections.transpose(1, 0, 2):
        used = list(dict.fromkeys(selections.ravel().tolist()))
        layers.append([*used, *(e for e in range(geometry.n_expert) if e not in used)][:-1])
    listed = ("--expert-cache-pin-list", pin_list(tmp_path / "pins.txt", layers))
    slots = ("--moe-hot-k", geometry.n_expert - 2, "--expert-cache-pinned", 0)
    (hot,) = decode(*slots, *listed, *forced)["prompts"]
    n = len(list(takewhile(lambda misses: misses == 0, hot["misses"])))
    assert n > 10
    assert hot["logits_hash"][:n] == off["logits_hash"][:n]


@pytest.mark.parametrize(("slots", "interval"), [(8, 1), (8, 20), (24, 7), (40, 60), (62, 30)])
def test_hits_and_copies_are_those_of_the_policy(
    decode: Run, geometry: Geometry, tmp_path: Path, slots: int, interval: int
) -> None:
    """Token by token, with the routing of the same run."""
    trace = tmp_path / "trace.npy"
    hot = ("--moe-hot-k", slots, "--moe-hot-rebalance-interval", interval)
    run = decode(*hot, "--forced", "-n", 130, "--trace-out", trace)
    selections = read_trace(trace, geometry.n_expert).selections
    expected = simulate(selections, geometry.n_expert, slots, interval)
    assert run["prompts"][0]["hits"] == expected.hits
    assert [layer["copied"] for layer in run["layers"]] == expected.copied
    assert run["computed"] == run["misses"] == selections.size - sum(expected.hits)
    assert run["bytes_moved"] == sum(
        n * layer["expert_bytes"] for n, layer in zip(expected.copied, run["layers"], strict=True)
    )


def test_long_prompts_neither_use_the_slots_nor_count(
    decode: Run, geometry: Geometry, tmp_path: Path
) -> None:
    """The choice after a prompt is made from the tokens behind it."""
    hot = ("--moe-hot-k", 24, "--moe-hot-rebalance-interval", 5, "-n", 40)
    trace = tmp_path / "trace.npy"
    past = decode(*hot, "--trace-out", trace, **{BYPASS: "4"})
    assert past["prompt_tokens"] > 4
    assert past["prompt_hits"] == past["prompt_misses"] == 0
    selections = read_trace(trace, geometry.n_expert).selections
    expected = simulate(selections, geometry.n_expert, 24, 5)
    assert past["prompts"][0]["hits"][1:] == expected.hits
    counted = decode(*hot, **{BYPASS: "4096"})
    asked = counted["prompt_tokens"] * geometry.n_moe_layers * geometry.n_expert_used
    # of the last layer only the rows with outputs are computed
    rows = (geometry.n_moe_layers - 1) * counted["prompt_tokens"] + 1
    assert counted["prompt_hits"] + counted["prompt_misses"] == rows * geometry.n_expert_used
    assert rows * geometry.n_expert_used < asked


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sixteen short prompts."""
    path = tmp_path_factory.mktemp("prompts") / "sixteen.jsonl"
    texts = [json.loads(line)["text"] for line in PROMPTS.read_text().splitlines()]
    starts = [text[begin : begin + 40] for begin in (0, 100) for text in texts][:16]
    path.write_text("".join(json.dumps({"id": t, "text": t}) + "\n" for t in starts))
    return path


@pytest.mark.parametrize("slots", [8, 32])
def test_batches_of_up_to_16_are_those_of_off(
    decode: Run, geometry: Geometry, sixteen: Path, slots: int
) -> None:
    selections = geometry.n_moe_layers * geometry.n_expert_used
    for parallel in (2, 5, 16):
        words = ("--prompts", sixteen, "--parallel", parallel, "-n", 6)
        off = decode(*words, first=16)
        hot = decode(*words, "--moe-hot-k", slots, first=16)
        assert hot["hits"] + hot["misses"] == hot["decode_tokens"] * selections
        assert_agree(hot, off, N_GEN)


def test_threads_do_not_change_the_bits(decode: Run) -> None:
    """Every sum has one order, whoever computes it."""
    hot = ("--moe-hot-k", 8)
    one, two = (hashes(decode(*hot, "-t", threads)) for threads in (1, 2))
    assert one == two


def test_perplexity_and_divergence_of_the_fewest_slots(
    binaries: dict[str, Path], geometry: Geometry, tmp_path: Path
) -> None:
    binary, base, log = str(binaries["llama-perplexity"]), str(tmp_path / "base"), tmp_path / "log"
    text = str(ROOT / load_study("demo").parity.text)
    off = reference_command(binary, str(MODEL), text, 1, base, 1, (PLAIN,))
    reference = parse_reference(run_tool(off, {}, log))
    fewest = (PLAIN, "--moe-hot-k", str(geometry.n_expert_used))
    hot = divergence_command(binary, str(MODEL), base, 1, fewest)
    found = Divergence.model_validate(parse_divergence(run_tool(hot, {}, log)))
    assert found.ppl == pytest.approx(reference["ppl"], rel=1e-3)
    assert found.kl_mean < 1e-3


def test_operations_of_the_cpu_compute_what_they_promise(binaries: dict[str, Path]) -> None:
    """Types of weights, activations and arrangements against sums in double precision."""
    program = binaries["test-expert-host"]
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(": ok\n") == 7  # and the mailbox


def test_status_says_what_the_policy_does(decode: Run) -> None:
    run = decode("--expert-cache", 16, "--expert-cache-policy", "hot")
    status = run["status"]
    assert (status["engaged"], status["policy"], status["capacity"]) == (True, "hot", 16)
    assert (status["hot_interval"], status["batch_limit"]) == (16, 32)
    assert "CPU" in status["miss_cost"]
    assert status["misses"] == run["misses"] + run["prompt_misses"] == status["computed_by_cpu"]
    assert status["hits"] == run["hits"] + run["prompt_hits"]


def test_variables_are_those_of_the_published_cache(decode: Run) -> None:
    named = decode(
        LLAMA_ARG_MOE_HOT_K="16", LLAMA_ARG_MOE_HOT_REBALANCE_INTERVAL="5", **{BYPASS: "7"}
    )
    status = named["status"]
    assert (status["policy"], status["capacity"]) == ("hot", 17)  # one for zeros
    assert status["experts_in_slots"] == 16
    assert (status["hot_interval"], status["batch_limit"]) == (5, 7)
    assert decode("--moe-hot-k", 0)["status"]["reason"] == "off"
    assert decode("--expert-cache", "off", LLAMA_ARG_MOE_HOT_K="16")["status"]["reason"] == "off"
    assert decode(EXPERT_CACHE_ENABLE="0", LLAMA_ARG_MOE_HOT_K="16")["status"]["reason"] == "off"


def test_pinned_experts_keep_their_slots(decode: Run, geometry: Geometry, tmp_path: Path) -> None:
    pins = pin_list(tmp_path / "pins.txt", [[60, 61, 62, 63]] * geometry.n_layer)
    hot = ("--moe-hot-k", 12, "--moe-hot-rebalance-interval", 5)
    pinned = decode(*hot, "--expert-cache-pin-list", pins, "--expert-cache-pinned", 4, first=4)
    assert pinned["status"]["pinned"] == 4
    assert_agree(pinned, decode(first=4), N_GEN)
    assert pinned["hits"] != decode(*hot, first=4)["hits"]


def test_repacked_experts_are_refused_with_the_remedy(
    attempt: Attempt,
) -> None:
    words = ("--prompts", PROMPTS, "--first", 1, "-n", 2, "--moe-hot-k", 16)
    done = attempt("llama-expert-bench", *words)
    status = json.loads(done.stdout)["status"]
    if status["engaged"]:
        pytest.skip("this CPU has no repacked layout for the shipped model's experts")
    assert "--no-repack" in status["reason"]


def test_llama_bench_has_the_policy_as_axis_and_columns(
    attempt: Attempt,
) -> None:
    words = ("-r", 1, "-p", 0, "-n", 8, "-o", "jsonl", "--repack", 0, "--moe-hot-k", "0,16,64")
    done = attempt("llama-bench", *words, LLAMA_ARG_MOE_HOT_REBALANCE_INTERVAL="4")
    off, some, full = map(json.loads, done.stdout.splitlines())
    assert (off["expert_cache"], some["expert_cache"], full["expert_cache"]) == ("off", "17", "65")
    assert (some["expert_cache_policy"], some["moe_hot_rebalance_interval"]) == ("hot", 4)
    assert some["expert_cache_computed"] == some["expert_cache_misses"] > 0
    assert full["expert_cache_computed"] == 0 < full["expert_cache_hits"]


@pytest.mark.parametrize("tool", ["llama-expert-bench", "llama-bench"])
@pytest.mark.parametrize(
    ("arguments", "variables", "complaint"),
    [
        (("--moe-hot-k", "many"), {}, "'many'"),
        (("--moe-hot-k", "-3"), {}, "'-3'"),
        (("--moe-hot-k", "7"), {}, "choose 9 to 64"),
        (("--moe-hot-k", "16", "--moe-hot-rebalance-interval", "0"), {}, "'0'"),
        (("--moe-hot-k", "16", "--expert-cache-policy", "lru"), {}, "'lru'"),
        (("--moe-hot-k", "16", "--expert-cache", "12"), {}, "'12'"),
        ((), {"LLAMA_ARG_MOE_HOT_K": "4x"}, "LLAMA_ARG_MOE_HOT_K"),
        (
            ("--moe-hot-k", "16"),
            {"LLAMA_ARG_MOE_HOT_REBALANCE_INTERVAL": "x"},
            "LLAMA_ARG_MOE_HOT_REBALANCE_INTERVAL",
        ),
        (("--moe-hot-k", "16"), {BYPASS: "some"}, BYPASS),
        (("--moe-hot-k", "16"), {BYPASS: "0"}, BYPASS),
    ],
)
def test_malformed_settings_stop_the_program(
    attempt: Attempt,
    tool: str,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    complaint: str,
) -> None:
    assert_refused(attempt, tool, arguments, complaint, **variables)
