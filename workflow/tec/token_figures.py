"""Figures of single tokens and layers, drawn from the raw records on real prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tec.errors import TecError
from tec.figure_data import Results, by_capacity, policy, slots
from tec.figure_style import (
    COUNTED_ON_CPU,
    INK,
    NOT_EVIDENCE,
    Look,
    add_legend,
    arm_title,
    handle,
    label_axes,
    label_functional,
    looks,
    panels,
    percent_axis,
)
from tec.records import Record
from tec.stats import COLD_STEPS, Floats, decode_ns, decode_steps, latency_curve, steady_slice

_COLD_SHOWN = 4 * COLD_STEPS
"""Decode steps of a process that the cold-start figure shows."""
_ROLES = ("without", "least", "middle", "most")
"""What an arm is on the cold-start figure: without a cache, or by its capacity."""
_MOST_NUMBERED_LAYERS = 12
"""Cells of the layer figure hold their number up to this many layers."""


def latency(results: Results) -> Figure:
    """Time per token in the steady state: median, quartiles and 5 to 95 % of an arm's tokens."""
    rows = results.shown()
    records = {row: results.records(row, "prompts") for row in rows}
    arms = max(len(by_capacity(records[row])) for row in rows)
    figure, axes = panels(rows, height=0.75 + 0.17 * arms)
    for axis, row in zip(axes, rows, strict=True):
        times = {arm: _steady_ms(runs) for arm, runs in by_capacity(records[row]).items()}
        frame = pd.DataFrame(
            [(arm_title(arm), value) for arm, values in times.items() for value in values],
            columns=["arm", "ms"],
        )
        sns.boxplot(
            frame, x="ms", y="arm", ax=axis, whis=(5, 95), showfliers=False, linewidth=0.7,
            color="0.85", linecolor=INK, width=0.65,
        )  # fmt: skip
    label_axes(axes, "ms per token, steady state")
    failed = list(results.failures("full"))
    label_functional(figure, NOT_EVIDENCE, _functional(records), rows, failed)
    return figure


def cold_start(results: Results) -> Figure:
    """Time per token and hit rate from the first decoded token of a fresh process."""
    return _cold_start(results, "prompts")


def replay_start(results: Results) -> Figure:
    """Draw the same along a routing trace; the arm without a cache is the resident one."""
    return _cold_start(results, "replay")


def _cold_start(results: Results, protocol: str) -> Figure:
    rows = results.shown()
    records = {row: results.records(row, protocol) for row in rows}
    titles = [f"{row}\n{what}" for row in rows for what in ("time per token, ms", "hit rate")]
    figure, axes = panels(titles, across=4, in_column=2)
    chosen = {row: _chosen_arms(runs) for row, runs in records.items()}
    roles = looks(_ROLES)
    for row, time_axis, hit_axis in zip(rows, axes[::2], axes[1::2], strict=True):
        for role, runs in chosen[row].items():
            _cold_lines(time_axis, hit_axis, runs, roles[role])
        for axis in (time_axis, hit_axis):
            axis.axvspan(0, COLD_STEPS, color="0.93", linewidth=0, zorder=0)
            axis.set_xlim(0, _COLD_SHOWN)
        time_axis.set_ylim(bottom=0)
        hit_axis.set_ylim(0, 1.03)
        percent_axis(hit_axis.yaxis)
    label_axes(axes, "decoded token")
    drawn = {role: [arms[role] for arms in chosen.values() if role in arms] for role in _ROLES}
    lines = {role: look._replace(marker="") for role, look in roles.items() if drawn[role]}
    add_legend(figure, [handle(_role_title(drawn[role]), look) for role, look in lines.items()])
    failed = list(results.failures("full"))
    label_functional(figure, NOT_EVIDENCE, _functional(records), rows, failed)
    return figure


def _role_title(arms: Sequence[Sequence[Record]]) -> str:
    """Return what the arms of several rows that play one role have in common."""
    first = [runs[0] for runs in arms]
    counts = {slots(record) for record in first}
    if counts == {None}:
        return (
            "whole model in VRAM"
            if all(record.arm == "resident" for record in first)
            else "cache off"
        )
    shares = sorted({(slots(record) or 0) / record.model.n_expert for record in first})
    ends = " to ".join(f"{100 * share:.3g} %" for share in dict.fromkeys((shares[0], shares[-1])))
    return f"C = {counts.pop()} ({ends} of N)" if len(counts) == 1 else f"C = {ends} of N"


def layers(results: Results) -> Figure:
    """Hit rate of every layer in every cached arm, on real prompts."""
    rows = results.shown()
    records = {row: results.records(row, "prompts") for row in rows}
    grids = {row: _layer_grid(runs) for row, runs in records.items()}
    height = 0.8 + 0.17 * max(len(grid) for grid in grids.values())
    figure, axes = panels([f"{row}: hits, %" for row in rows], height=height)
    for axis, row in zip(axes, rows, strict=True):
        grid = grids[row]
        sns.heatmap(
            grid * 100, ax=axis, vmin=0, vmax=100, cmap="gray", cbar=False,
            annot=grid.shape[1] <= _MOST_NUMBERED_LAYERS, fmt=".0f", linewidths=0.4,
        )  # fmt: skip
        axis.tick_params(length=0, rotation=0)
    label_axes(axes, "layer")
    failed = list(results.failures("full"))
    label_functional(figure, COUNTED_ON_CPU, _functional(records), rows, failed)
    return figure


def _cold_lines(times: Axes, hits: Axes, runs: Sequence[Record], look: Look) -> None:
    """Draw an arm's time and hit rate per decoded token, over its processes."""
    curve = latency_curve([record.result for record in runs])
    shown = slice(0, _COLD_SHOWN)
    token = curve.step[shown] + 1
    times.plot(token, curve.median_ms[shown], color=look.color, dashes=look.dashes)
    low, high = curve.lo_ms[shown], curve.hi_ms[shown]
    times.fill_between(token, low, high, color=look.color, alpha=0.2, linewidth=0)
    rate = _hit_rate_by_step(runs)
    if rate is not None:
        hits.plot(token, rate[shown], color=look.color, dashes=look.dashes)


def _hit_rate_by_step(runs: Sequence[Record]) -> Floats | None:
    """Return hits / (hits + misses) of every decode step, over processes; None with cache off."""
    steps = [[decode_steps(record.result, what) for record in runs] for what in ("hits", "misses")]
    hits, misses = np.asarray(steps, dtype=np.float64).sum(axis=1)
    asked = hits + misses
    return hits / asked if asked.all() else None


def _steady_ms(runs: Sequence[Record]) -> Floats:
    """Return the times of all steady-state tokens of an arm, over its processes."""
    processes = [decode_ns(record.result) for record in runs]
    return np.concatenate([steps[steady_slice(len(steps))] for steps in processes]) / 1e6


def _chosen_arms(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the arms of a cold-start panel by role; one arm may be all that there is for two."""
    arms = by_capacity(records)
    cached = [arm for arm, runs in arms.items() if policy(runs[0]) == "lru"]
    without = [arm for arm, runs in arms.items() if policy(runs[0]) is None]
    named = [arm for arm in without if arm in ("off", "resident")]
    if records[0].protocol != "replay":  # there the others had less memory
        named += without
    chosen = {"without": named[0]} if named else {}
    if cached:
        least, middle, most = cached[0], cached[(len(cached) - 1) // 2], cached[-1]
        chosen |= {"least": least, "middle": middle, "most": most}
    return {role: arms[arm] for role, arm in chosen.items()}


def _layer_grid(records: Sequence[Record]) -> pd.DataFrame:
    """Return hit rates by cached arm (down, by capacity) and layer (across)."""
    rates = {
        arm_title(arm): _layer_rates(runs)
        for arm, runs in by_capacity(records).items()
        if slots(runs[0]) is not None
    }
    return pd.DataFrame.from_dict(rates, orient="index")


def _layer_rates(runs: Sequence[Record]) -> dict[int, float]:
    """Return hits / (hits + misses) by layer, over an arm's processes."""
    counts = pd.DataFrame([layer for record in runs for layer in record.result["layers"]])
    if counts.empty:
        raise TecError(
            "the records hold no counts by layer",
            f"row {runs[0].row}, arm {runs[0].arm}",
            "measure again: tec measure",
        )
    sums = counts.groupby("layer").sum()
    return {
        int(layer): hits / (hits + misses)
        for layer, hits, misses in zip(sums.index, sums["hits"], sums["misses"], strict=True)
    }


def _functional(records: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return the rows with a record that was taken on the CPU back end."""
    return [row for row, runs in records.items() if any(r.evidence == "functional" for r in runs)]
