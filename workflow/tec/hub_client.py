"""Questions to the hub, asked with its own client."""

from __future__ import annotations

from huggingface_hub import HfApi, HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import ModelInfo

from tec.config import HubSource
from tec.errors import TecError
from tec.hub_errors import Asked
from tec.hub_lock import LockedFile, LockEntry
from tec.hub_retry import patiently
from tec.hub_transfer import Transfer
from tec.nearest import suggestion

BRANCH = "main"


def current(row: str, source: HubSource, transfer: Transfer) -> LockEntry:
    """Return what the repository's main branch has now, by the hub's metadata.

    Raises:
        TecError: the hub cannot be reached or refuses, or the repository lacks one of the files.
    """
    asked = Asked(row, source.repo, BRANCH)
    return patiently(lambda: _entry(source, asked), asked, transfer)


def _entry(source: HubSource, asked: Asked) -> LockEntry:
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = HfApi().model_info(
            source.repo, revision=BRANCH, files_metadata=True, timeout=timeout
        )
        files = [_file(info, name, asked) for name in source.files]
        return LockEntry(repo=source.repo, commit=info.sha or "missing", files=files)
    except HFValidationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TecError(
            f"the answer about {source.repo} is not a hub's",
            asked.page,
            "check HF_ENDPOINT, and that no proxy answers in the hub's place",
        ) from error


def _file(info: ModelInfo, name: str, asked: Asked) -> LockedFile:
    known = {file.rfilename: file for file in info.siblings or []}
    if name not in known:
        near = suggestion(name, [other for other in known if other.endswith(".gguf")])
        raise TecError(
            f"{asked.repo} has no file {name}",
            asked.page,
            f"correct files in configs/models/{asked.row}.yaml; {near}",
        )
    lfs = known[name].lfs
    if lfs is None:
        raise TecError(
            f"the hub states no SHA-256 for {asked.repo}/{name}",
            asked.page,
            "only files in the hub's large-file storage can be checked; choose another file",
        )
    return LockedFile(name=name, size=lfs.size, sha256=lfs.sha256)


def locate(row: str, entry: LockEntry, file: LockedFile, transfer: Transfer) -> HfFileMetadata:
    """Return where the file's bytes are, after checking that it still is the pinned one.

    Raises:
        TecError: the hub cannot be reached or refuses; the revision or the file is gone or changed.
    """
    url = address(entry, file)
    asked = Asked(row, entry.repo, str(entry.commit), file.name)
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    found = patiently(lambda: get_hf_file_metadata(url, timeout=timeout), asked, transfer)
    changes = [
        f"{what} was {before}, is {now}"
        for what, before, now in (
            ("revision", entry.commit, found.commit_hash),
            ("SHA-256", file.sha256, found.etag),
            ("size", file.size, file.size if found.size is None else found.size),
        )
        if before != now
    ]
    if changes:
        raise TecError(
            f"{asked} is not what the lock file pinned: {'; '.join(changes)}",
            asked.page,
            f"find out why it changed; to pin what the hub has now: tec fetch {row} --repin",
        )
    return found


def address(entry: LockEntry, file: LockedFile) -> str:
    """Return the URL of a file at the pinned revision."""
    return hf_hub_url(entry.repo, file.name, revision=entry.commit)
