"""One archive with all that a machine without network needs to run a study.

    tec-pack/
        run, README.txt      `./run` is the one command there; see `tec.unpacked`
        manifest.json        what the pack is for, and the SHA-256 of every other member
        project/             this project at a commit
        llama.cpp/           the parts of the pinned source that the build reads
        wheels/, wheels.lock Python packages, and their pins with the hashes of just these files

The same commit, Python and platform give the same bytes: members are sorted, times are the
commit's. (The compressor's version counts too.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tec import run_lock
from tec.config import DEFAULT_STUDY
from tec.digest import regular_files
from tec.errors import TecError
from tec.files import sha256_file
from tec.pack_archive import ENDINGS, check_ending, write_archive
from tec.pack_lock import read_requirements
from tec.pack_manifest import (
    LLAMA_CPP,
    MANIFEST,
    PROJECT,
    REQUIREMENTS,
    WHEELS,
    Manifest,
    sha256_member,
)
from tec.pack_models import instructions, load_packed_study, missing_models
from tec.pack_project import Checkout
from tec.pack_target import PackTarget, least_glibc, this_platform, this_python
from tec.pack_wheels import ensure_wheels
from tec.paths import PACK_CACHE, ROOT
from tec.pin import Pin
from tec.source import ensure_source
from tec.yaml_file import load_yaml

TOP = "tec-pack"
LAUNCHER = "run"
README = "README.txt"
FORMS = Path("workflow", "pack")
"""In the project: the launcher, and the README's text with places for `$names`."""


@dataclass(frozen=True)
class Order:
    """What to pack.

    Attributes:
        out: the archive.
        target: for which Python and machine.
        study: what `./run` is going to run.
        commit: a revision; without one it is the last, and nothing else may be in the working tree.
    """

    out: Path
    target: PackTarget
    study: str = DEFAULT_STUDY
    commit: str | None = None


def pack(order: Order, root: Path = ROOT, cache: Path = PACK_CACHE) -> Path:
    """Write the archive, all of it or nothing, and return its path.

    Raises:
        TecError: there are uncommitted changes; the source, a wheel or the study is not to be had;
            there is no room.
    """
    check_ending(order.out)
    checkout = Checkout(root)
    commit = checkout.commit(order.commit or "HEAD")
    if order.commit is None:
        checkout.check_committed(besides=order.out)
    with _staging(cache) as staging:
        checkout.export(commit, staging / PROJECT)
        members = _write_pack(order, commit, staging, cache)
        write_archive(order.out, TOP, members, checkout.seconds(commit))
    return order.out


@contextmanager
def _staging(cache: Path) -> Iterator[Path]:
    """Yield a folder in `cache` that is removed at the end; keep other processes out of `cache`."""
    lock = run_lock.hold(cache / "lock", "packing")
    try:
        for leftover in cache.glob(".incomplete-*"):  # of a run that was killed
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".incomplete-") as temporary:
            yield Path(temporary)
    finally:
        os.close(lock)


def _write_pack(order: Order, commit: str, staging: Path, cache: Path) -> dict[str, Path]:
    """Get everything that the exported project names; return path in the pack -> file."""
    project = staging / PROJECT
    study = load_packed_study(project, order.study)
    models = instructions(study, missing_models(project, study))
    pin = load_yaml(project / "llama.cpp" / "pin.yaml", Pin)
    source = ensure_source(pin)
    locked = read_requirements((project / "requirements.lock").read_text(), order.target)
    wheels = ensure_wheels(locked, order.target, cache)
    values = {
        "commit": commit,
        "cuda": "" if study.target == "cpu" else " and the CUDA toolkit",
        "llama_cpp": pin.commit[:7],
        "models": models,
        "platform": order.target.platform,
        "python": order.target.python,
        "study": study.name,
    }
    (staging / README).write_text(_form(project).substitute(values))
    members = {README: staging / README, LAUNCHER: project / FORMS / LAUNCHER}
    members |= {REQUIREMENTS: wheels / REQUIREMENTS}
    members |= {f"{WHEELS}/{wheel.name}": wheel for wheel in wheels.glob("*.whl")}
    members |= {f"{LLAMA_CPP}/{name}": source / name for name in regular_files(source, pin.parts)}
    members |= _files(project)
    (staging / MANIFEST).write_text(_manifest(order, commit, pin, members).to_json())
    print(models, end="", file=sys.stderr)
    return {**members, MANIFEST: staging / MANIFEST}


def _form(project: Path) -> string.Template:
    """Return the README's text; raise a TecError where the commit has none."""
    path = project / FORMS / README
    if not path.is_file():
        raise TecError(
            "this commit is older than tec pack", FORMS / README, "name a later one with --commit"
        )
    return string.Template(path.read_text())


def _files(project: Path) -> dict[str, Path]:
    """Return the project's files and symbolic links."""
    found = (path for path in project.rglob("*") if path.is_symlink() or path.is_file())
    return {f"{PROJECT}/{path.relative_to(project).as_posix()}": path for path in found}


def _manifest(order: Order, commit: str, pin: Pin, members: Mapping[str, Path]) -> Manifest:
    target = order.target
    return Manifest(
        commit=commit,
        study=order.study,
        python=target.python,
        platform=target.platform,
        system=target.system,
        machine=target.machine,
        glibc=least_glibc(path.name for path in members.values() if path.suffix == ".whl"),
        llama_cpp={"commit": pin.commit, "digest": pin.digest},
        members={name: sha256_member(path) for name, path in sorted(members.items())},
    )


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec pack`."""
    about = "pack project, source and wheels for a machine without network"
    parser = sub.add_parser("pack", help=about, description=about)
    endings = ", ".join(ENDINGS)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"ends in {endings}"
    )
    parser.add_argument(
        "--python", metavar="3.N", default=this_python(), help="of that machine; here %(default)s"
    )
    parser.add_argument(
        "--platform",
        metavar="TAG",
        default=this_platform(),
        help="of that machine, as in the names of wheels: manylinux_2_GLIBC_PROCESSOR, "
        "musllinux_1_N_PROCESSOR, macosx_N_0_PROCESSOR; here %(default)s",
    )
    parser.add_argument("--study", default=DEFAULT_STUDY, help="what ./run runs; %(default)s")
    parser.add_argument(
        "--commit", metavar="REV", help="pack this commit and leave uncommitted changes out"
    )
    parser.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> None:
    target = PackTarget(options.python, options.platform)
    out = pack(Order(options.out, target, options.study, options.commit))
    print(f"{out}: {out.stat().st_size / 1e6:,.0f} MB, SHA-256 {sha256_file(out)}")
    print(f"on the other machine: tar xf {out.name} && cd {TOP} && ./{LAUNCHER}")
