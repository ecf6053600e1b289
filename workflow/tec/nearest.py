"""Suggestions for names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tec.errors import TecError


def check_known(what: str, name: str, known: Iterable[str], where: object = None) -> None:
    """Raise a TecError with the nearest known name unless `name` is one of `known`."""
    names = list(known)
    if name not in names:
        raise TecError(f"unknown {what} '{name}'", where, suggestion(name, names))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the nearest known name, or all of them when none is near."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"did you mean '{close[0]}'?"
    return f"known names: {', '.join(names) or 'none'}"
