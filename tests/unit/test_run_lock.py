import os
import subprocess
import sys
from pathlib import Path

import pytest

from tec.errors import TecError
from tec.run_lock import hold


def test_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    first = hold(path, "at work")
    with pytest.raises(TecError, match="another process is at work"):
        hold(path, "at work")
    os.close(first)
    os.close(hold(path, "at work"))


def test_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys, time; from pathlib import Path; from tec.run_lock import hold\n"
        "lock = hold(Path(sys.argv[1]), 'at work'); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(TecError):
            hold(path, "at work")
        process.kill()
    os.close(hold(path, "at work"))
