"""What of requirements.lock another Python on another machine needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tec.errors import TecError
from tec.pack_target import PackTarget

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Locked:
    """A package at its locked version.

    Attributes:
        name: normalised.
        version: as in the lock.
        hashes: SHA-256, in hex, of every file that may be installed.
    """

    name: str
    version: str
    hashes: tuple[str, ...]

    def line(self) -> str:
        """Return the package as a line of a requirements file, without its marker."""
        return requirement_line(self.name, self.version, self.hashes)


def requirement_line(name: str, version: str, hashes: Iterable[str]) -> str:
    """Return a line of a requirements file that pip checks by hash."""
    return " ".join([f"{name}=={version}", *(f"--hash=sha256:{value}" for value in hashes)])


def read_requirements(text: str, target: PackTarget) -> list[Locked]:
    """Return the packages of a lock file that `target` needs, in the file's order.

    pip would judge the environment markers by the Python that it runs on.

    Raises:
        TecError: an entry is not `name==version` with hashes.
    """
    entries = re.split(r"\n(?=[^\s#])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).strip())
    parsed = [_entry(entry) for entry in entries]
    return [locked for locked, wanted in parsed if _applies(wanted, target)]


def _entry(text: str) -> tuple[Locked, Requirement]:
    head = re.split(r"\\\n|\s--hash", text)[0].strip()
    hashes = tuple(_HASH.findall(text))
    try:
        wanted = Requirement(head)
    except InvalidRequirement as error:
        raise TecError(f"'{head}' is no requirement: {error}", "requirements.lock") from None
    version = re.fullmatch(r"==([^,*]+)", str(wanted.specifier))
    if version is None or not hashes:
        raise TecError(f"'{head}' is not pinned with hashes", "requirements.lock", "make lock")
    return Locked(canonicalize_name(wanted.name), version[1], hashes), wanted


def _applies(wanted: Requirement, target: PackTarget) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({**target.markers(), "extra": ""})
