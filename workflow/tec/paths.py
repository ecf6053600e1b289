"""Where things are. Every fixed directory of the repository is named here and nowhere else."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STUDIES = ROOT / "configs" / "studies"
MODELS = ROOT / "configs" / "models"
SCHEMAS = ROOT / "configs" / "schema"
HUB_LOCK = ROOT / "configs" / "hub.lock.json"

PIN = ROOT / "llama.cpp" / "pin.yaml"
PATCHES = ROOT / "patches"
PAPER = ROOT / "paper"
RESULTS = ROOT / "results"
REFERENCE = RESULTS / "reference"
"""Measured runs worth keeping, by system and study; committed."""

HISTORY = RESULTS / "history.jsonl"
"""Launches of all studies and machines, oldest first; see `tec.history`."""

CACHE = ROOT / ".cache"
SOURCE_CACHE = CACHE / "source"
PATCHED_CACHE = CACHE / "patched"
PATCHED_TREE = PATCHED_CACHE / "tree"
PATCHED_SERIES = PATCHED_CACHE / "series"
"""Holds the hash of the series that the patched tree has; absent while the tree is changing."""
BUILD_CACHE = CACHE / "build"
PACK_CACHE = CACHE / "pack"
MODEL_CACHE = CACHE / "models"
VERIFIED = MODEL_CACHE / "verified.json"
"""Hashes of big files that were read before."""
MINIATURES = MODEL_CACHE / "miniature"
REPLICAS = MODEL_CACHE / "replica"
MODEL_FILES = MODEL_CACHE / "files"
"""Has, in a folder for each row, links to its files in the hub's cache or wherever they are."""


def relative(path: Path) -> str:
    """Return a path as the pipeline names it: relative to the root."""
    return path.relative_to(ROOT).as_posix()


def shown(path: Path) -> str:
    """Return a path for a reader: relative to the root if it is below it."""
    whole = path.resolve()
    return relative(whole) if whole.is_relative_to(ROOT) else path.as_posix()


def against_folder(study: str) -> Path:
    """Return where the records of two revisions measured in turn are kept."""
    return RESULTS / study / "against"


def source_tree(digest: str) -> Path:
    """Return where the pinned llama.cpp tree of this digest is kept."""
    return SOURCE_CACHE / f"llama.cpp-{digest[:12]}"


def source_record(digest: str) -> Path:
    """Return the file that says the tree of this digest is complete."""
    return SOURCE_CACHE / f"llama.cpp-{digest[:12]}.json"


def build_dir(target: str) -> Path:
    """Return the cmake build tree of a target."""
    return BUILD_CACHE / target


def build_manifest(target: str) -> Path:
    """Return the file that says a target's build is complete, and what is in it."""
    return build_dir(target) / "manifest.json"


def build_tests_manifest(target: str) -> Path:
    """Return the same for the llama.cpp tests of a target."""
    return build_dir(target) / "tests.json"


def build_server_manifest(target: str) -> Path:
    """Return the same for llama-server of a target."""
    return build_dir(target) / "server.json"


def model_record(row: str, variant: str) -> Path:
    """Return the record of a row's model file in one of its variants."""
    return MODEL_CACHE / f"{row}.{variant}.json"
