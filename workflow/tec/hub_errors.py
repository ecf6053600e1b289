"""What the hub's refusals mean for a person, and which of them pass by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tec.errors import TecError

HUB_ERRORS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    FileMetadataError,
    HFValidationError,
    OfflineModeIsEnabled,
)
"""What the client raises when the hub, or the way to it, is at fault."""

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Asked:
    """What the hub was asked for."""

    row: str
    repo: str
    revision: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}" if self.file else self.repo

    @property
    def page(self) -> str:
        """Return the repository's address."""
        return f"{constants.ENDPOINT}/{self.repo}"


def transient(error: Exception) -> str | None:
    """Say what happened if the same request may succeed later; otherwise return None."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"the hub answers {_status(status)}" if status in _TRANSIENT_STATUS else None
    if isinstance(error, httpx2.ProxyError):
        return None
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return f"cannot connect to {constants.ENDPOINT}"
    if isinstance(error, httpx2.TimeoutException):
        return "the hub does not answer in time"
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return "the connection was cut"
    return None


def retry_after(error: Exception) -> float | None:
    """Return the seconds that the hub asks to wait, if it does."""
    if not isinstance(error, HfHubHTTPError):
        return None
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def explain(error: Exception, asked: Asked) -> TecError:
    """Return the error a person can act on."""
    if isinstance(error, OfflineModeIsEnabled):
        return TecError(
            "HF_HUB_OFFLINE is set, so the hub is not asked", asked.page, "unset HF_HUB_OFFLINE"
        )
    if isinstance(error, GatedRepoError):
        return TecError(
            f"{asked.repo} is gated: its terms have to be accepted before its files can be read",
            asked.page,
            f"accept the terms on that page, then {_token_step('that account')}",
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code == HTTPStatus.UNAUTHORIZED:
        return TecError(
            f"the hub refuses access to {asked} (401): the repository is private or does not "
            "exist, or the token is wrong",
            asked.page,
            f"check the name, then {_token_step('an account with access')}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return TecError(
            f"there is no repository {asked.repo} on the hub, or it is private",
            asked.page,
            f"correct repo in configs/models/{asked.row}.yaml, or "
            f"{_token_step('an account with access')}",
        )
    if isinstance(error, RevisionNotFoundError):
        return TecError(
            f"{asked.repo} no longer has the pinned revision {asked.revision}",
            asked.page,
            f"see what changed there; to pin what it has now: tec fetch {asked.row} --repin",
        )
    if isinstance(error, EntryNotFoundError):
        return TecError(
            f"{asked.repo} has no file {asked.file} at revision {asked.revision}",
            asked.page,
            f"correct files in configs/models/{asked.row}.yaml and pin them: "
            f"tec fetch {asked.row} --repin",
        )
    return _other(error, asked)


def _other(error: Exception, asked: Asked) -> TecError:
    if isinstance(error, HfHubHTTPError):
        said = f": {error.server_message}" if error.server_message else ""
        return TecError(
            f"the hub answers {_status(error.response.status_code)} when asked for {asked}{said}",
            asked.page,
            f"open that page in a browser; perhaps {_token_step('an account with access')}",
        )
    words = str(error).splitlines() or [type(error).__name__]
    return TecError(
        f"the hub gives no usable answer about {asked}: {words[0]}",
        constants.ENDPOINT,
        "check the network, and HF_ENDPOINT and HTTPS_PROXY if they are set",
    )


def _token_step(account: str) -> str:
    state = "the one in use is not enough" if get_token() else "it is not set"
    return f"set HF_TOKEN to a token of {account} ({state})"


def _status(code: int) -> str:
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)
