"""A small project that can be packed, and wheels for it in a folder that stands in for an index."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tec.config import FileSource, load_row
from tec.digest import tree_digest
from tec.files import sha256_file
from tec.paths import ROOT

PARTS = ["CMakeLists.txt", "src"]
OTHER_FILE = "0" * 64
"""Stands in the lock for a file of a package that is not on the index."""

BACKEND = '''
"""A build back end without requirements: an editable install is an empty package."""
import zipfile

NAME = "project-1.0"

def build_editable(folder, settings=None, metadata=None):
    wheel = f"{NAME}-py3-none-any.whl"
    texts = {"METADATA": "Metadata-Version: 2.1\\nName: project\\nVersion: 1.0\\n",
             "WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
             "RECORD": ""}
    with zipfile.ZipFile(f"{folder}/{wheel}", "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"{NAME}.dist-info/{name}", text)
    return wheel
'''
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "project"
version = "1.0"
"""
SNAKEMAKE = """
import json, os, sys, tiny
words = {"argv": sys.argv[1:], "environment": dict(os.environ), "tiny": tiny.__file__}
with open("called.jsonl", "a") as file:
    file.write(json.dumps(words) + chr(10))
"""
SDIST_PYPROJECT = """
[build-system]
requires = ["flit_core"]
build-backend = "flit_core.buildapi"
[project]
name = "sourceonly"
version = "1.0"
description = "a package without a wheel"
"""
PROGRAM = ("__init__", "errors", "files", "pack_manifest", "progress", "unpacked")
"""The modules that run before there is an environment: no others may be needed."""


def write_wheel(
    folder: Path, name: str, files: Mapping[str, str], tag: str = "py3-none-any"
) -> Path:
    """Write version 1.0 of a wheel; paths are those in site-packages."""
    info = f"{name}-1.0.dist-info"
    texts = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},\n" for path, text in texts.items())
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**texts, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def write_sdist(folder: Path) -> Path:
    """Write the source distribution of a package that has no wheel."""
    file = folder / "sourceonly-1.0.tar.gz"
    texts = {
        "pyproject.toml": SDIST_PYPROJECT,
        "PKG-INFO": "Metadata-Version: 2.1\nName: sourceonly\nVersion: 1.0\n",
        "sourceonly.py": "",
    }
    with tarfile.open(file, "w:gz") as archive:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"sourceonly-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return file


def write_index(folder: Path) -> str:
    """Write wheels and a source distribution; return the lock file that pins them."""
    snakemake = write_wheel(
        folder, "snakemake", {"snakemake/__init__.py": "", "snakemake/__main__.py": SNAKEMAKE}
    )
    tiny = write_wheel(folder, "tiny", {"tiny.py": "value = 1\n"})
    return "".join(
        [
            lock_entry("snakemake", sha256_file(snakemake), OTHER_FILE),
            lock_entry("sourceonly", sha256_file(write_sdist(folder))),
            lock_entry("tiny", sha256_file(tiny), OTHER_FILE),
            lock_entry("windowsonly", OTHER_FILE, marker=" ; sys_platform == 'win32'"),
        ]
    )


def lock_entry(name: str, *hashes: str, marker: str = "") -> str:
    """Return a package as a lock file has it."""
    return (
        " \\\n    ".join([f"{name}==1.0{marker}", *(f"--hash=sha256:{h}" for h in hashes)]) + "\n"
    )


def write_source(folder: Path) -> Path:
    """Write a tiny tree that stands in for llama.cpp."""
    for path, text in {"CMakeLists.txt": "project(tiny)\n", "src/a.cpp": "int a = 1;\n"}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "left-out.md").write_text("not a part\n")
    return folder


def write_project(root: Path, lock: str, source: Path) -> Path:
    """Write and commit a project with this one's configuration, Makefile and launcher."""
    shutil.copytree(ROOT / "configs", root / "configs")
    shutil.copytree(ROOT / "workflow" / "pack", root / "workflow" / "pack")
    shutil.copytree(ROOT / "workflow" / "profiles", root / "workflow" / "profiles")
    (root / "profiles").symlink_to("workflow/profiles")
    (root / "workflow" / "tec").mkdir()
    for module in PROGRAM:
        shutil.copy(ROOT / "workflow" / "tec" / f"{module}.py", root / "workflow" / "tec")
    shutil.copy(ROOT / "Makefile", root)
    pin = {
        "commit": "a" * 40,
        "digest": tree_digest(source, PARTS),
        "parts": PARTS,
        "sources": "[{kind: local, variable: TEC_LLAMA_CPP_DIR}]",
    }
    texts = {
        "requirements.lock": lock,
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        ".gitignore": "ignored.txt\n",
        "llama.cpp/pin.yaml": "".join(f"{key}: {value}\n" for key, value in pin.items()),
        "models/note.txt": "",
    }
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    model = load_row("pydoc-moe").source
    assert isinstance(model, FileSource)
    (root / model.path).parent.mkdir(parents=True, exist_ok=True)
    (root / model.path).write_bytes(b"GGUF")
    git(root, "init", "--quiet")
    return commit_all(root)


def commit_all(root: Path) -> Path:
    """Commit everything, at a fixed time."""
    git(root, "add", "--all")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    git(root, *identity, "commit", "--quiet", "--message=all", "--date=2026-01-02T03:04:05Z")
    return root


def git(root: Path, *arguments: str) -> str:
    """Run git in the project."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
