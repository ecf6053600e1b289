"""Model files that a study needs and a pack does not hold."""

from __future__ import annotations

from pathlib import Path

from tec.config import FileSource, HubSource, Row, Study
from tec.errors import TecError
from tec.hub_lock import pinned
from tec.nearest import check_known
from tec.pack_manifest import MODELS
from tec.yaml_file import load_yaml


def load_packed_study(project: Path, name: str) -> Study:
    """Return a study as the packed project has it.

    Raises:
        TecError: it is not there, or it is wrong.
    """
    studies = project / "configs" / "studies"
    check_known("study", name, [path.stem for path in studies.glob("*.yaml")], where=studies)
    return load_yaml(studies / f"{name}.yaml", Study)


def missing_models(project: Path, study: Study) -> list[str]:
    """Return a line for each row in full whose model file is not in the project.

    Raises:
        TecError: a row says that its file is in the project, and the commit does not have it.
    """
    folder = project / "configs" / "models"
    names = [name for name in study.all_rows if study.variant(name) == "full"]
    rows = [load_yaml(folder / f"{name}.yaml", Row) for name in names]
    return [line for row in rows if (line := _missing(project, row))]


def _missing(project: Path, row: Row) -> str | None:
    if isinstance(row.source, HubSource):
        return _on_the_hub(project, row.name, row.source)
    return _in_a_file(project, row.name, row.source) if row.source else None


def _in_a_file(project: Path, row: str, source: FileSource) -> str | None:
    if source.path.is_absolute():
        return f"{row}: {source.path}"
    if (project / source.path).is_file():
        return None
    raise TecError(
        f"row {row} needs {source.path}, which the commit does not have",
        f"configs/models/{row}.yaml",
        "commit the file, or name it by an absolute path that is the same on the other machine",
    )


def _on_the_hub(project: Path, row: str, source: HubSource) -> str:
    entry = pinned(project / "configs" / "hub.lock.json", row, source)
    size = f"{entry.size / 1e9:,.2f} GB" if entry else "not pinned yet"
    return f"{row}: {', '.join(source.files)} ({size})"


def instructions(study: Study, missing: list[str]) -> str:
    """Return what to do about them, for the pack's README and the screen; empty if there are none.

    The hub's cache has links, which a plain copy to another machine would break.
    """
    if not missing:
        return ""
    rows = " ".join(line.partition(":")[0] for line in missing)
    listed = "\n".join(f"    {line}" for line in missing)
    return f"""
Model files are not packed. Study {study.name} needs:

{listed}

Where the network is, fetch them, and commit configs/hub.lock.json before you pack: it says what
the files have to be. `tec fetch` prints where they are; copy them, not the links, into the pack:

    tec fetch {rows}
    mkdir tec-pack/{MODELS} && cp -L FILE... tec-pack/{MODELS}    # or where TEC_MODELS says
"""
