"""A made-up history as long as one of years: trends with known changes and awkward texts."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import numpy as np

from tec.regression import TIMED, ChangePoint, Metric, Point, Trend

CARD = {"cpu": "Xeon", "gpus": "NVIDIA H100 80GB HBM3, 85 GB", "driver": "580.159.04"}
HOSTILE = (
    "</script><script>document.title='taken'</script> "
    "\"quoted\" & <b>bold</b> 'x' `|` \u2028 \N{GREEK SMALL LETTER MU}"
)
SYSTEM = "18095eacf794"
CHANGES = (0.3, 0.62, 0.9)
"""Where a trend changes, as shares of its length."""

LEVELS: dict[Metric, tuple[float, ...]] = {
    "tg_tps": (150.0, 145.5, 161.0, 160.0),
    "pp_tps": (3000.0, 2900.0, 2910.0, 3100.0),
    "hit_rate": (0.9401, 0.9402, 0.9311, 0.9311),
    "bytes_moved": (5.1e10, 5.05e10, 5.3e10, 5.3e10),
}


def commit_of(run: int) -> str:
    """Return the hash of the commit that a run measured."""
    return hashlib.sha1(str(run).encode(), usedforsecurity=False).hexdigest()


def subjects_of(runs: int) -> dict[str, str]:
    """Return the subjects of the commits; the last one would run if it were not escaped."""
    found = {commit_of(run): f"Change number {run} of the fill kernel" for run in range(runs)}
    return {**found, commit_of(runs - 1): HOSTILE}


def make_trend(row: str, arm: str, metric: Metric, runs: int, evidence: str = "gpu") -> Trend:
    """Return a trend of `runs` points; dates go backwards once."""
    random = np.random.default_rng([len(row), len(arm), len(metric), runs])
    bounds = [0, *(int(share * runs) for share in CHANGES), runs]
    levels = np.repeat(LEVELS[metric], np.diff(bounds))
    noise = 0.006 if metric in TIMED else 0.0
    values = levels * np.exp(random.normal(0, noise, runs))
    half = values * noise * random.uniform(0.6, 1.4, runs)
    start = datetime(2025, 1, 1, tzinfo=UTC)
    points = tuple(
        Point(
            index=run,
            started_at=start + timedelta(hours=9 * (run if run != runs // 2 else 0)),
            commit=commit_of(run),
            build=f"{run:012x}",
            session=f"{run:012x}",
            value=value,
            lo=value - width,
            hi=value + width,
            launches=5,
        )
        for run, (value, width) in enumerate(zip(values.tolist(), half.tolist(), strict=True))
    )
    changes = tuple(
        ChangePoint(
            index=at,
            commit=commit_of(at),
            before=before,
            after=after,
            ratio=after / before,
            p=0.001,
        )
        for at, before, after in zip(
            bounds[1:-1], LEVELS[metric][:-1], LEVELS[metric][1:], strict=True
        )
        if before != after
    )
    return Trend.model_validate(
        {
            "row": row,
            "arm": arm,
            "protocol": "replay",
            "system": SYSTEM,
            "evidence": evidence,
            "metric": metric,
            "machine": CARD,
            "points": points,
            "change_points": changes,
        }
    )


def make_trends(runs: int) -> list[Trend]:
    """Return twelve trends of so many points: three arms of four metrics."""
    arms = ("cached-c32", "cached-c64", "ncmoe-99")
    return [
        make_trend("qwen3-30b-a3b-q8_0", arm, metric, runs) for arm in arms for metric in LEVELS
    ]
