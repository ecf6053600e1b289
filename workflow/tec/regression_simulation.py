"""Launches with the noise of real ones, to find out what a comparison finds and how often it errs.

Noise is not assumed but drawn: the differences between launches of one build in one round of real
sessions, as they are, tails included. What neighbouring rounds share is a first-order
autoregression and what a session shares a normal value, both with the spread that the sessions
show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

import numpy as np

from tec.cells import Cell, Launches
from tec.compare_paired import Timed, confirmed_of, suspected_of
from tec.detection import LEVEL, SCREEN_LEVEL, holm, predicted
from tec.history import Series
from tec.regression import Metric
from tec.stats import Floats
from tec.trends import value_of

THRESHOLD = 0.05
"""Of the bot that is compared with: slower by more in one run beside one other."""

_LONGEST_MEMORY = 0.95


@dataclass(frozen=True)
class Noise:
    """How launches of one build differ, in log throughput."""

    name: str
    launches: tuple[float, ...]
    """Differences of launches from the mean of their round, scaled to single launches."""
    drift: float
    """Standard deviation of what all launches of a round share."""
    memory: float
    """Correlation of that from round to round."""
    session: float
    """Standard deviation of what all launches of a session share."""

    @cached_property
    def own(self) -> Floats:
        """The differences as an array."""
        return np.asarray(self.launches)

    @property
    def spread(self) -> float:
        """Standard deviation of single launches, without drift."""
        return float(np.std(self.own))

    def session_of(self, rng: np.random.Generator, rounds: int, sides: int) -> Floats:
        """Return the log throughput of one session's launches [rounds, sides]."""
        own = rng.choice(self.own, size=(rounds, sides))
        steps = rng.normal(0, self.drift, rounds)
        shared = np.empty(rounds)
        level = rng.normal(0, self.drift)
        for number, step in enumerate(steps):
            level = self.memory * level + math.sqrt(1 - self.memory**2) * step
            shared[number] = level
        values: Floats = own + shared[:, None] + rng.normal(0, self.session)
        return values


def noise_of(name: str, launches: Launches, metric: Metric, session: float) -> Noise:
    """Return the noise of real launches of one build.

    Args:
        name: of the noise, for tables.
        launches: of builds that do not differ, at least two in every round.
        metric: a throughput.
        session: standard deviation between sessions, which one session cannot tell.

    Raises:
        ValueError: fewer than four rounds have two launches.
    """
    arms = rounds_of(launches, metric)
    rounds = [values for of_arm in arms for values in of_arm]
    if len(rounds) < 4:
        raise ValueError(f"{name}: {len(rounds)} rounds have two launches; four are needed")
    own = [
        (value - fmean(values)) * math.sqrt(len(values) / (len(values) - 1))
        for values in rounds
        for value in values
    ]
    longest = np.array([fmean(values) for values in max(arms, key=len)])
    around = longest - longest.mean()
    total = float((around**2).sum())
    memory = float((around[1:] * around[:-1]).sum()) / total if total else 0.0
    shared = total / len(around) - float(np.var(own)) / fmean(len(values) for values in rounds)
    drift = math.sqrt(max(shared, 0.0)) if len(around) > 1 else 0.0
    return Noise(name, tuple(own), drift, min(max(memory, 0.0), _LONGEST_MEMORY), session)


def rounds_of(launches: Launches, metric: Metric) -> list[list[list[float]]]:
    """Return the log throughput of each arm's rounds that have two launches or more.

    An arm is one of a session, row and test; the order is that of the launches.
    """
    found: dict[tuple[str, str, str, str], dict[int, list[float]]] = {}
    for launch in launches:
        if (value := value_of(launch, metric)) is not None:
            key = (launch.session, launch.row, launch.arm, launch.test)
            found.setdefault(key, {}).setdefault(launch.round, []).append(math.log(value))
    arms = ([turn for turn in of_arm.values() if len(turn) > 1] for of_arm in found.values())
    return [of_arm for of_arm in arms if of_arm]


def timed_of(values: Floats, effect: float) -> Timed:
    """Return a cell from the launches of a session.

    Args:
        values: log throughput of new, old, twin in each round [rounds, 3].
        effect: log ratio by which the new build really differs.
    """
    ratios = values[:, 0] + effect - values[:, 1]
    same = values[:, 2] - values[:, 1]
    return Timed((tuple(map(float, ratios)),), (tuple(map(float, same)),))


def cell_names(cells: int) -> list[Cell]:
    """Return so many different cells."""
    series = (Series("row", f"arm{number}", "prompts", "0" * 12) for number in range(cells))
    return [Cell(each, "tg_tps") for each in series]


@dataclass(frozen=True)
class Outcome:
    """What a report and the bot with a threshold say of the same launches."""

    alarm: bool
    """Of a cell without a change."""
    found: bool
    """The changed cell is reported as slower."""
    threshold_alarm: bool
    threshold_found: bool


def paired_trial(
    rng: np.random.Generator, noise: Noise, cells: int, rounds: int, effect: float
) -> Outcome:
    """Return what becomes of one report of interleaved builds; one cell is slower by `effect`.

    Args:
        rng: the source of chance.
        noise: of the launches.
        cells: in the report.
        rounds: of the first session, and of the confirmation.
        effect: log ratio of the first cell, 0 or less.
    """
    names = cell_names(cells)
    effects = dict.fromkeys(names, 0.0) | {names[0]: effect}
    values = {name: noise.session_of(rng, rounds, 3) for name in names}
    first = {name: timed_of(values[name], effects[name]) for name in names}
    suspected = sorted(suspected_of(first, SCREEN_LEVEL))
    again = {name: timed_of(noise.session_of(rng, rounds, 3), effects[name]) for name in suspected}
    alarms = confirmed_of(first, again)
    limit = math.log(1 - THRESHOLD)
    bot = {name for name in names if first[name].ratios[0][0] < limit}
    changed = {names[0]} if effect else set()
    return Outcome(
        alarm=bool(alarms - changed),
        found=bool(alarms & changed),
        threshold_alarm=bool(bot - changed),
        threshold_found=bool(bot & changed),
    )


def history_trial(
    rng: np.random.Generator, noise: Noise, cells: int, sessions: int, rounds: int, effect: float
) -> Outcome:
    """Return what becomes of one session of `rounds` launches after a history of `sessions`."""
    p, slower, bot = [], [], []
    for cell in range(cells):
        shift = 0.0 if cell else effect
        past = [float(np.median(noise.session_of(rng, rounds, 1))) for _ in range(sessions)]
        now = noise.session_of(rng, rounds, 1)[:, 0] + shift
        p.append(predicted(past, float(np.median(now)))[0])
        slower.append(median(now) < median(past))
        before = float(noise.session_of(rng, 1, 1)[0, 0])
        bot.append(float(now[0]) - before < math.log(1 - THRESHOLD))
    alarms = [adjusted <= LEVEL for adjusted in holm(p)]
    quiet = slice(1, None) if effect else slice(None)
    return Outcome(
        alarm=any(alarms[quiet]),
        found=bool(effect) and alarms[0] and slower[0],
        threshold_alarm=any(bot[quiet]),
        threshold_found=bool(effect) and bot[0],
    )


def long_series(
    rng: np.random.Generator, noise: Noise, sessions: int, rounds: int, effect: float, at: int
) -> list[float]:
    """Return the medians of a history's sessions; from session `at` on they differ by `effect`."""
    return [
        float(np.median(noise.session_of(rng, rounds, 1))) + (effect if number >= at else 0.0)
        for number in range(sessions)
    ]


def share(outcomes: Sequence[bool]) -> tuple[float, float, float]:
    """Return the share of true values with its 95 % interval (Wilson, JASA 22, 1927)."""
    n, z = len(outcomes), 1.959964
    rate = sum(outcomes) / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, max(0.0, middle - half), min(1.0, middle + half)
