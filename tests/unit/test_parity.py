"""Parity with stand-ins for the tools: what is run, and the verdicts on it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import fake_tools
from fake_study import make_session, make_steps, make_study
from tec.cli import main
from tec.errors import TecError
from tec.parity import parity_plan
from tec.records import Record, Verdict, read_records, read_verdicts
from tec.verdicts import enforce, judge

pytestmark = pytest.mark.usefixtures("apart")


def run(folder: Path, **faults: Any) -> list[Record]:
    maker = make_steps(folder, **faults)
    made = make_session(folder, maker, "parity")
    made.run(parity_plan(maker), wait=0)
    return read_records(made.kept)


def verdicts(folder: Path, **faults: Any) -> dict[tuple[str, str], Verdict]:
    return {(v.arm, v.check): v for v in judge(run(folder, **faults))}


def test_reference_runs_every_round_and_cached_arms_once(tmp_path: Path) -> None:
    records = run(tmp_path)
    assert Counter((r.test, r.arm) for r in records) == {
        ("greedy", "off"): 2,
        ("greedy", "cached-c2"): 1,
        ("greedy", "cached-c8"): 1,
        ("greedy", "cached-c16"): 1,
        ("ppl", "off"): 1,
        ("kl", "off"): 1,
        ("kl", "cached-c2"): 1,
        ("kl", "cached-c16"): 1,
    }


def test_perplexity_runs_one_token_at_a_time(tmp_path: Path) -> None:
    commands = [" ".join(r.command) for r in run(tmp_path) if r.test in {"ppl", "kl"}]
    assert all("-ub 1 " in command for command in commands)
    assert all("--kl-divergence-base" in command for command in commands)


def test_equal_outputs_pass(tmp_path: Path) -> None:
    found = verdicts(tmp_path)
    assert {v.verdict for (_, check), v in found.items() if check in {"self", "bitwise"}} == {
        "pass"
    }
    assert found["off", "self"].detail == "16 steps equal in 2 fresh processes"
    assert found["cached-c2", "bitwise"].detail == (
        "logits of 16 steps equal those of off; 56 experts copied into slots"
    )
    assert found["cached-c16", "ppl"].verdict == "pass"
    assert found["cached-c16", "kl"].verdict == "pass"
    assert found["cached-c8", "kl"].verdict == "not_run"
    assert {v.evidence for v in found.values()} == {"functional"}


def test_every_batch_is_judged(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study = study.model_copy(
        update={"parity": study.parity.model_copy(update={"batches": [1, 2, 4], "prompts": 2})}
    )
    maker = make_steps(tmp_path, study, wrong_logits="--expert-cache 8")
    made = make_session(tmp_path, maker, "parity")
    made.run(parity_plan(maker), wait=0)
    records = read_records(made.kept)
    greedy = next(" ".join(r.command) for r in records if r.test == "greedy")
    assert "-c 256 --first 2 --parallel 1,2,4 " in greedy
    found = {(v.arm, v.check, v.batch): v for v in judge(records)}
    assert {batch for arm, check, batch in found if check == "self"} == {1, 2, 4}
    assert [found["cached-c8", "bitwise", batch].verdict for batch in (1, 2, 4)] == ["fail"] * 3
    assert found["cached-c16", "bitwise", 4].verdict == "pass"
    past = found["cached-c2", "bitwise", 2]
    assert "go past the cache (limit 1)" in past.detail
    assert past.verdict == "not_run"
    enforce([v for v in found.values() if v.arm == "cached-c2"])  # decides nothing
    assert found["cached-c2", "ppl", None].verdict == "pass"


def test_check_without_a_copied_expert_has_checked_nothing(tmp_path: Path) -> None:
    found = verdicts(tmp_path, all_hits="--expert-cache")
    assert found["cached-c2", "bitwise"].verdict == "not_run"
    assert "nothing was checked" in found["cached-c2", "bitwise"].detail
    assert found["cached-c16", "bitwise"].verdict == "pass"  # a slot for every expert


def test_wrong_logits_fail_bitwise_at_the_first_place(tmp_path: Path) -> None:
    found = verdicts(tmp_path, wrong_logits="--expert-cache 2")
    assert found["cached-c2", "bitwise"].verdict == "fail"
    assert found["cached-c2", "bitwise"].detail.endswith("first at prompt 1, token 3")
    assert found["cached-c2", "greedy"].verdict == "pass"
    assert found["cached-c2", "kl"].verdict == "fail"
    assert found["cached-c8", "bitwise"].verdict == "pass"


def test_other_tokens_are_reported_with_the_margin(tmp_path: Path) -> None:
    found = verdicts(tmp_path, wrong_tokens="--expert-cache 8")
    assert found["cached-c8", "greedy"].verdict == "fail"
    assert "prompt 1, token 3; its two best logits are 0.25 apart" in (
        found["cached-c8", "greedy"].detail
    )


def test_reference_that_differs_from_itself_fails(tmp_path: Path) -> None:
    found = verdicts(tmp_path, flaky=True)
    assert found["off", "self"].verdict == "fail"
    assert "prompt 0, token 0" in found["off", "self"].detail


def test_lost_reference_predictions_are_made_again(tmp_path: Path) -> None:
    with pytest.raises(TecError):
        run(tmp_path, fail="--kl-divergence --kl-divergence-base")
    before = len(fake_tools.calls(tmp_path / "bin"))
    for file in (tmp_path / "cache").rglob("*.logits"):
        file.unlink()
    assert len(run(tmp_path)) == 9
    assert len(fake_tools.calls(tmp_path / "bin")) - before == 4


def test_study_without_a_reference_is_an_error(tmp_path: Path) -> None:
    study = make_study(tmp_path, arms={"cached": {"expert_cache": "sweep"}})
    with pytest.raises(TecError, match="cache off"):
        parity_plan(make_steps(tmp_path, study))


def test_commands_write_the_verdicts_first_and_fail_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, wrong_logits="--expert-cache 16")
    runs, out = tmp_path / "toy.parity.jsonl", tmp_path / "verdicts" / "toy.jsonl"
    assert main(["parity", "judge", "toy", str(runs), "--out", str(out)]) == 0
    assert len(read_verdicts(out)) == 13
    capsys.readouterr()
    assert main(["outcome", "--verdicts", str(out)]) == 2
    error = capsys.readouterr().err
    assert "toy cached-c16 bitwise: logits differ" in error
    assert "cached-c8" not in error


def test_enforcement_is_silent_about_passed_and_greedy_checks(tmp_path: Path) -> None:
    run(tmp_path, wrong_tokens="--expert-cache 16")
    runs, out = tmp_path / "toy.parity.jsonl", tmp_path / "toy.verdicts.jsonl"
    assert main(["parity", "judge", "toy", str(runs), "--out", str(out)]) == 0
    assert main(["outcome", "--verdicts", str(out)]) == 0
