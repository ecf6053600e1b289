"""Archives that are the same bytes for the same files."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tec.errors import TecError
from tec.files import replacing
from tec.progress import Progress, gigabytes

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.zst")
GZIP_LEVEL = 6
ZSTD = ("zstd", "--quiet", "-10", "--threads=2", "--stdout")
"""With more threads than one the bytes do not depend on their number."""
RECORD = 4096
"""More than what the archive adds to each file: a header and padding, for a long path twice."""


def check_ending(path: Path) -> None:
    """Raise a TecError unless an archive of this name can be made."""
    if not path.name.endswith(ENDINGS):
        raise TecError(
            "cannot tell the archive's format from its name",
            path,
            f"end it in {', '.join(ENDINGS)}",
        )
    if path.name.endswith(".zst") and shutil.which(ZSTD[0]) is None:
        raise TecError("zstd is missing", path, "install zstd, or end the name in .tar.gz")


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise a TecError unless `needed` bytes are free in `folder`, or where it is going to be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise TecError(
            f"{what} takes up to {needed / 1e9:.2f} GB, and only {free / 1e9:.2f} GB are free",
            folder,
            "free some space, or name a file on another disk: tec pack --out FILE",
        )


def write_archive(path: Path, top: str, members: Mapping[str, Path], seconds: int) -> None:
    """Write an archive, all of it or nothing; its ending says how it is compressed.

    Owners, times and modes are fixed: of a mode only whether the owner may execute the file.

    Args:
        path: the archive.
        top: the folder that it unpacks to.
        members: path below `top` -> file or symbolic link with the content.
        seconds: the time of every member, since 1970.

    Raises:
        TecError: it does not fit on the disk.
    """
    total = sum(file.lstat().st_size + RECORD for file in members.values())
    check_space(path.parent, total, "the archive")
    progress = Progress(f"writing {path.name}", measure=gigabytes)
    done = 0
    with (
        replacing(path) as temporary,
        _stream(temporary, path.name) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(members, key=_order):
            _add(archive, f"{top}/{name}", members[name], seconds)
            done += members[name].lstat().st_size + RECORD
            progress.update(done, total)
    progress.finish("done")


def _order(name: str) -> tuple[bool, str]:
    """Return the place of a member: the pack's own files come before its folders."""
    return "/" in name, name


def _add(archive: tarfile.TarFile, name: str, file: Path, seconds: int) -> None:
    info = tarfile.TarInfo(name)
    info.mtime = seconds
    if file.is_symlink():
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.fspath(file.readlink()), 0o777
        archive.addfile(info)
        return
    status = file.stat()
    info.size = status.st_size
    info.mode = 0o755 if status.st_mode & 0o100 else 0o644
    with file.open("rb") as content:
        archive.addfile(info, content)


@contextmanager
def _stream(file: Path, name: str) -> Iterator[IO[bytes]]:
    """Yield where to write the archive so that `file` gets it, compressed as `name` ends."""
    with file.open("wb") as output:
        if name.endswith(".zst"):
            with _zstd(output) as stream:
                yield stream
        elif name.endswith((".gz", ".tgz")):
            with gzip.GzipFile("", "wb", GZIP_LEVEL, output, mtime=0) as compressed:
                yield compressed  # type: ignore[misc]  # what tarfile needs of a file it has
        else:
            yield output


@contextmanager
def _zstd(output: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield the input of a zstd that writes to `output`; what goes wrong it prints itself."""
    readable, writable = os.pipe()
    with os.fdopen(writable, "wb") as stream:
        process = subprocess.Popen(ZSTD, stdin=readable, stdout=output)
        os.close(readable)
        try:
            yield stream
            stream.close()
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
    if process.returncode != 0:
        raise TecError("zstd failed", output.name, "end the archive's name in .tar.gz")
