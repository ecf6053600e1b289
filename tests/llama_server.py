"""A running `llama-server` of the build under test, for as long as a test needs it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

_STEERING = ("LLAMA_", "GGML_", "EXPERT_CACHE_")
_TOTALS = re.compile(r"expert cache: (\d+) hits, (\d+) misses")

START = 60.0
"""Seconds until a server has to be ready."""
ANSWER = 120.0
"""Seconds until a request has to be answered."""


class Server:
    """What a test asks of a server. Its log is complete when the server has ended."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log

    def ask(self, path: str, **body: object) -> Any:
        """Return the answer to a POST with this JSON body; an AssertionError has a refusal."""
        with self._request("POST", path, body) as answer:
            said = answer.read()
        assert answer.status == HTTPStatus.OK, f"{path}: {said.decode(errors='replace')}"
        return json.loads(said)

    def page(self, path: str) -> str:
        """Return what a browser is shown."""
        with self._request("GET", path) as answer:
            said = answer.read().decode()
        assert answer.status == HTTPStatus.OK, f"{path}: {said}"
        return said

    def leave(self, path: str, **body: object) -> None:
        """Ask for a stream and go away after its first line, which cancels the request."""
        with self._request("POST", path, {**body, "stream": True}) as answer:
            assert answer.readline()

    @contextmanager
    def _request(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> Iterator[HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=ANSWER)
        headers = {"Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body), headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def log(self) -> str:
        """Return what the server has written so far."""
        return self._log.read_text(errors="replace")

    def totals(self) -> tuple[int, int]:
        """Return hits and misses of the context, which the server logs when it ends."""
        found = _TOTALS.findall(self.log())
        assert len(found) == 1, f"expected one line of totals, found {len(found)}: {self.log()}"
        hits, misses = found[0]
        return int(hits), int(misses)

    def wait_until_idle(self) -> None:
        """Return when no slot works on a task; an AssertionError says that they do not stop."""
        end = time.monotonic() + ANSWER
        while time.monotonic() < end:
            with self._request("GET", "/slots") as answer:
                if not any(slot["is_processing"] for slot in json.load(answer)):
                    return
            time.sleep(0.05)
        raise AssertionError(f"slots are still busy: {self.log()[-2000:]}")

    def wait_until_ready(self) -> None:
        """Return when the model is loaded; an AssertionError has the log if that fails."""
        end = time.monotonic() + START
        while self._process.poll() is None and time.monotonic() < end:
            with suppress(OSError), self._request("GET", "/health") as answer:
                if answer.status == HTTPStatus.OK:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server is not ready: {self.log()[-2000:]}")


@contextmanager
def serve(program: Path, arguments: Sequence[object], log: Path) -> Iterator[Server]:
    """Start a server on a free port of this machine, and end it as Ctrl-C does.

    Args:
        program: `llama-server`.
        arguments: model and settings; host and port are added.
        log: file for its output; overwritten.
    """
    port = _free_port()
    command = [program, *arguments, "--host", "127.0.0.1", "--port", port]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_STEERING)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=inherited,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, log)
    try:
        server.wait_until_ready()
        yield server
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, f"the server ended with an error: {server.log()[-2000:]}"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
