"""Launches for tests of the history and of what compares them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from tec.history import HistoryRecord, Values

START = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW = "0" * 11 + "1", "0" * 11 + "2"
MACHINE = {"cpu": "a processor", "gpus": "a card", "driver": "580.1"}


def launch(number: int = 0, **changes: Any) -> HistoryRecord:
    """Return one launch; equal numbers and changes give equal launches."""
    values: dict[str, Any] = {
        "row": "toy",
        "arm": "cached-c8",
        "protocol": "prompts",
        "system": "a" * 12,
        "test": "prompts",
        "round": number,
        "order": number,
        "session": "5" * 12,
        "started_at": START + timedelta(seconds=number),
        "study": "fake",
        "evidence": "functional",
        "commit": "c" * 40,
        "build": OLD,
        "series_hash": "s",
        "llama_commit": "l",
        "target": "cpu",
        "settings": "5" * 12,
        "model": "d" * 12,
        "machine": MACHINE,
        "values": Values(tg_tps=100.0, hits=80, misses=20, routing="e" * 12, tokens="f" * 12),
    } | changes
    digest = hashlib.sha256(f"{number} {sorted(changes.items(), key=str)}".encode()).hexdigest()
    return HistoryRecord.model_validate({"id": digest[:16], **values})


def session(number: int, speeds: Sequence[float], **changes: Any) -> list[HistoryRecord]:
    """Return the launches of one session, one a round."""
    return [
        launch(
            round_,
            session=f"{number:012d}",
            started_at=START + timedelta(days=number, seconds=round_),
            values=Values(tg_tps=speed),
            **changes,
        )
        for round_, speed in enumerate(speeds)
    ]


def interleaved(
    rng: np.random.Generator, rounds: int, effect: float = 0.0, spread: float = 0.02, **changes: Any
) -> list[HistoryRecord]:
    """Return a session of a new build and two launches of the old one in every round.

    Args:
        rng: the source of chance.
        rounds: of the session.
        effect: log ratio of the new build to the old one.
        spread: of the launches; tails are Student's with three degrees of freedom.
        changes: of all launches.
    """
    made = []
    drift = np.cumsum(rng.normal(0, spread, rounds))
    name = f"{rng.integers(10**11):012d}"
    for number in range(rounds):
        for order, build in enumerate(rng.permutation([NEW, OLD, OLD])):
            log = drift[number] + spread * rng.standard_t(3) + (effect if build == NEW else 0)
            made.append(
                launch(
                    number,
                    **{
                        "session": name,
                        "order": 3 * number + order,
                        "build": str(build),
                        "values": Values(tg_tps=float(100 * np.exp(log)), hits=80, misses=20),
                        **changes,
                    },
                )
            )
    return made
