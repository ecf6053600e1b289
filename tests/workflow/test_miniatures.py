"""Miniatures made with the real programs, against what is known of their rows' files."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from gguf import GGUFReader

from tec import miniature
from tec.build import Manifest
from tec.config import Row, load_row
from tec.errors import TecError
from tec.gguf_file import read_geometry
from tec.paths import ROOT
from tec.routing_summary import RoutingSummary

NEMOTRON = "nemotron-3-nano-30b-a3b-q8_0"
REAP = "gpt-oss-120b-reap-58b-q4_k_s"
QWEN = "qwen3.5-35b-a3b-q8_0"
GEMMA = "gemma-4-26b-a4b-it-bf16"

Tensors = dict[str, tuple[str, list[int]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("miniatures")


def made(name: str, build: Manifest, folder: Path) -> tuple[Row, Path, Tensors]:
    row = load_row(name)
    path = miniature.make(row, build, folder)
    tensors = GGUFReader(path).tensors
    return row, path, {t.name: (t.tensor_type.name, t.shape.tolist()) for t in tensors}


def of_block(tensors: Tensors, block: int) -> set[str]:
    prefix = f"blk.{block}."
    return {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}


def test_nemotron_has_its_three_kinds_of_blocks(build_manifest: Manifest, folder: Path) -> None:
    row, path, tensors = made(NEMOTRON, build_manifest, folder)
    assert of_block(tensors, 0) == {
        "attn_norm.weight",
        "ssm_a",
        "ssm_conv1d.bias",
        "ssm_conv1d.weight",
        "ssm_d",
        "ssm_dt.bias",
        "ssm_in.weight",
        "ssm_norm.weight",
        "ssm_out.weight",
    }
    attention = {f"attn_{name}.weight" for name in ("norm", "q", "k", "v", "output")}
    assert of_block(tensors, 2) == attention
    experts = {f"ffn_{name}.weight" for name in ("up_exps", "down_exps", "up_shexp", "down_shexp")}
    experts |= {"attn_norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias"}
    assert of_block(tensors, 1) == of_block(tensors, 3) == experts
    assert tensors["blk.1.ffn_up_exps.weight"] == ("Q8_0", [384, 64, 128])
    assert tensors["blk.1.ffn_gate_inp.weight"] == ("F32", [384, 128])
    geometry = read_geometry(path)
    assert row.shape is not None
    assert (geometry.arch, geometry.quant) == (row.shape.arch, "Q8_0")
    assert (geometry.n_expert, geometry.n_expert_used) == (128, 6)


def test_the_statistics_lie_beside_the_file(build_manifest: Manifest, folder: Path) -> None:
    row, path, _ = made(NEMOTRON, build_manifest, folder)
    assert row.shape is not None
    text = miniature.routing_file(path).read_text()
    routing = RoutingSummary.model_validate_json(text)
    assert routing.overlap_8_uniform + 0.05 < routing.overlap_8 < 0.95
    assert routing.next_token_independent is not None
    assert routing.next_token_independent > row.shape.n_expert_used / row.shape.n_expert
    assert routing.next_token > 1.15 * routing.next_token_independent
    left = {file.name for file in folder.glob(f"{NEMOTRON}*")}
    assert left == {path.name, f"{path.stem}.routing.json", f"{path.stem}.log"}


def test_the_same_recipe_gives_the_same_bytes(
    build_manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    row, path, _ = made(NEMOTRON, build_manifest, folder)
    again = miniature.make(row, build_manifest, tmp_path)
    assert again.name == path.name
    assert again.read_bytes() == path.read_bytes()


def test_a_made_one_is_kept_and_an_earlier_one_removed(
    build_manifest: Manifest, tmp_path: Path
) -> None:
    row = load_row(NEMOTRON)
    assert row.miniature is not None
    earlier = row.model_copy(update={"miniature": row.miniature.model_copy(update={"seed": 99})})
    first = miniature.make(earlier, build_manifest, tmp_path)
    second = miniature.make(row, build_manifest, tmp_path)
    written = second.stat().st_mtime_ns
    assert miniature.make(row, build_manifest, tmp_path).stat().st_mtime_ns == written
    assert not first.exists()


def test_pruned_gpt_oss_falls_back_to_five_bits(build_manifest: Manifest, folder: Path) -> None:
    _, _, tensors = made(REAP, build_manifest, folder)
    types = {name: kind for name, (kind, _) in tensors.items()}
    assert types["blk.0.ffn_gate_exps.weight"] == types["blk.1.ffn_down_exps.weight"] == "Q5_0"
    assert types["blk.0.ffn_down_exps.weight"] == "Q5_1"
    assert types["blk.0.attn_output.weight"] == "Q4_K"
    assert types["output.weight"] == "Q8_0"
    assert tensors["blk.0.ffn_gate_exps.bias"] == ("F32", [320, 64])
    assert tensors["blk.1.ffn_gate_inp.bias"] == ("F32", [64])
    assert not [name for name in tensors if name.endswith("scale")]


def test_gemma_is_merged_and_scaled(build_manifest: Manifest, folder: Path) -> None:
    _, _, tensors = made(GEMMA, build_manifest, folder)
    for block in (0, 1):
        assert tensors[f"blk.{block}.ffn_gate_up_exps.weight"] == ("BF16", [256, 384, 128])
        assert tensors[f"blk.{block}.ffn_down_exps.scale"] == ("F32", [128])
        assert tensors[f"blk.{block}.ffn_gate_inp.scale"] == ("F32", [256])
    assert "blk.0.attn_v.weight" in tensors
    assert "blk.1.attn_v.weight" not in tensors
    assert "output.weight" not in tensors
    assert tensors["rope_freqs.weight"] == ("F32", [64])


def test_a_missing_key_is_named(build_manifest: Manifest, tmp_path: Path) -> None:
    row = load_row(NEMOTRON)
    assert row.miniature is not None
    keys = {key: value for key, value in row.miniature.keys.items() if key != "ssm.state_size"}
    broken = row.model_copy(update={"miniature": row.miniature.model_copy(update={"keys": keys})})
    with pytest.raises(TecError, match=r"nemotron_h_moe\.ssm\.state_size"):
        miniature.make(broken, build_manifest, tmp_path)
    assert not list(tmp_path.glob("**/*.gguf"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"-m is not set"),
        (["-m", "/nowhere.gguf"], r"cannot read '/nowhere.gguf' as GGUF"),
        (["--with", "x"], r"unknown argument '--with'"),
    ],
)
def test_the_tensor_list_refuses_in_one_line(
    binaries: dict[str, Path], arguments: list[str], message: str
) -> None:
    command = [str(binaries["llama-tensor-list"]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: .*{message}.*\n", done.stderr)


def test_a_required_tensor_cannot_be_left_out(build_manifest: Manifest, tmp_path: Path) -> None:
    row = load_row(NEMOTRON)
    assert row.miniature is not None
    recipe = row.miniature.model_copy(update={"without": ["ffn_up_exps"]})
    broken = row.model_copy(update={"miniature": recipe})
    with pytest.raises(TecError, match=r"'blk\.1\.ffn_up_exps\.weight' is not optional"):
        miniature.make(broken, build_manifest, tmp_path)


def test_sequences_decoded_together_say_what_each_says_alone(
    build_manifest: Manifest, binaries: dict[str, Path], folder: Path
) -> None:
    """Upstream's AMX product stepped past the weight for every sequence but the first.

    Batches may round differently, so that a near tie can fall either way in one of them.
    """
    row, path, _ = made(QWEN, build_manifest, folder)
    words = ["-m", path, "--prompts", ROOT / row.prompts, "--first", 4, "-n", 12, "-t", 1]
    command = [binaries["llama-expert-bench"], *words, "-c", 4096, "--parallel", "1,4"]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True)
    alone, together = (json.loads(line)["prompts"] for line in done.stdout.splitlines())
    pairs = zip(alone, together, strict=True)
    assert sum(one["tokens"] == other["tokens"] for one, other in pairs) >= len(alone) - 1
