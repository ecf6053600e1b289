"""One key, one measurement."""

from pathlib import Path
from typing import Any

import pytest

from fake_study import make_row, make_study
from fake_tools import install
from tec import perplexity
from tec.choice import Choice
from tec.measure_key import measure_key, settings_key


def test_settings_key_changes_with_what_matters_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, row = make_study(tmp_path), make_row(tmp_path)
    key = settings_key(study, row, "prompts")
    parity = study.parity.model_copy(update={"n_gen": 99})
    same = {"name": "other", "rows": ["toy", "more"], "parity": parity}
    assert settings_key(study.model_copy(update=same), row, "prompts") == key

    def changed(**changes: Any) -> str:
        return settings_key(make_study(tmp_path, **changes), row, "prompts")

    keys = [
        key,
        settings_key(study, row, "random"),
        settings_key(study, row, "parity"),
        settings_key(study.model_copy(update=same), row, "parity"),
        settings_key(study, row, "prompts", Choice(arms=("off",))),
        settings_key(study, row, "prompts", Choice(capacities=(4,))),
        changed(capacities={"shares": [0.25]}),
        changed(arms={"off": {"expert_cache": "off"}}),
    ]
    monkeypatch.setattr(perplexity, "_CTX", 256)
    keys.append(settings_key(study, row, "parity"))
    (tmp_path / "prompts.jsonl").write_text('{"id": "x", "text": "other"}\n')
    keys.append(settings_key(study, row, "prompts"))
    assert len(set(keys)) == len(keys)


def test_measure_key_changes_with_the_build_the_model_and_the_machine(tmp_path: Path) -> None:
    build = install(tmp_path)
    key = measure_key("settings", build, "a" * 64, "machine")
    moved = build.model_copy(update={"bin_dir": tmp_path / "elsewhere", "seconds": 2.0})
    assert measure_key("settings", moved, "a" * 64, "machine") == key
    keys = [
        key,
        measure_key("other", build, "a" * 64, "machine"),
        measure_key("settings", build, "b" * 64, "machine"),
        measure_key("settings", build, "a" * 64, "another machine"),
        measure_key(
            "settings", build.model_copy(update={"series_hash": "6" * 64}), "a" * 64, "machine"
        ),
        measure_key(
            "settings", build.model_copy(update={"cmake_args": ["-DA=OFF"]}), "a" * 64, "machine"
        ),
    ]
    assert len(set(keys)) == len(keys)
