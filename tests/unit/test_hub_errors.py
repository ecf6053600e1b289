import errno
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from tec import hub, hub_retry
from tec.config import Row
from tec.errors import RunError, TecError
from tec.hub_errors import Asked, explain, retry_after, transient
from tec.hub_retry import patiently
from tec.hub_transfer import Stopped, Transfer

ASKED = Asked("moe", "acme/moe", "main", "moe.gguf")
REQUEST = httpx2.Request("GET", "https://example.org/acme/moe")


def answer(status: int, **headers: str) -> HfHubHTTPError:
    response = httpx2.Response(status, headers=headers, request=REQUEST)
    return HfHubHTTPError("an answer", response=response)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_these_answers_pass(status: int) -> None:
    assert f"the hub answers {status}" in str(transient(answer(status)))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 451, 501])
def test_these_answers_stay(status: int) -> None:
    assert transient(answer(status)) is None
    assert str(status) in explain(answer(status), ASKED).what


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx2.ConnectError("refused"), "cannot connect"),
        (httpx2.ConnectTimeout("slow"), "cannot connect"),
        (httpx2.ReadTimeout("slow"), "does not answer in time"),
        (httpx2.ReadError("reset"), "connection was cut"),
        (httpx2.RemoteProtocolError("incomplete"), "connection was cut"),
    ],
)
def test_the_network_may_come_back(error: Exception, words: str) -> None:
    assert words in str(transient(error))


@pytest.mark.parametrize(
    "error", [httpx2.ProxyError("no such proxy"), httpx2.UnsupportedProtocol("ftp")]
)
def test_a_wrong_setting_stays_wrong(error: Exception) -> None:
    assert transient(error) is None
    assert "HTTPS_PROXY" in str(explain(error, ASKED).hint)


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("0", 0.0), ("soon", None), ("", None)])
def test_how_long_the_hub_asks_to_wait(value: str, seconds: float | None) -> None:
    assert retry_after(answer(429, **{"Retry-After": value})) == seconds


def test_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Transfer, "wait", lambda _, seconds: waits.append(seconds))

    def fail() -> None:
        raise answer(503)

    with pytest.raises(TecError, match="5 times in a row"):
        patiently(fail, ASKED, Transfer())
    assert waits == [hub_retry.FIRST_WAIT * factor for factor in (1, 2, 4, 8)]


def test_waiting_ends_when_the_fetch_does() -> None:
    transfer = Transfer()
    transfer.stop()
    for action in (transfer.check, lambda: transfer.wait(60), lambda: transfer.add(1)):
        with pytest.raises(Stopped):
            action()


def fetch_failing(monkeypatch: pytest.MonkeyPatch, number: int) -> TecError:
    """Return the error of a fetch in which the operating system refuses."""

    def fail(*_: object) -> None:
        raise OSError(number, "as the system says", "/cache/file")

    monkeypatch.setattr(hub, "_plan", fail)
    source = {"kind": "hub", "repo": "acme/moe", "files": ["moe.gguf"]}
    content = {"name": "moe", "title": "MoE", "source": source, "prompts": Path("p.jsonl")}
    with pytest.raises(TecError) as caught:
        hub.fetch(Row.model_validate(content))
    return caught.value


def test_a_full_disk_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    error = fetch_failing(monkeypatch, errno.ENOSPC)
    assert isinstance(error, RunError)
    assert "HF_HOME" in str(error)


def test_a_file_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = fetch_failing(monkeypatch, errno.EACCES)
    assert not isinstance(error, RunError)
    assert "as the system says (/cache/file)" in str(error)
