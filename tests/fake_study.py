"""A study on the fake tools: small enough that a whole measurement takes a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_tools import N_EXPERT, N_EXPERT_USED, install
from tec import machine_lock, steps
from tec.config import Row, Study
from tec.gguf_file import ModelInfo
from tec.records import Protocol
from tec.session import Session, build_info
from tec.steps import Steps

CAPACITIES = (2, 8, 16)
ARMS = ("off", "off-aa", *(f"cached-c{slots}" for slots in CAPACITIES))


def make_study(folder: Path, **changes: Any) -> Study:
    """Return a study with two arms without and three with a cache; `changes` replace its keys."""
    text = folder / "text.txt"
    text.write_text("some text")
    values: dict[str, Any] = {
        "name": "fake",
        "rows": ["toy"],
        "target": "cpu",
        "arms": {
            "off": {"expert_cache": "off"},
            "off-aa": {"expert_cache": "off"},
            "cached": {"expert_cache": "sweep"},
        },
        "capacities": {"shares": [0.125, 0.5, 1.0]},
        "protocols": {
            "prompts": {"n_gen": 8, "rounds": 3, "threads": 1, "ctx": 64},
            "random": {"n_prompt": 4, "n_gen": 6, "rounds": 2, "threads": 1},
        },
        "parity": {"n_gen": 8, "rounds": 2, "text": str(text)},
    }
    return Study.model_validate({**values, **changes})


def make_row(folder: Path) -> Row:
    """Return the study's row, its prompts written into `folder`."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"id": "p0", "text": "a"}\n{"id": "p1", "text": "b"}\n')
    source = {"kind": "file", "path": str(folder / "toy.gguf"), "sha256": "a" * 64}
    values = {"name": "toy", "title": "toy 2x16", "source": source, "prompts": str(prompts)}
    return Row.model_validate(values)


def make_model(folder: Path) -> ModelInfo:
    """Return the row's model; its file only has to exist."""
    path = folder / "toy.gguf"
    path.write_bytes(b"GGUF")
    return ModelInfo(
        row="toy",
        path=str(path),
        bytes=3 * 2**29,
        sha256="a" * 64,
        arch="qwen3moe",
        quant="Q8_0",
        n_layer=2,
        n_moe_layers=2,
        n_expert=N_EXPERT,
        n_expert_used=N_EXPERT_USED,
        n_params=1000,
    )


def make_steps(folder: Path, study: Study | None = None, **faults: Any) -> Steps:
    """Return the maker of steps for the fake study; the tools are installed in `folder`/bin."""
    manifest = install(folder / "bin", **faults)
    return Steps(study or make_study(folder), make_row(folder), make_model(folder), manifest)


@contextmanager
def apart_in(folder: Path) -> Iterator[None]:
    """Keep the machine's lock and the scratch files of other runs out of what is measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_lock, "lock_path", lambda: folder / "lock")
        patch.setattr(steps, "CACHE", folder / "cache")
        yield


def make_session(folder: Path, steps: Steps, protocol: Protocol) -> Session:
    """Return a session that keeps `folder`/toy.<protocol>.jsonl."""
    return Session(
        study=steps.study.name,
        protocol=protocol,
        build=build_info(steps.manifest),
        model=steps.model,
        kept=folder / f"toy.{protocol}.jsonl",
        log=folder / "tools.log",
    )
