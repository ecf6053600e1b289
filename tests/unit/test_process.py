import sys
from pathlib import Path

import pytest

from tec.errors import RunError, TecError
from tec.paths import ROOT
from tec.process import run_tool


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_and_account_are_kept(tmp_path: Path) -> None:
    code = (
        "import os, sys; held = b'x' * 50_000_000\n"
        "print(os.getcwd()); print('note', file=sys.stderr)"
    )
    finished = run_tool(python(code), {}, tmp_path / "tool.log")
    assert finished.stdout == f"{ROOT}\n"
    assert finished.stderr == "note\n"
    assert finished.process.exit_code == 0
    assert finished.process.peak_rss > 50_000_000
    assert finished.process.wall > 0


def test_log_has_every_command_and_its_errors(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "tool.log"
    run_tool(python("import sys; print('one', file=sys.stderr)"), {}, log)
    finished = run_tool(python("import sys; print('two', file=sys.stderr)"), {}, log)
    assert finished.stderr == "two\n"
    assert log.read_text().count("$ ") == 2
    assert "one\n" in log.read_text()


@pytest.mark.parametrize(
    "line", ["error: capacity 4 is below top-K 8", "0.01.234 E main: capacity 4 is below top-K 8"]
)
def test_failure_carries_the_tools_last_error(tmp_path: Path, line: str) -> None:
    code = f"import sys; print({line!r} + chr(10) + 'bye', file=sys.stderr); sys.exit(1)"
    with pytest.raises(TecError, match="capacity 4 is below top-K 8") as caught:
        run_tool(python(code), {}, tmp_path / "tool.log")
    assert sys.executable in str(caught.value)
    assert str(tmp_path / "tool.log") in str(caught.value)


def test_full_disk_that_a_tool_tells_of_concerns_the_run(tmp_path: Path) -> None:
    log = tmp_path / "tool.log"
    with pytest.raises(RunError, match="the disk or your quota on it is full: python"):
        run_tool(python("raise OSError(28, 'No space left on device')"), {}, log)
    with pytest.raises(TecError) as caught:
        run_tool(python("raise OSError(5, 'Input/output error')"), {}, log)
    assert not isinstance(caught.value, RunError)


def test_killed_tool_is_said_to_be_killed(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="signal 9"):
        run_tool(python("import os; os.kill(os.getpid(), 9)"), {}, tmp_path / "tool.log")


def test_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="cannot start no-such-tool"):
        run_tool(["no-such-tool"], {}, tmp_path / "tool.log")


def test_the_shells_steering_variables_do_not_reach_the_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERT_CACHE_CAPACITY", "4")
    monkeypatch.setenv("LLAMA_ARG_THREADS", "1")
    code = "import os; print([k for k in os.environ if k.startswith(('EXPERT', 'LLAMA', 'GGML'))])"
    finished = run_tool(python(code), {"GGML_OP_OFFLOAD_MIN_BATCH": "1"}, tmp_path / "tool.log")
    assert finished.stdout == "['GGML_OP_OFFLOAD_MIN_BATCH']\n"
