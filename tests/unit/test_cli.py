import errno
import subprocess
import sys

import pytest

from tec import cli
from tec.errors import TecError


def test_error_names_what_where_and_next() -> None:
    assert str(TecError("it broke", "here", "mend it")) == "it broke (here)\n  next: mend it"


def test_every_command_registers() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tec", "--help"], capture_output=True, text=True, check=True
    )
    assert all(f"\n    {command}" in result.stdout for command in cli.COMMANDS)


def test_tec_error_is_one_message_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "dem"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown study 'dem'")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/results"),
            2,
            "the disk or your quota on it is full",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/results"), 2, "your quota"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: Permission denied (/x)\n"),
        (ConnectionResetError(), 2, "error: ConnectionResetError\n"),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_errors_of_the_system_and_interrupt_are_explained(
    raised: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: str) -> None:
        raise raised

    monkeypatch.setattr("tec.selection._check", fail)
    assert cli.main(["check"]) == status
    assert message in capsys.readouterr().err
