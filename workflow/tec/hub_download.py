"""One file from the hub into the cache: goes on where it stopped, and is checked at the end.

The client's own downloads start again after an interruption (it deletes what has arrived), so the
bytes are received here, over the client's session and, where the hub offers it, over Xet storage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO

import httpx2
from huggingface_hub import HfFileMetadata, constants
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from tec import hub_client, hub_xet
from tec.errors import TecError
from tec.hub_cache import CachedFile
from tec.hub_errors import HUB_ERRORS, Asked
from tec.hub_lock import LockedFile, LockEntry
from tec.hub_retry import Patience
from tec.hub_transfer import Transfer
from tec.verified import remember, sha256_of

_PROGRESS_SHARE = 100
"""A try that brings one part in this many has made progress; so the tries have a bound."""
_OTHER_BYTES = (
    "the hub, or a proxy before it, sends other bytes than it announces; try another network or "
    "HF_ENDPOINT"
)


class Download:
    """One file on its way into the cache."""

    def __init__(self, row: str, entry: LockEntry, file: LockedFile, transfer: Transfer) -> None:
        self._row = row
        self._entry = entry
        self._file = file
        self._transfer = transfer
        self._cached = CachedFile(entry, file)
        self._told = False

    def run(self) -> Path:
        """Return the file in the cache, fetched and checked if need be.

        Raises:
            TecError: the hub cannot be reached, refuses, has another file, or sends wrong bytes;
                the row is pinned to local files.
        """
        if self._entry.commit is None:
            raise TecError(
                f"{self._file.name} of row {self._row} is pinned to a local file, which is not "
                "here",
                self._entry.repo,
                f"name its folder: tec fetch {self._row} --from FOLDER; or pin what the hub has: "
                f"tec fetch {self._row} --repin",
            )
        path = self._cached.path
        if path.exists() and self._hash(path) == self._file.sha256:
            return path  # nothing is written: the cache may be somebody else's
        with self._cached.reserved(self._wait):
            if wrong := self._obtain():
                self._reject(wrong)
                if wrong := self._obtain():
                    self._cached.discard()
                    raise TecError(
                        f"{wrong}, also after fetching it once more",
                        f"{constants.ENDPOINT}/{self._entry.repo}",
                        _OTHER_BYTES,
                    )
        return path

    def _wait(self) -> None:
        """Say once that another process fetches this file."""
        self._transfer.check()
        if not self._told:
            self._transfer.note(f"{self._file.name}: waiting for another process that fetches it")
            self._told = True

    def _obtain(self) -> str | None:
        """Have the file in the cache; if its hash is wrong, return a sentence that says so."""
        here = self._cached.exists()
        if here:
            self._cached.link()
        path = self._cached.path if here else self._receive()
        found = self._hash(path)
        if found != self._file.sha256:
            return f"{self._file.name} has SHA-256 {found}, pinned is {self._file.sha256}"
        if not here:
            self._cached.place()
            remember(self._cached.path, found)
        return None

    def _hash(self, path: Path) -> str:
        return sha256_of(path, self._transfer.check)

    def _reject(self, wrong: str) -> None:
        """Remove a wrong file from the cache, unless it cannot be fetched again."""
        if constants.is_offline_mode():
            raise TecError(
                f"{wrong}; HF_HUB_OFFLINE is set, so it is not fetched again",
                self._cached.path,
                "unset HF_HUB_OFFLINE and run again",
            )
        self._cached.discard()
        self._transfer.expect(self._file.size)
        self._transfer.note(f"{wrong}; deleted, fetching it once more")

    def _receive(self) -> Path:
        """Receive what is missing; return the complete file under its temporary name."""
        found = hub_client.locate(self._row, self._entry, self._file, self._transfer)
        asked = Asked(self._row, self._entry.repo, str(self._entry.commit), self._file.name)
        patience = Patience(asked, self._transfer)
        partial = self._cached.partial
        with partial.open("ab") as file:
            if file.tell() > self._file.size:
                self._restart(file)
            mark = file.tell()
            over_xet = hub_xet.offered(found)
            while file.tell() < self._file.size:
                try:
                    self._append(self._chunks(found, file, over_xet), file)
                    if file.tell() < self._file.size:
                        raise httpx2.RemoteProtocolError("the file ended early")
                except hub_xet.XetFailed as error:
                    self._transfer.note(f"{asked}: {error}; going on without Xet")
                    over_xet = False
                except HUB_ERRORS as error:
                    if (file.tell() - mark) * _PROGRESS_SHARE >= self._file.size:
                        patience.progressed()
                        mark = file.tell()
                    patience.failed(error)
            file.flush()
            os.fsync(file.fileno())
        return partial

    def _append(self, chunks: Iterator[bytes], file: IO[bytes]) -> None:
        """Write what arrives.

        Raises:
            TecError: it is more than the file has; what fits stays for the check of the hash.
        """
        for chunk in chunks:
            if file.tell() + len(chunk) > self._file.size:
                raise TecError(
                    f"more than the {self._file.size} bytes of {self._file.name} arrive",
                    f"{constants.ENDPOINT}/{self._entry.repo}",
                    _OTHER_BYTES,
                )
            file.write(chunk)
            self._transfer.add(len(chunk))

    def _chunks(self, found: HfFileMetadata, file: IO[bytes], over_xet: bool) -> Iterator[bytes]:
        """Yield the file's bytes from the position of `file` on."""
        if over_xet:
            return hub_xet.chunks(found, file.tell(), self._file.size)
        return self._over_http(file)

    def _over_http(self, file: IO[bytes]) -> Iterator[bytes]:
        url = hub_client.address(self._entry, self._file)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if file.tell():
            headers["Range"] = f"bytes={file.tell()}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                self._restart(file)  # the whole file comes, whatever was asked for
            yield from response.iter_bytes()

    def _restart(self, file: IO[bytes]) -> None:
        """Throw away what has arrived."""
        if file.tell():
            self._transfer.expect(file.tell())
            file.seek(0)
            file.truncate()
