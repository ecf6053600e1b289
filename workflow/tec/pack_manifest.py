"""What is in a pack for a machine without network, and whether all of it arrived.

That machine runs this before it has the Python environment: only the standard library is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tec.errors import TecError
from tec.files import sha256_file

SCHEMA = 1
"""Version of the manifest; another one is another layout of the pack."""

MANIFEST = "manifest.json"
PROJECT = "project"
LLAMA_CPP = "llama.cpp"
WHEELS = "wheels"
REQUIREMENTS = "wheels.lock"
MODELS = "models"
"""Not packed: where the user puts model files from the hub."""

AGAIN = (
    "copy the archive again (its SHA-256 has to be the one that `tec pack` printed) and unpack it "
    "into an empty folder"
)


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    commit: str
    """Of this project."""
    study: str
    """What `./run` runs."""
    python: str
    """Minor version, e.g. `3.12`."""
    platform: str
    """Tag of the newest platform that wheels were taken for."""
    system: str
    """`linux` or `darwin`, as `sys.platform`."""
    machine: str
    """Processor, as in the platform's tag."""
    glibc: str | None
    """The oldest C library that all wheels run on."""
    llama_cpp: Mapping[str, str]
    """Commit and digest of the pinned source."""
    members: Mapping[str, str]
    """Path in the pack -> SHA-256, in hex; that of a symbolic link is of the path it holds."""

    def to_json(self) -> str:
        """Return the file's content; the launcher `run` finds `python` on a line of its own."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"


def read_manifest(pack: Path) -> Manifest:
    """Return the manifest of an unpacked pack.

    Raises:
        TecError: it is missing, damaged, or of another version.
    """
    path = pack / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema == SCHEMA:
            return Manifest(**content)
    except FileNotFoundError:
        raise TecError("the pack has no manifest", path, AGAIN) from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise TecError("the pack's manifest is damaged", path, AGAIN) from None
    raise TecError(
        f"the manifest has schema {schema}, this program reads {SCHEMA}",
        path,
        "unpack the archive into an empty folder: each pack brings its own program",
    )


def sha256_member(path: Path) -> str:
    """Return the SHA-256, in hex, of a file's bytes or of the path that a symbolic link holds."""
    if path.is_symlink():
        return hashlib.sha256(os.fsencode(path.readlink())).hexdigest()
    return sha256_file(path)


def check_members(pack: Path, members: Mapping[str, str], tick: Callable[[int, int], None]) -> None:
    """Check that every member arrived whole; other files may be there too.

    Args:
        pack: the folder that the archive was unpacked to.
        members: those of the manifest.
        tick: called with how many members are checked, of how many.

    Raises:
        TecError: some did not; each is named with what is wrong, the first ones in words.
    """
    wrong = list(_damages(pack, members, tick))
    if wrong:
        shown = "\n".join(f"  {line}" for line in wrong[:5])
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        files = "1 file" if len(wrong) == 1 else f"{len(wrong)} files"
        raise TecError(f"the pack in {pack} is damaged, {files}:\n{shown}{more}", hint=AGAIN)


def _damages(
    pack: Path, members: Mapping[str, str], tick: Callable[[int, int], None]
) -> Iterator[str]:
    for done, (name, expected) in enumerate(members.items()):
        tick(done, len(members))
        try:
            found = sha256_member(pack / name)
        except OSError as error:
            yield f"{name}: {error.strerror}"
        else:
            if found != expected:
                yield f"{name}: SHA-256 {found}, expected {expected}"
