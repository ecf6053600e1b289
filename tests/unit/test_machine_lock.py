import subprocess
import sys
from pathlib import Path

import pytest

from tec import machine_lock as module
from tec.errors import TecError
from tec.machine_lock import machine_lock


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "machine.lock"
    monkeypatch.setattr(module, "lock_path", lambda: path)
    return path


def test_second_measurement_is_refused_and_told_who_holds_the_machine() -> None:
    with machine_lock("demo pydoc-moe prompts", wait=0):
        refused = pytest.raises(TecError, match="another measurement")
        with refused as caught, machine_lock("other", wait=0):
            pass
        assert "demo pydoc-moe prompts" in str(caught.value)


def test_lock_is_free_again_after_the_measurement() -> None:
    for _ in range(2):
        with machine_lock("one after the other", wait=0):
            pass


def test_lock_lasts_as_long_as_a_tool_that_was_handed_it() -> None:
    with machine_lock("measuring", wait=0) as held:
        tool = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=(held,))
    with pytest.raises(TecError), machine_lock("too early", wait=0):
        pass
    tool.communicate(b"\n")
    with machine_lock("now", wait=0):
        pass


def test_waiting_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine_lock("first", wait=0) as held:
        tool = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=(held,))
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        tool.communicate(b"\n")

    monkeypatch.setattr("tec.machine_lock.time.sleep", pause)
    with machine_lock("second", wait=60):
        assert len(pauses) == 1
    assert "waiting for another measurement to end" in capsys.readouterr().err
