"""For which Python and machine wheels are packed."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tec.errors import TecError

OLDEST_PYTHON = (3, 11)
USUAL_GLIBC = 28
"""Minor version of glibc 2 that the wheels of today ask for; systems since 2019 have it."""

_LEGACY = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
"""Older names of manylinux_2_N."""
_OLDEST_GLIBC = {"x86_64": 5, "i686": 5}
_OLDEST_GLIBC_ELSEWHERE = 17
_PLATFORM = re.compile(
    r"(?P<family>manylinux_2|musllinux_1|macosx_\d+)_(?P<minor>\d+)_(?P<machine>[a-z]\w+)"
)
_MANYLINUX = re.compile(r"manylinux_2_(\d+)_\w+")


@dataclass(frozen=True)
class PackTarget:
    """The Python and machine of a pack.

    Attributes:
        python: minor version, e.g. `3.12`.
        platform: tag of the newest platform, e.g. `manylinux_2_28_x86_64`.
    """

    python: str
    platform: str

    def __post_init__(self) -> None:
        numbers = re.fullmatch(r"3\.(\d+)", self.python)
        if numbers is None or (3, int(numbers[1])) < OLDEST_PYTHON:
            raise TecError(
                f"cannot pack for Python {self.python}",
                hint="name a minor version from 3.11 on, such as --python 3.12",
            )
        if _PLATFORM.fullmatch(self.platform) is None:
            raise TecError(
                f"cannot pack for platform {self.platform}",
                hint="name a tag such as manylinux_2_28_x86_64, manylinux_2_28_aarch64, "
                "musllinux_1_2_x86_64 or macosx_14_0_arm64",
            )

    @property
    def family(self) -> str:
        """Return the tag up to its last number."""
        return self._part("family")

    @property
    def machine(self) -> str:
        """Return the processor, e.g. `x86_64`."""
        return self._part("machine")

    @property
    def system(self) -> str:
        """Return what `sys.platform` is there."""
        return "darwin" if self.family.startswith("macosx") else "linux"

    def platforms(self) -> list[str]:
        """Return the tags of all wheels that run there, best first; pip adds macOS's own."""
        newest = int(self._part("minor"))
        if self.family == "musllinux_1":
            return [f"musllinux_1_{minor}_{self.machine}" for minor in range(newest, -1, -1)]
        if self.family == "manylinux_2":
            return [*self._manylinux(newest), f"linux_{self.machine}"]
        return [self.platform]

    def _manylinux(self, newest: int) -> Iterator[str]:
        oldest = _OLDEST_GLIBC.get(self.machine, _OLDEST_GLIBC_ELSEWHERE)
        for minor in range(newest, oldest - 1, -1):
            yield f"manylinux_2_{minor}_{self.machine}"
            yield from (f"{name}_{self.machine}" for name, n in _LEGACY.items() if n == minor)

    def markers(self) -> dict[str, str]:
        """Return the values of environment markers there.

        For the patch release a late one stands: this project wants 3.11.4 or newer.
        """
        darwin = self.system == "darwin"
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.99",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Darwin" if darwin else "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.99",
            "python_version": self.python,
            "sys_platform": self.system,
        }

    def _part(self, name: str) -> str:
        found = _PLATFORM.fullmatch(self.platform)
        return found[name] if found else ""


def this_python() -> str:
    """Return the minor version of the running Python."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def this_platform() -> str:
    """Return the tag of this machine, with no newer a C library than wheels usually ask for."""
    machine = platform.machine()
    if sys.platform == "darwin":
        major = platform.mac_ver()[0].partition(".")[0]
        return f"macosx_{major}_0_{machine}"
    libc, version = platform.libc_ver()
    if libc != "glibc":
        return f"musllinux_1_2_{machine}"
    return f"manylinux_2_{min(USUAL_GLIBC, int(version.split('.')[1]))}_{machine}"


def least_glibc(wheels: Iterable[str]) -> str | None:
    """Return the oldest glibc that wheels of these file names all run on; None if any does."""
    minors = [minor for name in wheels if (minor := _least_minor(name)) is not None]
    return f"2.{max(minors)}" if minors else None


def _least_minor(wheel: str) -> int | None:
    """Return the minor version of glibc 2 that a wheel needs at least, from its file name."""
    tags = wheel.removesuffix(".whl").rpartition("-")[2].split(".")
    minors = [int(found[1]) for tag in tags if (found := _MANYLINUX.fullmatch(tag))]
    minors += [n for name, n in _LEGACY.items() if any(tag.startswith(f"{name}_") for tag in tags)]
    return min(minors, default=None)
