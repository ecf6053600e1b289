"""What the threads of a fetch share: the progress line, notices, and the wish to stop."""

from __future__ import annotations

import sys
from threading import Event, Lock

from tec.progress import Progress, gigabytes


class Stopped(Exception):  # noqa: N818 (no error: the thread does what it was told)
    """This thread was asked to end."""


class Transfer:
    """Bytes that have arrived, counted over all threads.

    Args:
        total: bytes when all is done.
        start: bytes that are there already.
    """

    def __init__(self, total: int = 0, start: int = 0) -> None:
        self._total = total
        self._start = self._done = start
        self._progress: Progress | None = None
        self._lock = Lock()
        self._stop = Event()

    def expect(self, amount: int) -> None:
        """Count bytes that have to come in addition: some were thrown away."""
        with self._lock:
            self._total += amount

    def check(self) -> None:
        """Go on, unless the fetch is interrupted.

        Raises:
            Stopped: it is.
        """
        if self._stop.is_set():
            raise Stopped

    def add(self, amount: int) -> None:
        """Count bytes that arrived.

        Raises:
            Stopped: the fetch is interrupted.
        """
        self.check()
        with self._lock:
            if self._progress is None:
                self._progress = Progress("fetching", measure=gigabytes, start=self._start)
            self._done += amount
            self._progress.update(self._done, self._total)

    def note(self, text: str) -> None:
        """Show a line that stays."""
        with self._lock:
            if self._progress is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._progress.note(text)

    def wait(self, seconds: float) -> None:
        """Sleep, unless the fetch is interrupted.

        Raises:
            Stopped: it is.
        """
        if self._stop.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """Ask all threads to end."""
        self._stop.set()

    def finish(self, outcome: str) -> None:
        """End the progress line, if there is one."""
        with self._lock:  # a thread may be showing the line for the first time
            if self._progress is not None:
                self._progress.finish(outcome)
