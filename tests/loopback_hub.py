"""A hub on loopback for the real client: it serves small files, and misbehaves on request.

It answers what huggingface-hub asks in a download: the repository's metadata, HEAD and GET of
`/<repo>/resolve/<revision>/<file>` (a redirect to another host name, as on the hub) and the file
itself, with ranges. `python tests/hub_demo.py` shows it at work.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Stage = Literal["info", "head", "get", "file"]
"""Metadata of the repository; HEAD and GET of a file's address; the bytes, from the other host."""


@dataclass
class Repo:
    """A repository: what each revision has; `main` leads to one of them."""

    commits: dict[str, dict[str, bytes]]
    main: str
    announced: dict[str, int] = field(default_factory=dict)
    """File -> size to announce in place of the real one."""
    xet: dict[str, str] = field(default_factory=dict)
    """File -> hash in Xet storage."""


@dataclass
class Trouble:
    """One way to misbehave, for the next `times` requests of a stage."""

    stage: Stage
    status: int = 0
    """Refuse with this status."""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Close the connection after so many bytes of the file."""
    hold_after: int | None = None
    """Send so many bytes of the file, then nothing until the hub is released."""
    wrong_bytes: bool = False
    no_ranges: bool = False
    html: bool = False
    times: int = 1


@dataclass(frozen=True)
class Request:
    """What a client asked for and got."""

    stage: str
    method: str
    path: str
    range: str | None
    authorized: bool
    status: int
    sent: int
    """Bytes of body."""

    def __str__(self) -> str:
        asked = f" Range: {self.range}" if self.range else ""
        return f"{self.method} {self.path}{asked} -> {self.status}, {self.sent} bytes"


class LoopbackHub:
    """The hub; use `running` to start it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.troubles: list[Trouble] = []
        self.log: list[Request] = []
        self.released = threading.Event()
        self.holding = threading.Event()
        """Set while a client is kept waiting for the rest of a file."""
        self.xet_endpoint = ""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def files_url(self) -> str:
        """Another origin, on which the client must not show its token."""
        return f"http://localhost:{self.port}"

    def requests(self, *stages: str) -> list[Request]:
        """Return what was asked in these stages."""
        with self._lock:
            return [request for request in self.log if request.stage in stages]

    def trouble(self, stage: Stage) -> Trouble:
        """Return how to misbehave now; without any trouble, a Trouble that does nothing."""
        with self._lock:
            for trouble in self.troubles:
                if trouble.stage == stage and trouble.times > 0:
                    trouble.times -= 1
                    return trouble
        return Trouble(stage)

    def record(self, request: Request) -> None:
        with self._lock:
            self.log.append(request)

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[_Handler]:
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        return Handler


@contextmanager
def running() -> Iterator[LoopbackHub]:
    """Yield a hub that answers."""
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/[^/]+/[^/]+/xet-read-token/[^/]+", path):
            expiry = str(int(time.time()) + 3600)
            token = {"X-Xet-Access-Token": "loopback", "X-Xet-Token-Expiration": expiry}
            self._send("token", 200, headers={**token, "X-Xet-Cas-Url": self.hub.xet_endpoint})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/files/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            self._file(self.hub.repos[match[1]].commits[match[2]][match[3]])
        else:
            self._refuse("other", 404, "EntryNotFound")

    def _info(self, name: str, revision: str) -> None:
        trouble = self.hub.trouble("info")
        if trouble.html:
            self._send(
                "info", 200, b"<html>Sign in to the network</html>", {"Content-Type": "text/html"}
            )
        elif trouble.status:
            self._send("info", trouble.status, b"{}", trouble.headers)
        elif (repo := self.hub.repos.get(name)) is None:
            self._refuse("info", 404, "RepoNotFound")
        elif (commit := self._commit(repo, revision)) is None:
            self._refuse("info", 404, "RevisionNotFound")
        else:
            siblings = [
                {
                    "rfilename": file,
                    "size": size,
                    "blobId": "0" * 40,
                    "lfs": {"sha256": _sha256(content), "size": size, "pointerSize": 134},
                }
                for file, content in repo.commits[commit].items()
                for size in [repo.announced.get(file, len(content))]
            ]
            body = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
            self._send("info", 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        stage: Stage = "head" if self.command == "HEAD" else "get"
        trouble = self.hub.trouble(stage)
        if trouble.status:
            self._send(stage, trouble.status, b"{}", trouble.headers)
        elif (repo := self.hub.repos.get(name)) is None:
            self._refuse(stage, 404, "RepoNotFound")
        elif (commit := self._commit(repo, revision)) is None:
            self._refuse(stage, 404, "RevisionNotFound")
        elif (content := repo.commits[commit].get(file)) is None:
            self._refuse(stage, 404, "EntryNotFound")
        else:
            headers = {
                "Location": f"{self.hub.files_url}/files/{name}/{commit}/{file}",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(repo.announced.get(file, len(content))),
                "X-Linked-Etag": f'"{_sha256(content)}"',
                "ETag": '"not the hash of the file"',
            }
            if file in repo.xet:
                route = f"{self.hub.url}/api/models/{name}/xet-read-token/{commit}"
                headers |= {"X-Xet-Hash": repo.xet[file], "X-Xet-Refresh-Route": route}
            self._send(stage, 302, headers=headers)

    def _file(self, content: bytes) -> None:
        trouble = self.hub.trouble("file")
        if trouble.status:
            self._send("file", trouble.status, b"{}", trouble.headers)
            return
        if trouble.wrong_bytes:
            content = bytes(len(content))
        start, status, headers = 0, 200, {"Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not trouble.no_ranges:
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send("file", status, content[start:], headers, trouble)

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.main if revision == "main" else revision
        return commit if commit in repo.commits else None

    def _refuse(self, stage: str, status: int, code: str) -> None:
        self._send(stage, status, b"{}", {"X-Error-Code": code})

    def _send(
        self,
        stage: str,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        trouble: Trouble | None = None,
    ) -> None:
        """Answer, cut or hold back as the trouble says, and write the log."""
        held = trouble.hold_after if trouble else None
        cut = trouble.cut_after if trouble else None
        end = min(limit for limit in (held, cut, len(body)) if limit is not None)
        end = 0 if self.command == "HEAD" else end
        token = self.headers.get("Authorization") is not None
        asked = self.headers.get("Range")
        # before the client can see the answer, so that a test finds it in the log
        self.hub.record(Request(stage, self.command, self.path, asked, token, status, end))
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:end])
        self.close_connection = end < len(body)
        if held is not None:
            self.wfile.flush()
            self.hub.holding.set()
            self.hub.released.wait(60)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
