import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tec import progress
from tec.progress import Progress, gigabytes, last_words, run_logged


def test_output_goes_to_the_log_and_back(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    program = "import os, sys; print(os.environ['WORD']); sys.exit(3)"
    result = run_logged([sys.executable, "-c", program], "running", log, {"WORD": "hello"})
    assert (result.returncode, result.stdout) == (3, "hello\n")
    assert log.read_text() == "hello\n"


def test_ninja_s_steps_become_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    monkeypatch.setattr(progress, "TERMINAL_INTERVAL", 0.05)
    monkeypatch.setattr("tec.progress.time.monotonic", lambda: 100.0)
    program = "import time; print('[5/10] Building', flush=True); time.sleep(2)"
    run_logged([sys.executable, "-c", program], "building", tmp_path / "log")
    assert "building: 0:00, step 5 of 10, about 0:00 left" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_gets_one_updating_line() -> None:
    screen = Terminal()
    Progress("working", screen).finish("done")
    assert screen.getvalue().count("\n") == 1
    assert screen.getvalue().endswith("working: done after 0:00\n")


def test_bytes_and_what_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    screen = io.StringIO()
    fetching = Progress("fetching", screen, gigabytes, start=4_000_000_000)
    fetching.update(4_000_000_000, 8_000_000_000)
    assert "left" not in screen.getvalue()  # nothing has come yet
    fetching.update(5_000_000_000, 8_000_000_000)
    assert "fetching: 0:00, 5.00 of 8.00 GB, about 0:00 left" in screen.getvalue()


def test_a_note_stays_on_the_terminal() -> None:
    screen = Terminal()
    Progress("working", screen).note("try 2 of 5")
    assert screen.getvalue().endswith("try 2 of 5\n")


def test_last_words() -> None:
    assert last_words("one\n\ntwo\nthree\nfour\n", lines=2) == "three\nfour"
    assert last_words("  \n") == "it printed no message"


def test_terminated_command_stops_what_it_started(tmp_path: Path) -> None:
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    outer = (
        "import sys; from pathlib import Path; from tec import cli, progress, selection\n"
        "selection._check = lambda name: progress.run_logged(\n"
        f"    [sys.executable, '-c', {inner!r}], 'sleeping', Path({str(tmp_path / 'log')!r}))\n"
        "cli.main(['check'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", outer], stderr=subprocess.DEVNULL) as process:
        started = wait_for_text(tmp_path / "log")
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(int(started))


def wait_for_text(path: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    pytest.fail(f"nothing in {path}")
