"""JSON schemas of the files people and tools read and write, generated from the models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pydantic import BaseModel

from tec import records
from tec.config import Row, Study
from tec.errors import TecError
from tec.files import write_atomically
from tec.paths import SCHEMAS
from tec.pin import Pin


def schemas() -> dict[str, str]:
    """Return name -> JSON schema text."""
    models: dict[str, type[BaseModel]] = {"study": Study, "row": Row, "pin": Pin}
    made = {name: model.model_json_schema() for name, model in models.items()} | records.schemas()
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in made.items()}


def drift(folder: Path = SCHEMAS) -> list[Path]:
    """Return the files of `folder` that do not match the generated schemas."""
    wanted = {folder / f"{name}.json": text for name, text in schemas().items()}
    surplus = set(folder.glob("*.json")).difference(wanted)
    changed = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
    return sorted([*surplus, *changed])


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec schema`."""
    parser = sub.add_parser("schema", help="check or write the JSON schemas")
    parser.add_argument("--write", action="store_true", help="write configs/schema")
    parser.set_defaults(run=lambda options: _write() if options.write else _check())


def _write() -> None:
    for path in SCHEMAS.glob("*.json"):
        path.unlink()
    for name, text in schemas().items():
        write_atomically(SCHEMAS / f"{name}.json", text)


def _check() -> None:
    if differing := drift():
        names = ", ".join(path.name for path in differing)
        raise TecError(f"schemas differ from the models: {names}", SCHEMAS, "tec schema --write")
