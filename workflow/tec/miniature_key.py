"""What decides a miniature and the statistics of its routing, as hashes.

A miniature is kept under `recipe_key`, which knows the build whose programs make it. The workflow
asks `recipe_settings`, which needs no build: it says whether a miniature has to be made again.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tec.build import Manifest, portable
from tec.config import Row
from tec.files import sha256_file
from tec.miniature_file import TOKENIZER
from tec.paths import ROOT

TEXT = ROOT / "configs" / "prompts" / "pydoc-heldout.txt"
"""Its beginning is what the routing of miniatures is measured on; groups of tokens are learned from
the rest."""

KEY_DIGITS = 12

_LIBRARIES = ("numpy", "gguf")
"""They draw the weights and write the file."""
_CODE = ("miniature*.py", "locality.py", "locality_kernels.py", "r*trace.py", "routing_*.py")
"""Modules that make a miniature, or count what its routers choose."""


def recipe_key(row: Row, manifest: Manifest) -> str:
    """Return the hash of what decides the miniature's bytes and its routing, in hex."""
    return _hash(
        recipe_settings(row),
        manifest.digest,
        manifest.series_hash,
        manifest.compiler,
        manifest.cuda,
        portable(manifest.cmake_args),
    )


def recipe_settings(row: Row) -> str:
    """Return the hash of what decides a miniature apart from the build, in hex.

    A row that cannot have a miniature has a hash too: what is wrong with it is said when the
    miniature is made, and costs no other row its run.
    """
    return _hash(
        row.model_dump(mode="json", include={"title", "shape", "miniature"}),
        _content(ROOT / row.prompts),
        _shared(),
    )


@cache
def _shared() -> str:
    """Return the hash of what all miniatures have in common; read once in a process."""
    folder = Path(__file__).parent
    code = sorted({path for pattern in _CODE for path in folder.glob(pattern)})
    return _hash(
        _content(TOKENIZER),
        _content(TEXT),
        {path.name: sha256_file(path) for path in code},
        {name: version(name) for name in _LIBRARIES},
    )


def _content(path: Path) -> str | None:
    """Return the hash of a file; None where it is missing, which making the miniature reports."""
    return sha256_file(path) if path.exists() else None


def _hash(*decides: object) -> str:
    text = json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]
