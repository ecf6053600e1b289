"""The machine a measurement ran on.

Everything is read from the operating system and, where there is one, from `nvidia-smi`; what
cannot be read stays null. The fingerprint covers what makes two machines different to a
measurement, not what changes from minute to minute: an idle card lowers its PCIe generation.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field

from tec.quantities import GIB, Bytes, Count, Megatransfers, describe

_MIB = 1024**2
_CPUS = Path("/sys/devices/system/cpu")
_GPU_QUERY = (
    "name",
    "memory.total",
    "compute_cap",
    "pcie.link.gen.current",
    "pcie.link.gen.max",
    "pcie.link.width.current",
    "pcie.link.width.max",
    "driver_version",
)


class Gpu(BaseModel):
    """One graphics card as its driver reports it; PCIe values are those in use at that moment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    vram_bytes: Bytes | None
    compute_capability: str | None
    pcie_gen: Count | None = Field(description="PCIe generation in use; idle cards lower it")
    pcie_gen_max: Count | None
    pcie_width: Count | None = Field(description="PCIe lanes in use")
    pcie_width_max: Count | None
    driver: str | None


class System(BaseModel):
    """The machine: hardware, operating system, driver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    os: str
    kernel: str
    machine: str = Field(description="instruction set, such as x86_64")
    cpu: str
    cores: Count | None = Field(description="physical cores")
    threads: Count = Field(description="hardware threads this process may use")
    ram_bytes: Bytes
    ram_speed: Megatransfers | None = Field(description="configured speed, where readable")
    governor: str | None = Field(description="CPU frequency governor")
    cuda_driver: str | None = Field(description="newest CUDA version the driver supports")
    gpus: tuple[Gpu, ...]

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal for equal machines."""
        identity = [
            self.os,
            self.machine,
            self.cpu,
            self.cores,
            self.threads,
            round(self.ram_bytes / GIB),
            self.ram_speed,
            [(g.name, g.vram_bytes, g.pcie_gen_max, g.pcie_width_max, g.driver) for g in self.gpus],
        ]
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:12]


def read_system() -> System:
    """Read the machine this process runs on."""
    return System(
        os=_os_name(),
        kernel=platform.release(),
        machine=platform.machine(),
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False),
        threads=_usable_threads(),
        ram_bytes=psutil.virtual_memory().total,
        ram_speed=_ram_speed(),
        governor=_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        cuda_driver=_cuda_driver(),
        gpus=_gpus(),
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    if found:
        return found[1]
    return platform.processor() or platform.machine()


def _usable_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Return how many physical cores this process may use; hardware threads share them."""
    usable = _usable_threads()
    if hasattr(os, "sched_getaffinity"):
        folders = (_CPUS / f"cpu{number}/topology" for number in os.sched_getaffinity(0))
        siblings = {_read(folder / "thread_siblings_list") for folder in folders}
        if None not in siblings:
            return len(siblings)
    return min(psutil.cpu_count(logical=False) or usable, usable)


def _ram_speed() -> int | None:
    """Return the memory's configured speed; the firmware's table is readable by root only."""
    table = _output(["dmidecode", "--type", "17"]) or ""
    speeds = [int(n) for n in re.findall(r"Configured Memory Speed:\s*(\d+)\s*MT/s", table)]
    return min(speeds, default=None)


def _cuda_driver() -> str | None:
    found = re.search(r"CUDA Version:\s*([\d.]+)", _output(["nvidia-smi"]) or "")
    return found[1] if found else None


def _gpus() -> tuple[Gpu, ...]:
    query = f"--query-gpu={','.join(_GPU_QUERY)}"
    table = _output(["nvidia-smi", query, "--format=csv,noheader,nounits"]) or ""
    return tuple(_gpu(line) for line in table.splitlines() if line.strip())


def _gpu(line: str) -> Gpu:
    """Read one line of `nvidia-smi --query-gpu`; unsupported fields read `[N/A]`."""
    cells = [cell.strip() for cell in line.split(",")]
    values = {
        key: None if c.startswith("[") else c for key, c in zip(_GPU_QUERY, cells, strict=True)
    }
    vram_mib = _whole(values["memory.total"])
    return Gpu(
        name=values["name"] or "unknown",
        vram_bytes=None if vram_mib is None else vram_mib * _MIB,
        compute_capability=values["compute_cap"],
        pcie_gen=_whole(values["pcie.link.gen.current"]),
        pcie_gen_max=_whole(values["pcie.link.gen.max"]),
        pcie_width=_whole(values["pcie.link.width.current"]),
        pcie_width_max=_whole(values["pcie.link.width.max"]),
        driver=values["driver_version"],
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _output(command: list[str]) -> str | None:
    """Return what a command prints, or None where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec system`."""
    parser = sub.add_parser("system", help="show the machine's fingerprint and what is in it")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_print_system)


def _print_system(options: argparse.Namespace) -> None:
    system = read_system()
    if options.json:
        print(system.model_dump_json(indent=2))
    else:
        print(f"{'fingerprint':<16} {system.fingerprint}", *describe(system), sep="\n")
