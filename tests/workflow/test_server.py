"""The cache in `llama-server`: slots, a draft model, context shift, saved and cancelled work.

What is compared bit by bit was computed in the same batches: several prompts are sent in one
request, whose tasks a server that is idle takes up together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from llama_server import Server, serve
from programs import run_program
from tec.build import Manifest, load_manifest
from tec.gguf_file import Geometry, read_geometry
from tec.paths import ROOT, build_server_manifest

MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
PROMPTS = ROOT / "configs" / "prompts" / "pydoc-heldout.jsonl"

N_SLOTS = 4
N_GEN = 24
N_CHARACTERS = 300
"""Of a prompt: enough for routing that differs."""

Start = Callable[..., AbstractContextManager[Server]]
Answer = tuple[str, list[list[float]]]


@pytest.fixture(scope="session")
def program(build_manifest: Manifest) -> Path:
    """The server of the same patches as the libraries beside it."""
    made = build_server_manifest("cpu")
    if not made.exists() or load_manifest(made).series_hash != build_manifest.series_hash:
        pytest.skip("llama-server is not built from these patches: tec build cpu --server")
    return build_manifest.bin_dir / "llama-server"


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    return read_geometry(MODEL)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    lines = PROMPTS.read_text().splitlines()[: 2 * N_SLOTS]
    return [json.loads(line)["text"][:N_CHARACTERS] for line in lines]


@pytest.fixture(scope="session")
def start(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return a function that serves the shipped model with a cache of so many slots."""
    folder, numbers = tmp_path_factory.mktemp("server"), count()

    def begin(slots: object, *arguments: object) -> AbstractContextManager[Server]:
        words = ("-m", MODEL, "-t", 2, "--expert-cache", slots, *arguments)
        return serve(program, words, folder / f"{next(numbers)}.log")

    return begin


def complete(server: Server, prompt: object, **settings: object) -> Any:
    """Return the answer to a greedy completion that computes all of its prompt."""
    greedy = {"temperature": 0, "n_predict": N_GEN, "ignore_eos": True, "cache_prompt": False}
    return server.ask("/completion", prompt=prompt, **{**greedy, **settings})


def heard(answer: Any) -> Answer:
    """Return a completion's text and the log-probabilities of each token's alternatives."""
    tokens = answer["completion_probabilities"]
    return answer["content"], [[one["logprob"] for one in t["top_logprobs"]] for t in tokens]


def together(server: Server, prompts: list[str]) -> list[Answer]:
    """Return what was completed for prompts that were sent in one request, in their order."""
    answers = complete(server, prompts, n_probs=4)
    return [heard(answer) for answer in sorted(answers, key=lambda answer: int(answer["index"]))]


@pytest.fixture(scope="session")
def reference(start: Start, prompts: list[str]) -> list[Answer]:
    """What several slots complete without a cache."""
    with start("off", "-np", N_SLOTS, "-c", 4096) as server:
        answers = together(server, prompts)
    assert "expert cache" not in server.log()
    return answers


@pytest.mark.parametrize("share", [1, 2, 5, 8])
def test_slots_are_bitwise_those_of_off(
    start: Start, prompts: list[str], reference: list[Answer], geometry: Geometry, share: int
) -> None:
    """Steps of so many tokens fit in the cache: one, two, and as many as there are slots."""
    capacity = share * geometry.n_expert_used
    with start(capacity, "-np", N_SLOTS, "-c", 4096) as server:
        assert together(server, prompts) == reference
    hits, misses = server.totals()
    if share >= N_SLOTS:  # every token that was generated, save the first of each prompt
        tokens = len(prompts) * (N_GEN - 1)
        assert hits + misses >= tokens * geometry.n_moe_layers * geometry.n_expert_used
    assert (misses == 0) == (capacity == geometry.n_expert)


def drafting(drafted: int) -> tuple[object, ...]:
    """Return the arguments for a draft model, the same one, that proposes so many tokens."""
    draft = ("-md", MODEL, "--spec-type", "draft-simple", "--spec-draft-p-min", 0)
    return (*draft, "--spec-draft-n-max", drafted, "-np", 1, "-c", 1024)


def drawn(server: Server, prompts: list[str], temperature: float) -> list[Any]:
    """Return the answers to some of the prompts, one after the other."""
    return [complete(server, p, temperature=temperature, seed=7) for p in prompts[:3]]


@pytest.fixture(scope="session")
def speculated(start: Start, prompts: list[str]) -> Callable[[int, float], list[str]]:
    """Return a function that gives what is completed with a draft model and without a cache."""
    known: dict[tuple[int, float], list[str]] = {}

    def texts(drafted: int, temperature: float) -> list[str]:
        key = (drafted, temperature)
        if key not in known:
            with start("off", *drafting(drafted)) as server:
                known[key] = [one["content"] for one in drawn(server, prompts, temperature)]
        return known[key]

    return texts


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(("share", "drafted"), [(1, 4), (2, 1), (5, 4), (8, 7), (8, 15)])
def test_drafts_are_verified_as_with_off(
    start: Start,
    prompts: list[str],
    speculated: Callable[[int, float], list[str]],
    geometry: Geometry,
    share: int,
    drafted: int,
    temperature: float,
) -> None:
    """Steps of up to 16 tokens, some in the cache and some past it, some of them rejected."""
    with start(share * geometry.n_expert_used, *drafting(drafted)) as server:
        answers = drawn(server, prompts, temperature)
    assert [answer["content"] for answer in answers] == speculated(drafted, temperature)
    proposed = sum(answer["timings"]["draft_n"] for answer in answers)
    accepted = sum(answer["timings"]["draft_n_accepted"] for answer in answers)
    assert 0 < accepted <= proposed
    assert temperature == 0 or accepted < proposed
    hits, misses = server.totals()  # of one context: the draft model's has no cache
    assert hits + misses > 0
    assert server.log().count("expert cache: engaged") == 1


@pytest.mark.parametrize("share", [1, 5])
def test_shifted_context_is_bitwise_that_of_off(
    start: Start, prompts: list[str], geometry: Geometry, share: int
) -> None:
    def past_the_end(slots: object) -> Answer:
        with start(slots, "-np", 1, "-c", 256, "--context-shift") as server:
            answer = complete(server, prompts[0], n_predict=320, n_probs=2)
        assert answer["truncated"]
        assert answer["tokens_predicted"] == 320
        return heard(answer)

    assert past_the_end(share * geometry.n_expert_used) == past_the_end("off")


def test_saved_and_reused_prompts_are_bitwise_those_of_off(
    start: Start, prompts: list[str], geometry: Geometry, tmp_path: Path
) -> None:
    def kept(slots: object) -> list[tuple[Answer, int]]:
        with start(slots, "-np", 2, "-c", 2048, "--slot-save-path", tmp_path) as server:

            def use(prompt: str) -> Any:
                return complete(server, prompt, cache_prompt=True, id_slot=0, n_probs=4)

            answers = [use(prompts[0])]
            server.ask("/slots/0?action=save", filename="slot.bin")
            answers += [use(prompts[1]), use(prompts[1] + " and")]
            server.ask("/slots/0?action=restore", filename="slot.bin")
            answers.append(use(prompts[0] + answers[0]["content"]))
        return [(heard(answer), answer["timings"]["cache_n"]) for answer in answers]

    off = kept("off")
    assert [reused > 0 for _, reused in off] == [False, False, True, True]
    assert kept(2 * geometry.n_expert_used) == off


def test_cancelled_requests_leave_nothing(
    start: Start, prompts: list[str], geometry: Geometry
) -> None:
    """What follows them is, bit by bit, what a server computes that had none."""

    def after(slots: object, cancelled: list[str]) -> list[Answer]:
        with start(slots, "-np", N_SLOTS, "-c", 4096) as server:
            for prompt in cancelled:
                server.leave("/completion", prompt=prompt, n_predict=700, ignore_eos=True)
            server.wait_until_idle()
            answers = [complete(server, prompt, n_probs=4) for prompt in prompts[:2]]
        assert server.log().count("cancel task") == len(cancelled)
        return [heard(answer) for answer in answers]

    assert after(5 * geometry.n_expert_used, prompts) == after("off", [])


def test_browsers_are_told_that_there_is_no_chat_page(start: Start) -> None:
    with start("off") as server:
        assert "There is no chat page here" in server.page("/")


def test_too_few_slots_stop_the_server(program: Path, geometry: Geometry) -> None:
    few = geometry.n_expert_used - 1
    command = [program, "-m", MODEL, "--expert-cache", few, "--port", 0]
    done = run_program(command, 60)
    assert done.returncode != 0
    wanted = f"capacity {few} is below the {geometry.n_expert_used} experts that a token uses"
    assert wanted in done.stderr + done.stdout
