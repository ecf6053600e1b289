"""Trying again what may succeed later: few times, visibly, and never what was refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants

from tec.errors import TecError
from tec.hub_errors import HUB_ERRORS, Asked, explain, retry_after, transient
from tec.hub_transfer import Transfer

TRIES = 5
"""In a row without progress."""
FIRST_WAIT = 1.0
"""Seconds before the second try; twice as long before each further one."""
LONGEST_WAIT = 120.0
"""Seconds; a hub that asks for more is not waited for."""

Result = TypeVar("Result")


class Patience:
    """Counts failures in a row and waits between tries."""

    def __init__(self, asked: Asked, transfer: Transfer) -> None:
        self._asked = asked
        self._transfer = transfer
        self._failures = 0

    def progressed(self) -> None:
        """Forget earlier failures."""
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            TecError: the hub refused, or this was the last try.
        """
        reason = transient(error)
        if reason is None:
            raise explain(error, self._asked) from error
        self._failures += 1
        if self._failures == TRIES:
            raise TecError(
                f"{self._asked}: {reason}, {TRIES} times in a row",
                constants.ENDPOINT,
                "check the network and run again; what has arrived is kept",
            ) from error
        seconds = retry_after(error)
        if seconds is None:
            seconds = FIRST_WAIT * 2 ** (self._failures - 1)
        elif seconds > LONGEST_WAIT:
            raise TecError(
                f"{self._asked}: {reason} and asks to wait {seconds:.0f} s",
                constants.ENDPOINT,
                "run again after that time; what has arrived is kept",
            ) from error
        self._transfer.note(
            f"{self._asked}: {reason}; try {self._failures + 1} of {TRIES} in {seconds:g} s"
        )
        self._transfer.wait(seconds)


def patiently(action: Callable[[], Result], asked: Asked, transfer: Transfer) -> Result:
    """Return what `action` returns, tried again after transient errors.

    Raises:
        TecError: the hub refused, or all tries failed.
    """
    patience = Patience(asked, transfer)
    while True:
        try:
            return action()
        except HUB_ERRORS as error:
            patience.failed(error)
