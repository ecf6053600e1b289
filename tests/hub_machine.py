"""A user's machine beside a hub on loopback: rows, a lock file, an empty cache."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub, Repo

REPO = "acme/tiny-moe-GGUF"
FILE = "tiny-moe-Q8_0.gguf"
ROW = "tiny-moe"
COMMIT = "a" * 40
SIZE = 300_000

_DRIVER = Path(__file__).with_name("hub_fetch.py")


def content(seed: int = 1, size: int = SIZE) -> bytes:
    """Return reproducible bytes that are nowhere alike."""
    return random.Random(seed).randbytes(size)  # noqa: S311 (no secret)


@dataclass(frozen=True)
class Outcome:
    """How a run of `tec` ended and what the user saw."""

    status: int
    out: str
    err: str


@dataclass
class Machine:
    """The machine; by default with one row of one file."""

    folder: Path
    hub: LoopbackHub
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hub.repos[REPO] = Repo({COMMIT: {FILE: content()}}, COMMIT)
        self.add_row(ROW, [FILE])

    def add_row(self, name: str, files: Sequence[str], repo: str = REPO, **more: str) -> None:
        """Write a row; `more` goes into its source."""
        source = {"kind": "hub", "repo": repo, "files": list(files), **more}
        row = {"name": name, "title": name, "source": source, "prompts": "prompts.jsonl"}
        path = self.folder / "models" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))  # JSON is YAML

    def run(self, *arguments: str, **variables: str) -> Outcome:
        """Run `tec` and wait for its end."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=120)
        return Outcome(process.returncode, out, err)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Run `tec`."""
        return self.python(str(_DRIVER), str(self.folder), *arguments, **variables)

    def python(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Run Python with the machine's variables."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(variables),
        )

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return this process's variables without those that the client or a proxy reads."""
        prefixes = ("HF_", "HUGGING", "TEC_", "http_", "https_", "HTTP_", "HTTPS_", "ALL_", "all_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
        own = {
            "HOME": str(self.folder / "home"),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return {**kept, **own, **self.variables, **variables}

    @property
    def repo_cache(self) -> Path:
        """The folder of the repository in the client's cache."""
        return self.folder / "hf" / "hub" / f"models--{REPO.replace('/', '--')}"

    def cached(self, file: str = FILE, commit: str = COMMIT) -> Path:
        """Where the client's cache has a file."""
        return self.repo_cache / "snapshots" / commit / file

    def blobs(self) -> list[str]:
        """The names of what is in the cache, whole or not."""
        return sorted(path.name for path in (self.repo_cache / "blobs").glob("*"))

    def lock(self) -> dict[str, Any]:
        """The rows of the lock file."""
        path = self.folder / "hub.lock.json"
        rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
        return rows

    def local_file(self, data: bytes, name: str = FILE) -> Path:
        """Write a file of the user's own; returns its folder."""
        path = self.folder / "own" / "somewhere" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return self.folder / "own"


def sha256(data: bytes) -> str:
    """Return the hash of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()
