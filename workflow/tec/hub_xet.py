"""Xet, the hub's chunked storage: faster than plain HTTP where the hub offers it.

Only a stream from a given byte on can be continued; the client's download of whole files cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from huggingface_hub import HfFileMetadata, constants
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._xet import (
    XetFileData,
    abort_xet_session,
    get_xet_session,
    refresh_xet_connection_info,
    xet_headers_without_auth,
)


class XetFailed(Exception):  # noqa: N818 (no error: plain HTTP takes over)
    """Xet did not deliver; plain HTTP still can."""


def offered(found: HfFileMetadata) -> bool:
    """Say whether the hub has the file in Xet storage and this machine may use it."""
    usable = not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None
    return found.xet_file_data is not None and usable


def chunks(found: HfFileMetadata, start: int, size: int) -> Iterator[bytes]:
    """Yield the bytes of a file of `size` bytes from `start` on.

    Raises:
        XetFailed: at any trouble with Xet.
    """
    if found.xet_file_data is None:
        raise XetFailed("the hub offers no Xet storage")
    position = start
    try:
        for chunk in _stream(found.xet_file_data, start, size):
            position += len(chunk)
            yield chunk
    except Exception as error:
        # the extension raises what its errors happen to map to; none of it is worth giving up for
        raise XetFailed(f"Xet storage failed ({_first_line(error)})") from error
    if position < size:
        raise XetFailed(f"Xet storage ended after {position} of {size} bytes")


def _stream(data: XetFileData, start: int, size: int) -> Iterator[bytes]:
    from hf_xet import XetFileInfo  # type: ignore[import-untyped]  # may be missing

    headers = build_hf_headers()
    connection = refresh_xet_connection_info(file_data=data, headers=headers)
    session = get_xet_session()  # type: ignore[no-untyped-call]
    group = session.new_download_stream_group(
        endpoint=connection.endpoint,
        token=connection.access_token,
        token_expiry_unix_secs=connection.expiration_unix_epoch,
        token_refresh_url=data.refresh_route,
        token_refresh_headers=headers,
        custom_headers=xet_headers_without_auth(headers),
    )
    with group:
        yield from group.download_stream(XetFileInfo(data.file_hash, size), start=start)


def abort() -> None:
    """End transfers under way: they wait for the network without looking for interruptions."""
    abort_xet_session()  # type: ignore[no-untyped-call]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
