"""A real browser for tests: Debian's chromium, driven over a pair of pipes.

`--remote-debugging-pipe` speaks the DevTools protocol as JSON ended by a zero byte, on the
descriptors 3 and 4: no port, no web socket, no package.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_PATIENCE = 30
"""Seconds to wait for an answer."""


class BrowserError(Exception):
    """The browser refused, stopped, or did not answer."""


class Page:
    """One page of the browser. Coordinates are in CSS pixels."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """Errors, warnings and exceptions, as the console shows them."""

    def attach(self) -> Self:
        """Take over the browser's first page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0, end - time.monotonic()))[0]:
                raise BrowserError(f"no answer within {_PATIENCE} s")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise BrowserError("the browser has stopped")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(details.get("exception", details).get("description", "?"))
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(str(parameters["args"]))

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file and wait until its scripts have run and a frame was drawn."""
        self.call("Page.navigate", url=path.as_uri() + fragment)
        deadline = time.monotonic() + _PATIENCE
        while self.run("document.readyState") != "complete":
            if time.monotonic() > deadline:
                raise BrowserError(f"{path.name} did not load within {_PATIENCE} s")
            time.sleep(0.02)
        self.settle()

    def run(self, script: str) -> Any:
        """Return the value of an expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until what was asked for is on the screen: three frames."""
        self.run(
            "new Promise((done) => { let left = 3; "
            "const frame = () => left-- ? requestAnimationFrame(frame) : done(); frame(); })"
        )

    def size(self, width: int, height: int, scale: float = 1, touch: bool = False) -> None:
        """Give the page the screen of another device."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=touch,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def scheme(self, name: str) -> None:
        """Choose `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, by the name that scripts see."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text, **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **code)
        self.settle()

    def mouse(self, kind: str, x: float, y: float, held: bool = False) -> None:
        """Send `mousePressed`, `mouseMoved` or `mouseReleased`."""
        button = "left" if held or kind != "mouseMoved" else "none"
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button=button,
            buttons=int(held),
            clickCount=1,
        )

    def touch(self, kind: str, *places: tuple[float, float]) -> None:
        """Send `touchStart`, `touchMove` or `touchEnd` with the fingers that are down."""
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write what is on the screen, or the whole page, as PNG."""
        done = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(done["data"]))

    def print(self, path: Path) -> None:
        """Print to PDF, A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}
        done = self.call("Page.printToPDF", printBackground=False, **size)
        path.write_bytes(base64.b64decode(done["data"]))


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile; it is ended with the block.

    Raises:
        BrowserError: there is no chromium, or it does not start.
    """
    if CHROMIUM is None:
        raise BrowserError("no chromium on this machine; Debian: apt-get install chromium")
    commands, to_browser = (_high(end) for end in os.pipe())
    from_browser, answers = (_high(end) for end in os.pipe())
    wrapped = f'exec "$@" 3<&{commands} 4>&{answers}'
    process = subprocess.Popen(
        ["bash", "-c", wrapped, "chromium", CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(commands, answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    try:
        yield Page(to_browser, from_browser).attach()
    finally:
        os.close(to_browser)  # which ends the browser
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser)


def _high(descriptor: int) -> int:
    """Move a descriptor out of the way of those that the shell assigns."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
