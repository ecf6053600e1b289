"""The index of what is kept in `results/reference`: a line per system and study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tec.quantities import GIB
from tec.records import PROBE, Record, read_records
from tec.table import Table, Value, to_csv

INDEX = "index.csv"
_REPEATED = ("prompts", "random", "replay")
"""Protocols that are measured in rounds."""
_KEYS = (
    *("folder", "study", "device", "vram_gib", "pcie_gen", "pcie_width", "driver", "cuda"),
    *("rows", "rounds", "evidence", "llama_cpp", "series"),
)


def index_of(studies: Iterable[Path]) -> str:
    """Return the index as CSV; the study with most rows, and of those with most rounds, is first.

    Args:
        studies: folders `<system>/<study>` with `runs/*.jsonl`.
    """
    lines = sorted((_line(folder) for folder in studies), key=_place)
    return to_csv(Table(name="index", caption="", keys=_KEYS, columns=(), rows=tuple(lines)))


def _place(line: dict[str, Value]) -> tuple[bool, int, int, str]:
    rows, rounds = int(line["rows"] or 0), int(line["rounds"] or 0)
    return line["evidence"] != "gpu", -rows, -rounds, str(line["folder"])


def _line(folder: Path) -> dict[str, Value]:
    files = [read_records(path) for path in sorted((folder / "runs").glob("*.jsonl"))]
    records = [record for file in files for record in file]
    system, gpus = records[0].system, records[0].system.gpus
    gpu = gpus[0] if gpus else None
    return {
        "folder": f"{folder.parent.name}/{folder.name}",
        "study": folder.name,
        "device": gpu.name if gpu else system.cpu,
        "vram_gib": gpu.vram_bytes / GIB if gpu and gpu.vram_bytes else None,
        "pcie_gen": gpu.pcie_gen_max if gpu else None,
        "pcie_width": gpu.pcie_width_max if gpu else None,
        "driver": gpu.driver if gpu else None,
        "cuda": _all(record.build.cuda or "" for record in records),
        "rows": len({record.row for record in records}),
        "rounds": min(map(_rounds, (f for f in files if f[0].protocol in _REPEATED)), default=0),
        "evidence": "gpu" if all(r.evidence == "gpu" for r in records) else "functional",
        "llama_cpp": _all(record.build.commit[:7] for record in records),
        "series": _all(record.build.series_hash[:12] for record in records),
    }


def _rounds(records: Sequence[Record]) -> int:
    return len({record.round for record in records if record.test != PROBE})


def _all(values: Iterable[str]) -> str:
    """Return the different values, of which there is one unless rows ran on several builds."""
    return " ".join(sorted(set(values)))
