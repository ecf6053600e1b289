"""The paper: claims and Typst source to PDF, `tec paper results/<study>`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import typst

from tec.claims import Bases, ClaimsFile, Resolved, resolve_claims
from tec.errors import TecError
from tec.files import replacing, write_atomically
from tec.paths import ROOT
from tec.prose import check_prose
from tec.yaml_file import load_yaml


def make_paper(results: Path, root: Path = ROOT) -> list[Path]:
    """Make `results/claims.json` and from it `results/paper.pdf`; return both.

    The same results give the same bytes: the PDF has no date, and only fonts that come with Typst
    and matplotlib are used.

    Args:
        results: a study's folder, inside `root`.
        root: the repository; its `paper/` is the source.

    Raises:
        TecError: a claim has no value, the text breaks the rule of `tec.prose`, a table or figure
            is missing, or Typst refuses the source.
    """
    folder = _inside(results, root)
    source = root / "paper"
    definitions = load_yaml(source / "claims.yaml", ClaimsFile)
    sections, layout = (_read(source.glob(name)) for name in ("sections/*.typ", "*.typ"))
    check_prose(sections, layout.values(), definitions)
    resolved = resolve_claims(definitions.claims, Bases(results, root))
    claims, pdf = results / "claims.json", results / "paper.pdf"
    write_atomically(claims, _to_json(resolved))
    with replacing(pdf) as temporary:
        _compile(source / "paper.typ", temporary, root, {"results": f"/{folder.as_posix()}"})
    return [claims, pdf]


def _read(paths: Iterable[Path]) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in sorted(paths)}


def _inside(results: Path, root: Path) -> Path:
    """Return `results` relative to `root`: Typst reads nothing outside its root."""
    try:
        return results.resolve().relative_to(root.resolve())
    except ValueError:
        raise TecError(
            "the results are outside the repository", results, f"use {root}/results"
        ) from None


def _to_json(resolved: dict[str, Resolved]) -> str:
    return (
        json.dumps({name: claim.model_dump() for name, claim in resolved.items()}, indent=2) + "\n"
    )


def _compile(source: Path, pdf: Path, root: Path, inputs: dict[str, str]) -> None:
    try:
        typst.compile(
            source,
            output=pdf,
            root=root,
            font_paths=[Path(mpl.get_data_path()) / "fonts" / "ttf"],
            ignore_system_fonts=True,
            sys_inputs=inputs,
        )
    except typst.TypstError as error:
        raise TecError(
            f"Typst: {error}", source, "correct the source or make the missing file"
        ) from error


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec paper`."""
    parser = sub.add_parser("paper", help="check the claims and make the paper as PDF")
    parser.add_argument("results", type=Path, help="the study's folder, such as results/demo")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    for path in make_paper(options.results):
        print(path)
