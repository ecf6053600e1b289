"""What `tec regress` finds, and how often it errs: `python benchmarks/regression.py`.

Reports are simulated on the noise of real launches (`tec.regression_simulation`), and drawn from
the real launches themselves; beside them, with the same launches, a bot that calls 5 % between two
runs a change. Writes `regression/detection.csv` and `regression/detection.svg`; equal launches and
seeds give equal files. `--launches FILE` takes other real launches: a history of builds that do not
differ, at least two launches a round.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tec.cells import Launches
from tec.change_points import change_points
from tec.compare_paired import confirmed_of, suspected_of
from tec.detection import LEVEL, SCREEN_LEVEL
from tec.figure_style import PAGE_WIDTH, panels, percent_axis, save, style
from tec.files import write_atomically
from tec.history import load
from tec.launches import condense
from tec.paths import REFERENCE
from tec.records import read_records
from tec.regression import LABELS, Report
from tec.regression_simulation import (
    THRESHOLD,
    Noise,
    Outcome,
    cell_names,
    history_trial,
    long_series,
    noise_of,
    paired_trial,
    rounds_of,
    share,
    timed_of,
)

FOLDER = Path(__file__).with_name("regression")
CELLS = 8
ROUNDS = (10, 20, 40)
EFFECTS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
SESSIONS = 20
SESSION_SPREAD = 0.01
"""Between sessions: nothing here was measured on many days, so it is assumed, and named so."""
SERIES = 60

Row = dict[str, Any]


def main() -> None:
    """Write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=Path, default=FOLDER / "launches.jsonl")
    parser.add_argument("--trials", type=int, default=2000, help="without a change; a fifth with")
    parser.add_argument("--figure-only", action="store_true")
    options = parser.parse_args()
    if not options.figure_only:
        rows = list(_rows(load(options.launches).records, options.trials))
        text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format="%.4g")
        write_atomically(FOLDER / "detection.csv", text)
    table = pd.read_csv(FOLDER / "detection.csv")
    with style():
        save(figure(table), FOLDER / "detection.svg")
    _write_page(table)


def _rows(launches: Launches, trials: int) -> Iterator[Row]:
    """Yield the lines of the table, with progress."""
    noises = [
        noise_of("busy CPU, mean step", launches, "tg_tps", SESSION_SPREAD),
        noise_of("busy CPU, median step", launches, "step_tps", SESSION_SPREAD),
        noise_of("H100", _gpu_launches(), "tg_tps", SESSION_SPREAD),
    ]
    for noise in noises:
        for effect in (0.0, *EFFECTS):
            number = trials if not effect else trials // 5
            for rounds in ROUNDS:
                yield _paired(noise, rounds, effect, number)
            yield _after_history(noise, effect, number)
            if effect:
                yield _delay(noise, effect, max(20, trials // 40))
        yield _quiet_series(noise, max(20, trials // 10))
    for rounds in (10, 20):
        for effect in (0.0, *EFFECTS):
            yield _real(launches, rounds, effect, trials if not effect else trials // 5)


def _gpu_launches() -> Launches:
    """Return the kept launches of cached arms on graphics cards.

    They are of one build, so an arm's rounds count as one round of launches that do not differ.
    """
    found = [
        launch.model_copy(update={"round": 0})
        for file in sorted(REFERENCE.glob("*/*/runs/*.replay.jsonl"))
        for launch in condense(read_records(file), {})
    ]
    return [launch for launch in found if launch.evidence == "gpu" and launch.values.hits]


def _paired(noise: Noise, rounds: int, effect: float, trials: int) -> Row:
    def trial(rng: np.random.Generator) -> Outcome:
        return paired_trial(rng, noise, CELLS, rounds, math.log1p(-effect))

    row = {"part": "interleaved", "noise": noise.name, "spread": noise.spread, "rounds": rounds}
    return row | _outcomes(trial, effect, trials)


def _after_history(noise: Noise, effect: float, trials: int) -> Row:
    def trial(rng: np.random.Generator) -> Outcome:
        return history_trial(rng, noise, CELLS, SESSIONS, 5, math.log1p(-effect))

    row = {"part": "after a history", "noise": noise.name, "spread": noise.spread, "rounds": 5}
    return row | _outcomes(trial, effect, trials)


def _real(launches: Launches, rounds: int, effect: float, trials: int) -> Row:
    """Return what becomes of rounds of real launches, drawn without replacement, sides at random.

    The first half is the screen, the second the confirmation; one cell.
    """
    turns = [turn for arm in rounds_of(launches, "step_tps") for turn in arm if len(turn) == 3]
    values = np.array(turns)
    (name,) = cell_names(1)
    shift = math.log1p(-effect)

    def trial(rng: np.random.Generator) -> Outcome:
        drawn = rng.permuted(values[rng.permutation(len(values))[: 2 * rounds]], axis=1)
        first = {name: timed_of(drawn[:rounds], shift)}
        again = {name: timed_of(drawn[rounds:], shift)}
        suspected = suspected_of(first, SCREEN_LEVEL)
        alarm = bool(confirmed_of(first, {each: again[each] for each in suspected}))
        bot = first[name].ratios[0][0] < math.log(1 - THRESHOLD)
        changed = bool(effect)
        return Outcome(
            alarm and not changed, alarm and changed, bot and not changed, bot and changed
        )

    spread = float(np.std(values - values.mean(axis=1, keepdims=True)) * math.sqrt(3 / 2))
    row = {"part": "real rounds", "noise": "busy CPU, median step", "spread": spread}
    return row | {"rounds": rounds} | _outcomes(trial, effect, trials)


def _outcomes(trial: Callable[[np.random.Generator], Outcome], effect: float, trials: int) -> Row:
    """Run trials and return the shares of those that err, or that find the change."""
    rng = np.random.default_rng(int(effect * 1e6))
    outcomes = [trial(rng) for _ in range(trials)]
    ours = [each.found if effect else each.alarm for each in outcomes]
    bot = [each.threshold_found if effect else each.threshold_alarm for each in outcomes]
    measure = "detection" if effect else "false alarms"
    row: Row = {"effect": effect, "trials": trials, "measure": measure}
    for name, found in (("tec", ours), ("threshold", bot)):
        row |= dict(zip((name, f"{name}_lo", f"{name}_hi"), share(found), strict=True))
    print(row, file=sys.stderr, flush=True)
    return row


def _delay(noise: Noise, effect: float, trials: int) -> Row:
    """Return after how many sessions a change in the middle of a series is seen: the median."""
    rng = np.random.default_rng(int(effect * 1e6))
    half = SERIES // 2
    delays = []
    for _ in range(trials):
        series = long_series(rng, noise, SERIES, 5, math.log1p(-effect), half)
        seen = (n for n in range(half + 1, SERIES + 1) if _seen(series[:n], half))
        delays.append(next(seen, SERIES + 1) - half)
    row = _series_row(noise, "delay", effect, trials)
    values = sorted(delays)
    quarters = values[len(values) // 4], values[3 * len(values) // 4]
    print(row, median(values), file=sys.stderr, flush=True)
    return row | {"tec": median(values), "tec_lo": quarters[0], "tec_hi": quarters[1]}


def _seen(series: Sequence[float], at: int) -> bool:
    return any(abs(index - at) <= 3 for index, _ in change_points(series))


def _quiet_series(noise: Noise, trials: int) -> Row:
    """Return how many series without a change are cut."""
    rng = np.random.default_rng(0)
    cut = [bool(change_points(long_series(rng, noise, SERIES, 5, 0, 0))) for _ in range(trials)]
    row = _series_row(noise, "false alarms", 0.0, trials)
    return row | dict(zip(("tec", "tec_lo", "tec_hi"), share(cut), strict=True))


def _series_row(noise: Noise, measure: str, effect: float, trials: int) -> Row:
    return {
        "part": "change points",
        "noise": noise.name,
        "spread": noise.spread,
        "rounds": 5,
        "effect": effect,
        "trials": trials,
        "measure": measure,
    }


def _write_page(table: pd.DataFrame) -> None:
    """Write the tables of the page, between its markers."""
    page = FOLDER / "README.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    tables = "\n\n".join([_rates(table), _planted()])
    write_atomically(page, f"{before}{_BEGIN}\n{tables}\n\n{_END}{after}")


_BEGIN = "<!-- tables: written by benchmarks/regression.py -->"
_END = "<!-- end of the tables -->"


def _rates(table: pd.DataFrame) -> str:
    """Return false alarms and detection as a Markdown table."""
    shown = [effect for effect in EFFECTS if effect >= 0.01]
    head = ["comparison", "noise", "spread", "rounds", "reports", "false alarms", "5 %, two runs"]
    head += [f"{effect:.0%} slower found" for effect in shown]
    lines = [head, ["---"] * len(head)]
    rated = table[table.part != "change points"]
    for (part, noise, rounds), group in rated.groupby(["part", "noise", "rounds"], sort=False):
        rates = group.set_index("effect")
        quiet = rates.loc[0.0]
        line = [part, noise, f"{quiet.spread:.1%}", str(rounds), f"{quiet.trials:.0f}"]
        line += [f"{quiet.tec:.1%} [{quiet.tec_lo:.1%}, {quiet.tec_hi:.1%}]"]
        line += [f"{quiet.threshold:.0%}", *(f"{rates.tec[effect]:.0%}" for effect in shown)]
        lines.append(line)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _planted() -> str:
    """Return what was found of the changes planted into the real binary."""
    lines = ["| planted | metric | finding | ratio | detail |", "| --- | --- | --- | --- | --- |"]
    for name, file in (("3 % slower", "planted.json"), ("another victim", "planted-victims.json")):
        report = Report.model_validate_json((FOLDER / file).read_bytes())
        for cell in report.comparisons:
            ratio = "" if cell.ratio is None else f"{cell.ratio:.4f}"
            if cell.lo is not None and cell.hi is not None:
                ratio += f" [{cell.lo:.4f}, {cell.hi:.4f}]"
            words = (name, LABELS[cell.metric], cell.finding, ratio, cell.detail)
            lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def figure(table: pd.DataFrame) -> Figure:
    """Return the figure: false alarms, detection, delay."""
    drawn, axes = panels(
        ["False alarms of a report", f"Found in {max(ROUNDS)} rounds", "Delay of a change point"],
        height=2.2,
    )
    drawn.set_figwidth(PAGE_WIDTH)
    paired = table[table.part == "interleaved"]
    quiet, found = (paired[paired.measure == each] for each in ("false alarms", "detection"))
    bars = quiet.melt(["noise", "rounds"], ["tec", "threshold"], "bot", "rate")
    bars = bars.assign(bot=bars.bot.replace({"tec": "tec regress", "threshold": "5 %, two runs"}))
    sns.barplot(bars, y="noise", x="rate", hue="bot", ax=axes[0], palette="mako", errorbar=None)
    axes[0].axvline(LEVEL, color="0.1", linewidth=0.8, linestyle="--")
    axes[0].set(xlabel="of reports; dashed: stated", ylabel="")
    axes[0].set_xscale("symlog", linthresh=LEVEL)
    curves = found[found.rounds == max(ROUNDS)]
    _curves(curves, axes[1])
    sns.lineplot(
        curves,
        x="effect",
        y="threshold",
        hue="noise",
        ax=axes[1],
        palette="mako",
        legend=False,
        linestyle=":",
        linewidth=1,
    )
    axes[1].set(xlabel="slower by; dotted: 5 %, two runs", ylabel="share of reports")
    _curves(table[table.measure == "delay"], axes[2], legend=False)
    axes[2].set(xlabel="slower by", ylabel=f"sessions; {SERIES // 2 + 1}: not seen")
    for panel in axes[1:]:
        panel.set_xticks([0.01, 0.03, 0.05, 0.1])
    for axis in (axes[1].xaxis, axes[1].yaxis, axes[2].xaxis, axes[0].xaxis):
        percent_axis(axis)
    for axis in axes[:2]:
        axis.legend(title=None, fontsize="x-small")
    return drawn


def _curves(table: pd.DataFrame, ax: Axes, legend: Literal["auto", False] = "auto") -> None:
    """Draw what `tec regress` does against the effect, a curve for each noise."""
    sns.lineplot(
        table,
        x="effect",
        y="tec",
        hue="noise",
        style="noise",
        markers=True,
        dashes=False,
        ax=ax,
        palette="mako",
        legend=legend,
    )


if __name__ == "__main__":
    main()
