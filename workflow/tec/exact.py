"""Metrics that are the same in every launch of the same work: compared exactly.

The cache decides by what the router selects, so hits, misses and victims follow from the tokens.
Where the tokens differ there is nothing to compare, and parity has to say whether they may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from tec.history import HistoryRecord
from tec.quantities import MIB
from tec.records import Outcome
from tec.regression import Finding, Metric
from tec.trends import VRAM_TOLERANCE, value_of

EXACT: Final[tuple[Metric, ...]] = ("hit_rate", "victims", "bytes_moved", "vram_bytes", "parity")

_WORSE: Final[dict[Metric, int]] = {"hit_rate": -1, "bytes_moved": 1, "vram_bytes": 1}
"""In which direction more is worse."""

_RANK: Final[dict[Outcome, int]] = {"fail": 0, "not_run": 1, "pass": 2}


@dataclass(frozen=True)
class Exact:
    """A finding about one metric of one series."""

    finding: Finding
    detail: str
    old: float | None = None
    new: float | None = None


def compare_exact(
    old: Sequence[HistoryRecord], new: Sequence[HistoryRecord], metric: Metric
) -> Exact | None:
    """Return what a metric of one series shows; None where neither side has it.

    Args:
        old: launches of one build, with the settings and model of the new ones.
        new: launches of another.
        metric: one of `EXACT`.
    """
    before, after = _seen(old, metric), _seen(new, metric)
    if not before and not after:
        return None
    if not before or not after:
        which = "earlier" if not before else "new"
        return Exact("measured nothing", f"the {which} launches did not measure it")
    if metric == "parity":
        return _parity(old[-1], new[-1])
    if metric == "vram_bytes":
        return _vram(old, new)
    numbers = {"old": _middle(old, metric), "new": _middle(new, metric)}
    if differing := _ambiguous(before) or _ambiguous(after):
        return Exact("not comparable", f"launches of one build differ in {differing}", **numbers)
    if _tokens(old) != _tokens(new):
        return Exact("not comparable", "the decoded tokens differ: see parity", **numbers)
    if before == after:
        return Exact("no change", "equal", **numbers)
    return _changed(metric, numbers["old"], numbers["new"])


def _changed(metric: Metric, old: float | None, new: float | None) -> Exact:
    """Return the finding about a metric whose exact values differ."""
    if old is None or new is None or old == new:
        return Exact("regressed", "other experts were cached, on the same tokens", old, new)
    worse = (new - old) * _WORSE[metric] > 0
    text = f"{old:.6g} became {new:.6g} on the same tokens"
    return Exact("regressed" if worse else "improved", text, old, new)


def _seen(launches: Sequence[HistoryRecord], metric: Metric) -> dict[str, set[object]]:
    """Return the different values of a metric by test."""
    found: dict[str, set[object]] = {}
    for launch in launches:
        values = launch.values
        exact: dict[str, object] = {
            "hit_rate": None if values.hits is None else (values.hits, values.misses),
            "victims": values.routing,
            "parity": None if values.parity is None else tuple(sorted(values.parity.items())),
        }
        value = exact[metric] if metric in exact else getattr(values, metric)
        if value is not None:
            found.setdefault(launch.test, set()).add(value)
    return found


def _ambiguous(seen: dict[str, set[object]]) -> str | None:
    """Return a test whose launches do not agree."""
    return next((test for test, values in seen.items() if len(values) > 1), None)


def _tokens(launches: Sequence[HistoryRecord]) -> set[tuple[str, str | None]]:
    return {(launch.test, launch.values.tokens) for launch in launches}


def _middle(launches: Sequence[HistoryRecord], metric: Metric) -> float | None:
    if metric not in _WORSE:
        return None
    return median(v for launch in launches if (v := value_of(launch, metric)) is not None)


def _vram(old: Sequence[HistoryRecord], new: Sequence[HistoryRecord]) -> Exact:
    before, after = (
        [launch.values.vram_bytes for launch in side if launch.values.vram_bytes is not None]
        for side in (old, new)
    )
    middles = {"old": float(median(before)), "new": float(median(after))}
    if min(after) > max(before) + VRAM_TOLERANCE:
        finding: Finding = "regressed"
    elif max(after) < min(before) - VRAM_TOLERANCE:
        finding = "improved"
    else:
        return Exact("no change", f"within {VRAM_TOLERANCE // MIB} MiB", **middles)
    return Exact(finding, f"{(middles['new'] - middles['old']) / MIB:+.0f} MiB", **middles)


def _parity(old: HistoryRecord, new: HistoryRecord) -> Exact:
    before, after = old.values.parity or {}, new.values.parity or {}
    parts: dict[Finding, list[str]] = {}
    for check in before | after:
        was, is_now = before.get(check, "not_run"), after.get(check, "not_run")
        if was != is_now:
            worse = _RANK[is_now] < _RANK[was]
            text = f"{check}: {was} became {is_now}".replace("not_run", "not run")
            parts.setdefault("regressed" if worse else "improved", []).append(text)
    for finding in ("regressed", "improved"):
        if finding in parts:
            return Exact(finding, "; ".join(parts[finding]))
    failed = [check for check, outcome in after.items() if outcome == "fail"]
    return Exact("no change", f"fails as before: {', '.join(failed)}" if failed else "equal")
