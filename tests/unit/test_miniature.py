from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from fake_tools import install
from tec import miniature, miniature_check, miniature_key
from tec.build import Manifest
from tec.config import Row
from tec.errors import TecError
from tec.files import sha256_file
from tec.locality import summarise
from tec.miniature_file import list_tensors, write_keys
from tec.miniature_groups import GROUPS, checked_text, learn, token_groups
from tec.miniature_key import recipe_key, recipe_settings
from tec.miniature_weights import Tensor, embed, generate, stored_as
from tec.process import Finished
from tec.records import Process
from tec.routing_summary import RoutingSummary
from tec.routing_trace import RoutingTrace

KEYS = {"block_count": 2, "expert_count": 8, "expert_used_count": 2}
SHAPE = {"arch": "llama", "n_layer": 2, "n_moe_layers": 2, "n_expert": 8, "n_expert_used": 2}


def row(shape: Any = SHAPE, **recipe: Any) -> Row:
    return Row.model_validate(
        {
            "name": "tiny",
            "title": "Tiny",
            "source": {"kind": "hub", "repo": "acme/tiny", "files": ["tiny.gguf"]},
            "shape": shape,
            "prompts": "configs/prompts/pydoc-heldout.jsonl",
            "miniature": {"keys": KEYS, "quantize": "Q8_0", **recipe},
        }
    )


def tiny(**changes: Any) -> Row:
    return row().model_copy(update=changes)


@pytest.fixture
def build(tmp_path: Path) -> Manifest:
    return install(tmp_path / "bin")


def routing(next_token: float, independent: float | None = None) -> RoutingSummary:
    return RoutingSummary(
        tokens=100,
        overlap_8=0.9,
        overlap_8_uniform=0.5,
        median_reuse=2,
        next_token=next_token,
        next_token_independent=independent,
        effective_experts=5,
    )


@pytest.mark.parametrize(
    "changed",
    [
        row(seed=2),
        row(quantize="Q4_0"),
        row(without=["scale$"]),
        row(tensor_types={"_exps": "q4_0"}),
        row(keys={**KEYS, "block_count": 3}),
        row(shape={**SHAPE, "arch": "gemma4"}),
        tiny(title="Another"),
    ],
)
def test_whatever_decides_the_bytes_changes_the_key(build: Manifest, changed: Row) -> None:
    assert recipe_settings(changed) != recipe_settings(row())
    assert recipe_key(changed, build) != recipe_key(row(), build)


def test_other_prompts_change_the_key(build: Manifest, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("{}\n")
    assert recipe_settings(tiny(prompts=prompts)) != recipe_settings(row())
    assert recipe_key(tiny(prompts=prompts), build) != recipe_key(row(), build)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("digest", "0" * 64),
        ("series_hash", "0" * 64),
        ("compiler", "another 1.0"),
        ("cuda", "another 1.0"),
        ("cmake_args", ["-DGGML_NATIVE=OFF"]),
    ],
)
def test_another_engine_changes_the_key(build: Manifest, field: str, value: object) -> None:
    other = build.model_copy(update={field: value})
    assert recipe_key(row(), other) != recipe_key(row(), build)


def test_what_decides_nothing_keeps_the_key(build: Manifest) -> None:
    arguments = [*build.cmake_args, "-DCMAKE_CUDA_COMPILER=/elsewhere/nvcc"]
    update = {"seconds": 99.0, "bin_dir": Path("/elsewhere"), "cmake_args": arguments}
    other = build.model_copy(update=update)
    source = row().source
    assert source is not None
    elsewhere = {"repo": "acme/other", "files": ["other.gguf"]}
    changed = tiny(source=source.model_copy(update=elsewhere))
    assert recipe_key(changed, other) == recipe_key(row(), build)


@pytest.fixture
def settings_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that hashes the row's settings with one attribute of the module changed."""

    def run(name: str, value: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(miniature_key, name, value)
            patch.setattr(miniature_key, "_shared", miniature_key._shared.__wrapped__)
            return recipe_settings(row())

    return run


@pytest.mark.parametrize("name", ["TOKENIZER", "TEXT"])
def test_another_tokenizer_or_text_changes_the_settings(
    settings_with: Any, tmp_path: Path, name: str
) -> None:
    other, missing = tmp_path / "other", tmp_path / "missing"
    other.write_text("other")
    found = {settings_with(name, other), settings_with(name, missing), recipe_settings(row())}
    assert len(found) == 3


def test_another_version_of_a_library_changes_the_settings(settings_with: Any) -> None:
    for library in ("numpy", "gguf"):
        found = settings_with(
            "version", lambda name, new=library: "9" if name == new else version(name)
        )
        assert found != recipe_settings(row())


@pytest.mark.parametrize(
    "module",
    [
        *("miniature_weights", "miniature_groups", "miniature_file"),
        *("locality", "locality_kernels", "rtrace"),
    ],
)
def test_an_edit_of_what_makes_or_measures_it_changes_the_settings(
    settings_with: Any, module: str
) -> None:
    def edited(path: Path) -> str:
        return "edited" if path.stem == module else sha256_file(path)

    assert settings_with("sha256_file", edited) != recipe_settings(row())


def test_a_row_without_a_recipe_has_settings_too() -> None:
    found = [tiny(miniature=None), tiny(shape=None), tiny(prompts=Path("missing.jsonl")), row()]
    assert len({recipe_settings(one) for one in found}) == len(found)


def test_nothing_is_beside_the_miniature_before_it_is_complete(
    build: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run leaves what it wrote where the next one looks."""
    before: list[str] = []

    def quantize(_: object, source: Path, target: Path, *__: object) -> None:
        target.write_bytes(source.read_bytes())

    def check(_: object, path: Path, *__: object) -> RoutingSummary:
        before.extend(file.name for file in tmp_path.rglob("*.gguf") if file.parent == tmp_path)
        assert path.parent == tmp_path / ".tiny"
        return routing(0.4)

    tensors = [
        Tensor("token_embd.weight", (32, 4)),
        Tensor("blk.0.ffn_up_exps.weight", (32, 32, 8)),
    ]
    monkeypatch.setattr(miniature, "list_tensors", lambda *_: tensors)
    monkeypatch.setattr(miniature, "token_groups", lambda *_: np.arange(4))
    monkeypatch.setattr(miniature, "quantize", quantize)
    monkeypatch.setattr(miniature, "check", check)
    path = miniature.make(row(), build, tmp_path)
    assert before == []
    statistics = miniature.routing_file(path).read_text()
    assert RoutingSummary.model_validate_json(statistics) == routing(0.4)
    assert not (tmp_path / ".tiny").exists()
    left = {file.name for file in tmp_path.iterdir()} - {"bin", ".tiny.lock"}
    assert left == {path.name, miniature.routing_file(path).name}


def test_skew_alone_reuses_no_more_than_independent_tokens() -> None:
    """Of 8 experts half are wanted: in blocks, by turns, or at random; as often each."""
    blocks = np.repeat(np.arange(4, dtype=np.int32), 500)
    shuffled = np.random.default_rng(1).permutation(blocks)
    by_turns = np.tile(np.arange(4, dtype=np.int32), 500)
    found = [
        summarise(RoutingTrace(ids.reshape(-1, 1, 1), 8)) for ids in (blocks, shuffled, by_turns)
    ]
    assert [one.next_token_independent for one in found] == [pytest.approx(0.25)] * 3
    expected = np.array([1, 0.25, 0])
    assert [one.next_token for one in found] == pytest.approx(expected, abs=0.05)


def test_independent_tokens_are_compared_layer_by_layer() -> None:
    """One layer always selects the same two experts, the other all four pairs of neighbours."""
    fixed = np.tile(np.array([[0, 1]], dtype=np.int32), (100, 1))
    first = np.tile(np.arange(4, dtype=np.int32), 25)
    turning = np.stack([first, (first + 1) % 4], axis=1)
    found = summarise(RoutingTrace(np.stack([fixed, turning], axis=1), 4))
    assert found.next_token_independent == pytest.approx((1 + 0.5) / 2)


def test_records_from_before_the_comparison_load() -> None:
    earlier = routing(0.4).model_dump_json(exclude={"next_token_independent"})
    assert RoutingSummary.model_validate_json(earlier) == routing(0.4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tiny(miniature=None), "row tiny has no miniature"),
        (tiny(shape=None), "row tiny has no shape"),
        (row(keys={**KEYS, "expert_count": 16}), "has expert_count 16, the row has 8"),
        (row(keys={"expert_count": 8}), "has expert_used_count None, the row has 2"),
    ],
)
def test_a_recipe_that_is_not_the_row_is_refused(
    build: Manifest, tmp_path: Path, wrong: Row, message: str
) -> None:
    with pytest.raises(TecError, match=message):
        miniature.make(wrong, build, tmp_path)


def test_a_type_for_no_tensor_is_refused(
    build: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [Tensor("blk.0.ffn_up_exps.weight", (32, 32, 8))]
    monkeypatch.setattr(miniature, "list_tensors", lambda *_: tensors)
    with pytest.raises(TecError, match="fits tensor_types 'ffn_up_exp_'") as failure:
        miniature.make(row(tensor_types={"ffn_up_exp_": "q4_0"}), build, tmp_path / "made")
    assert failure.value.hint == "did you mean 'ffn_up_exps.weight'?"
    assert not list((tmp_path / "made").glob("*.gguf"))


def test_the_keys_have_the_types_converters_give_them(tmp_path: Path) -> None:
    keys = {"count": 3, "share": 0.5, "on": True, "name": "x", "per_layer": [0, 7]}
    recipe = row(keys={**KEYS, **keys}).miniature
    assert recipe is not None
    write_keys(row(), "llama", recipe, tmp_path / "keys.gguf")
    fields = GGUFReader(tmp_path / "keys.gguf").fields
    found = {key: [kind.name for kind in fields[f"llama.{key}"].types] for key in keys}
    assert found == {
        "count": ["UINT32"],
        "share": ["FLOAT32"],
        "on": ["BOOL"],
        "name": ["STRING"],
        "per_layer": ["ARRAY", "INT32"],
    }
    assert fields["general.architecture"].contents() == "llama"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 4096
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_the_tool_is_asked_with_every_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Manifest
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], *_: Any) -> Finished:
        asked.append(command)
        printed = json.dumps({"name": "blk.0.ssm_a", "shape": [1, 4]}) + "\n"
        return Finished(printed, "", Process(exit_code=0, wall=0, peak_rss=0))

    monkeypatch.setattr("tec.miniature_file.run_tool", run)
    recipe = row(without=["scale$", "bias$"]).miniature
    assert recipe is not None
    tensors = list_tensors(recipe, tmp_path / "keys.gguf", build, tmp_path / "log")
    assert tensors == [Tensor("blk.0.ssm_a", (1, 4))]
    assert asked[0][3:] == ["--without", "scale$", "--without", "bias$"]


EXPERTS = Tensor("blk.0.ffn_up_exps.weight", (64, 48, 8))


def test_weights_depend_on_the_seed_and_the_name_alone() -> None:
    first = generate(EXPERTS, 1)
    assert np.array_equal(first, generate(EXPERTS, 1))
    assert not np.array_equal(first, generate(EXPERTS, 2))
    other = Tensor("blk.1.ffn_up_exps.weight", EXPERTS.shape)
    assert not np.array_equal(first, generate(other, 1))


@pytest.mark.parametrize(
    ("name", "shape", "stored"),
    [
        ("blk.0.ffn_up_exps.weight", (64, 48, 8), np.float16),
        ("blk.0.attn_q.weight", (64, 64), np.float16),
        ("blk.0.ffn_gate_inp.weight", (64, 8), np.float32),
        ("blk.0.ffn_gate_inp_shexp.weight", (64,), np.float32),
        ("blk.0.ffn_up_exps.bias", (48, 8), np.float32),
        ("blk.0.ffn_down_exps.scale", (8,), np.float32),
        ("blk.0.ssm_conv1d.weight", (4, 64), np.float32),
        ("blk.0.ssm_norm.weight", (32, 2), np.float32),
        ("blk.0.layer_output_scale.weight", (1,), np.float32),
    ],
)
def test_what_is_quantised_later_is_stored_in_half(
    name: str, shape: tuple[int, ...], stored: type[np.floating[Any]]
) -> None:
    tensor = Tensor(name, shape)
    values = generate(tensor, 1)
    assert values.dtype == stored_as(tensor) == stored
    assert values.shape == shape[::-1]
    assert np.isfinite(values).all()
    assert values.size == 1 or values.std() > 0


def test_matrices_keep_the_scale_of_their_input() -> None:
    for width in (64, 1024):
        values = generate(Tensor("blk.0.attn_q.weight", (width, 512)), 1)
        assert values.astype(float).std() == pytest.approx(width**-0.5, rel=0.05)


def test_states_decay_and_only_a_quarter_rotates() -> None:
    assert (generate(Tensor("blk.0.ssm_a", (1, 64)), 1) < 0).all()
    bias = generate(Tensor("blk.0.ssm_dt.bias", (64,)), 1)
    step = np.log1p(np.exp(bias))
    assert step.min() >= 0.0009
    assert step.max() <= 0.11
    divisors = generate(Tensor("rope_freqs.weight", (64,)), 1)
    assert divisors.tolist() == [1.0] * 16 + [np.float32(1e30)] * 48


EMBEDDINGS = Tensor("token_embd.weight", (256, 1000))
DRAWN = np.random.default_rng(1).integers(GROUPS, size=1000)


def test_tied_embeddings_are_small() -> None:
    free, tied = (embed(EMBEDDINGS, 1, DRAWN, tied=tied) for tied in (False, True))
    assert free.dtype == tied.dtype == stored_as(EMBEDDINGS) == np.float16
    assert free.shape == tied.shape == (1000, 256)
    assert free.astype(float).std() > 10 * tied.astype(float).std()


def test_tokens_of_a_group_are_alike() -> None:
    values = embed(EMBEDDINGS, 1, DRAWN, tied=False).astype(float)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    alike, same = values @ values.T, DRAWN[:, None] == DRAWN
    np.fill_diagonal(same, False)
    assert alike[same].mean() > 0.7
    assert alike[DRAWN[:, None] != DRAWN].mean() < 0.3


def topics(n_tokens: int, seed: int) -> Any:
    """Return a text of 200 tokens in 10 topics; a topic lasts 5 tokens on average."""
    rng = np.random.default_rng(seed)
    changes = np.cumsum(rng.random(n_tokens) < 0.2)
    return rng.permutation(changes.max() + 1)[changes] % 10 * 20 + rng.integers(20, size=n_tokens)


def same_group(groups: Any, text: Any) -> tuple[float, float]:
    """Return how often neighbours are of one group, and how often independent tokens are."""
    found = groups[text]
    share = np.bincount(found) / len(found)
    return float((found[1:] == found[:-1]).mean()), float((share**2).sum())


def test_groups_last_in_a_text_they_were_not_learned_from() -> None:
    groups = learn(topics(5000, 1), 300)
    lasting, chance = same_group(groups, topics(5000, 2))
    assert lasting > 0.7
    assert chance < 0.2


def test_a_text_without_order_gives_no_groups_that_last() -> None:
    groups = learn(np.random.default_rng(1).permutation(topics(5000, 1)), 300)
    lasting, chance = same_group(groups, topics(5000, 2))
    assert lasting < 1.5 * chance


def test_groups_are_the_same_each_time_and_have_every_token() -> None:
    groups = learn(topics(5000, 1), 300)
    assert np.array_equal(groups, learn(topics(5000, 1), 300))
    assert groups.shape == (300,)
    assert set(groups[200:]) == set(range(GROUPS))  # tokens the text does not have are drawn


def test_nothing_is_learned_from_the_text_that_routing_is_measured_on(
    build: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def run(command: list[str], *_: Any) -> Finished:
        read.append(Path(command[command.index("-f") + 1]).read_text(encoding="utf-8"))
        return Finished("[1, 2, 1, 2, 3]", "", Process(exit_code=0, wall=0, peak_rss=0))

    monkeypatch.setattr("tec.miniature_groups.run_tool", run)
    groups = token_groups(4, build, tmp_path / "log")
    assert groups[1] == groups[2]
    assert checked_text() + read[0] == miniature_key.TEXT.read_text(encoding="utf-8")
    assert len(read[0]) > 10 * len(checked_text()) > 0


@pytest.fixture
def behave(build: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that checks a miniature with the given tokens, hashes and routing."""

    def run(
        tokens: list[int],
        hashes: list[str],
        next_token: float,
        independent: float | None = 0.3,
        n_expert: int = 64,
    ) -> RoutingSummary:
        measured = routing(next_token, independent)
        line = json.dumps({"prompts": [{"tokens": tokens, "logits_hash": hashes}]})
        done = Finished(line, "", Process(exit_code=0, wall=0, peak_rss=0))
        monkeypatch.setattr(miniature_check, "run_tool", lambda *_: done)
        monkeypatch.setattr(miniature_check, "summarise_routing", lambda *_: measured)
        shape = type("Geometry", (), {"n_expert": n_expert, "n_expert_used": n_expert // 4})
        monkeypatch.setattr(miniature_check, "read_geometry", lambda _: shape)
        return miniature_check.check(row(), tmp_path / "m.gguf", build, tmp_path / "log")

    return run


VARIED = [f"{n:016x}" for n in range(12)]


def test_a_miniature_that_behaves_is_accepted(behave: Any) -> None:
    assert behave(list(range(12)), VARIED, 0.4).next_token == 0.4


@pytest.mark.parametrize("independent", [0.38, 0.4, None])
def test_reuse_that_popularity_explains_is_refused(behave: Any, independent: float | None) -> None:
    with pytest.raises(TecError, match=r"row tiny is of no use: .*no temporal reuse.* 40\.0%"):
        behave(list(range(12)), VARIED, 0.4, independent)


def test_few_experts_have_no_room_for_more_than_popularity(behave: Any) -> None:
    assert behave(list(range(12)), VARIED, 0.4, 0.4, n_expert=8).next_token == 0.4


@pytest.mark.parametrize(
    ("tokens", "hashes", "next_token", "message"),
    [
        ([1, 2, 3, 4] + [7] * 8, VARIED, 0.4, "one or two tokens that repeat"),
        ([1, 2, 3, 4] + [7, 8] * 4, VARIED, 0.4, "one or two tokens that repeat"),
        (list(range(12)), ["0" * 16] * 12, 0.4, "only 1 of 12 outputs differ"),
        (list(range(12)), VARIED, 0.26, "routing is uniform"),
        (list(range(12)), VARIED, 0.99, "routing is constant"),
    ],
)
def test_a_miniature_of_no_use_is_refused_by_name(
    behave: Any, tokens: list[int], hashes: list[str], next_token: float, message: str
) -> None:
    with pytest.raises(TecError, match=f"row tiny is of no use: .*{message}"):
        behave(tokens, hashes, next_token)


def test_outputs_that_are_not_finite_are_refused_by_name(
    build: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Finished:
        raise TecError("llama-expert-bench failed (exit 1): the logits are not finite")

    monkeypatch.setattr(miniature_check, "run_tool", fail)
    with pytest.raises(TecError, match=r"row tiny is of no use: .*not finite"):
        miniature_check.check(row(), tmp_path / "m.gguf", build, tmp_path / "log")
