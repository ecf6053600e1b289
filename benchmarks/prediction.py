"""What predicting experts a layer ahead could give: `python benchmarks/prediction.py`.

FOUND, on 25,600 held-out tokens; capacities 12.5, 25, 50, 75 %; gains against no prediction:

1.  Recall of the K = 8 chosen at m = 8, 12, 16: pre-moe 72, 85, 90 %; pre-attention 65, 78, 84 %;
    counts 46, 57, 66 %. Layer 1 of 8 is the worst (pre-moe: 33 %, layers 2 to 7 73 to 84 %).
2.  Misses are predicted less well: with m = 8 and everything copied, pre-moe brings 64, 65, 63,
    59 % of what is needed, and 1.8, 1.4, 0.9, 0.4 experts per layer and token in vain: its wrong
    ones are absent 0.7 to 0.9 times as often as random ones. Entering as least recently used is
    never worse than as most recently used for predictions from hidden states.
3.  First in, first out, the best m (1 to 4) gains 5 to 8 % with pre-moe, and m = 8 is 0.81, 0.86,
    0.92, 1.03 times as fast. If waiting copies are dropped once the router has spoken: pre-moe
    1.10, 1.14, 1.18, 1.16; pre-attention 1.08, 1.12, 1.15, 1.12; counts at most 1.05; oracle 1.15,
    1.19, 1.29, 1.33. A copy takes longer than a layer: even perfect predictions come too late.
4.  Reuse of Qwen3-30B-A3B, an assumed recall of 88.6 %, wrong ones at random, m = 8: 1.17, 1.22,
    1.15, 1.08 with dropping, 0.96, 1.00, 1.06, 1.06 without; oracle 1.28, 1.41, 1.27, 1.11.
5.  So: not as copies in the fixed order of a graph; with a queue that drops, 8 to 22 % at most.
    Not in these: a second resolve, 3.8 us a layer like the first (`hit_us_layer` in the reference
    run's loss.csv), takes 3 of the per cents back at 50 % of the experts and 4 at 75 %.

HOW

A NumPy pass over the shipped model gives the hidden states; llama.cpp's own routing of the same
tokens, recorded with llama-expert-bench, is what is predicted and what the cache is simulated on.
The pass itself chooses 99.5 % of the same experts; the logits of 99 % of the others are less than
0.09 apart, where all have a standard deviation of 2.1.

Predictions for layer l and a token, each the m experts with the highest scores:

    pre-moe         layer l's norm and router on the residual stream before the experts of l - 1
    pre-attention   the same on the residual stream before the attention of l - 1
    counts          experts that most often follow those of layer l - 1; counted on the other half
                    of the text
    oracle, oracle-early   what the router will choose, known at the time of the first two

Speeds come from a model of times with figures measured on one H100 for Qwen3-30B-A3B Q8_0
(`TIMES`), not from a run. Computing a prediction and the slots' own cost are free in it, and copies
do not slow down what is computed beside them: its speeds are upper bounds of what such a scheme
gives. Layers 1 to 7 of the shipped model stand for the 48 of the large one, in a ring.

The shipped model says little about large ones: 8 layers, 256 wide, trained for minutes with a
balance loss. Its recall is likely to be lower and its routing repeats less: LRU hits
73 % with half of the experts, where Qwen3-30B-A3B has 90 to 95 % with 40 %. The second part
therefore takes a generated trace with the published reuse of that model, and predictors that know
each chosen expert with a given chance, hit or miss alike, which flatters them: see 2. The m and the
insertion of a line are the fastest on the same text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from moe_forward import Floats, Ids, Model, ranked
from numpy.typing import NDArray
from prefetch import Outcome, Policy, Times, simulate

from tec.files import write_atomically
from tec.paths import RESULTS, ROOT, build_dir
from tec.process import run_tool
from tec.progress import Progress
from tec.table import Table, Value, to_csv
from tec.trace_generator import generate

MODEL = ROOT / "models" / "pydoc-moe" / "pydoc-moe.gguf"
TEXT = ROOT / "configs" / "prompts" / "pydoc-heldout.txt"

N_LAYERS = 48
EXPERTS_US = 15.0
TIMES = Times(attention_us=3970 / N_LAYERS - EXPERTS_US, experts_us=EXPERTS_US, copy_us=101.0)
"""Of Qwen3-30B-A3B Q8_0 on an H100: 3.97 ms a token with all experts resident."""
SHARES = (0.125, 0.25, 0.5, 0.75)
"""Capacities as shares of all experts."""
MOST = 16
COUNTS = (1, 2, 4, 8, 12, 16)
"""Experts predicted."""
EARLY = ("pre-attention", "oracle-early")

PROFILE = "qwen3-30b-a3b"
QWEN_TOKENS, QWEN_EXPERTS, QWEN_USED = 500, 128, 8
RECALLS = (0.5, 0.6, 0.7, 0.8, 0.886, 0.95, 1.0)
"""Assumed: no large model was run here."""
Row = Mapping[str, Value]


@dataclass(frozen=True)
class Recorded:
    """Routing of a text and what was known before it."""

    chosen: Ids
    """[T, L, K], by llama.cpp."""
    predicted: Mapping[str, Ids]
    """[T, L, MOST] by predictor; -1 in layer 0."""
    n_expert: int


def main() -> None:
    """Print the tables and write them as CSV."""
    parser = argparse.ArgumentParser(description="What predicting experts a layer ahead could give")
    parser.add_argument("--bin", type=Path, default=build_dir("cpu") / "bin", help="the tools")
    parser.add_argument("--out", type=Path, default=RESULTS / "prediction", help="for the CSV")
    parser.add_argument("--contexts", type=int, help="contexts of the text at most (default: all)")
    options = parser.parse_args()
    recorded = record(options.bin, options.contexts)
    tables = {
        "recall": list(recall_rows(recorded)),
        "cache": list(cache_rows(recorded)),
        "recall-needed": list(needed_rows()),
    }
    for name, rows in tables.items():
        table = Table(name, "", tuple(rows[0]), (), tuple(rows))
        write_atomically(options.out / f"{name}.csv", to_csv(table))
    print(f"\nrecall of the chosen experts, layers 1 on\n{_text(tables['recall'])}")
    print(f"\nall predicted experts copied\n{_text(list(copied(tables['cache'])))}")
    print(f"\nfastest m and insertion, {TIMES}\n{_text(list(best(tables['cache'])))}")
    print(f"\nspeed against recall, generated trace, m = K\n{_text(tables['recall-needed'])}")


def _text(rows: list[Row]) -> str:
    return pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format)


def record(tools: Path, limit: int | None) -> Recorded:
    """Run llama.cpp and the NumPy pass over the text, context by context, and compare them."""
    model = Model(MODEL)
    contexts = tokenize(tools, model.n_ctx)[:limit]
    routed: list[Ids] = []
    scores: dict[str, list[Ids]] = {"pre-moe": [], "pre-attention": []}
    own: list[Floats] = []
    progress = Progress("recording routing and hidden states")
    for done, tokens in enumerate(contexts):
        routed.append(routing(tools, tokens))
        states = model.run(tokens)
        own.append(states.logits)
        scores["pre-moe"].append(_predicted(model, states.before_moe))
        scores["pre-attention"].append(_predicted(model, states.before_attention))
        progress.update(done + 1, len(contexts))
    progress.finish(f"{len(contexts)} contexts")
    chosen = np.concatenate(routed)
    report_agreement(np.concatenate(own), chosen)
    predicted = {name: np.concatenate(parts) for name, parts in scores.items()}
    half = len(contexts) // 2 * model.n_ctx
    predicted["counts"] = np.concatenate(
        [
            counted(chosen[half:], chosen[:half], model.n_expert),
            counted(chosen[:half], chosen[half:], model.n_expert),
        ]
    )
    perfect = np.full((*chosen.shape[:2], MOST), -1, np.int32)
    perfect[:, 1:, : chosen.shape[2]] = chosen[:, 1:]
    predicted |= {"oracle": perfect, "oracle-early": perfect}
    return Recorded(chosen, predicted, model.n_expert)


def tokenize(tools: Path, n_ctx: int) -> NDArray[np.int64]:
    """Return the text's whole contexts [contexts, n_ctx]."""
    command = [str(tools / "llama-tokenize"), "-m", str(MODEL), "-f", str(TEXT), "--ids"]
    command += ["--no-parse-special", "--no-escape", "--log-disable"]
    with tempfile.TemporaryDirectory(prefix="tec-prediction-") as folder:
        printed = run_tool(command, {}, Path(folder) / "log").stdout
    tokens = np.array(json.loads(printed.strip().splitlines()[-1]))
    return tokens[: len(tokens) // n_ctx * n_ctx].reshape(-1, n_ctx)


def routing(tools: Path, tokens: NDArray[np.int64]) -> Ids:
    """Return the experts that llama.cpp selects for the tokens of a context [T, L, K]."""
    with tempfile.TemporaryDirectory(prefix="tec-prediction-") as folder:
        prompts, trace = Path(folder) / "prompts.jsonl", Path(folder) / "trace.npy"
        prompts.write_text(json.dumps({"id": "text", "tokens": tokens.tolist()}) + "\n")
        size = str(len(tokens))
        command = [str(tools / "llama-expert-bench"), "-m", str(MODEL), "--prompts", str(prompts)]
        command += ["--forced", "-n", size, "-c", size, "-t", "1", "--trace-out", str(trace)]
        run_tool(command, {}, Path(folder) / "log")
        selected: Ids = np.load(trace)
    return selected


def _predicted(model: Model, residuals: Floats) -> Ids:
    """Return what each layer's router makes of the residuals of the layer before [T, L, MOST]."""
    result = np.full((*residuals.shape[:2], MOST), -1, np.int32)
    for layer in range(1, model.n_layer):
        result[:, layer] = ranked(model.router(residuals[:, layer - 1], layer), MOST)
    return result


def counted(learned: Ids, chosen: Ids, n_expert: int) -> Ids:
    """Return the experts with the highest summed frequency after those of the layer before.

    Args:
        learned: routing of other text [tokens, L, K], from which P(expert | expert before) is
            counted.
        chosen: routing to predict [T, L, K].
        n_expert: E.
    """
    result = np.full((*chosen.shape[:2], MOST), -1, np.int32)
    seen, given = _members(learned, n_expert), _members(chosen, n_expert)
    for layer in range(1, chosen.shape[1]):
        pairs = seen[:, layer - 1].T @ seen[:, layer]
        frequency = pairs / np.maximum(seen[:, layer - 1].sum(0), 1)[:, None]
        result[:, layer] = ranked(given[:, layer - 1] @ frequency, MOST)
    return result


def _members(chosen: Ids, n_expert: int) -> Floats:
    """Return 1 where an expert is chosen [T, L, E]."""
    result = np.zeros((*chosen.shape[:2], n_expert), np.float32)
    np.put_along_axis(result, chosen.astype(np.int64), 1, axis=2)
    return result


def report_agreement(logits: Floats, chosen: Ids) -> None:
    """Print how far the NumPy pass chooses llama.cpp's experts, and how close the others were."""
    own = ranked(logits, chosen.shape[2])
    same = (own[..., None] == chosen[..., None, :]).any(-1)
    lowest_own = np.take_along_axis(logits, own[..., -1:], -1)[..., 0]
    lowest = np.take_along_axis(logits, chosen.astype(np.int64), -1).min(-1)
    gaps = (lowest_own - lowest)[~same.all(-1)]
    print(
        f"{len(chosen)} tokens: {same.mean():.2%} of the experts are llama.cpp's, all of a layer's "
        f"in {same.all(-1).mean():.2%}; elsewhere the logits of what was swapped differ by "
        f"{np.median(gaps):.2g} (median), {np.quantile(gaps, 0.99):.2g} (99 %), {gaps.max():.2g} "
        f"(most), where the standard deviation of all logits is {logits.std():.2g}"
    )


def recall_rows(recorded: Recorded) -> Iterator[Row]:
    """Yield the share of the chosen experts that are among the m predicted."""
    for name in ("pre-moe", "pre-attention", "counts"):
        found = recorded.predicted[name][:, 1:, None] == recorded.chosen[:, 1:, :, None]
        by_layer = [found[..., :m].any(-1).mean((0, 2)) for m in (8, 12, 16)]
        for layer, recalls in enumerate(zip(*by_layer, strict=True), 1):
            yield _recall_row(name, str(layer), recalls)
        yield _recall_row(name, "all", tuple(float(np.mean(recalls)) for recalls in by_layer))


def _recall_row(name: str, layer: str, recalls: tuple[float, ...]) -> Row:
    at_8, at_12, at_16 = map(float, recalls)
    return {"predictor": name, "layer": layer, "m_8": at_8, "m_12": at_12, "m_16": at_16}


def cache_rows(recorded: Recorded) -> Iterator[Row]:
    """Yield a line per capacity, predictor, m, insertion and queue."""
    progress = Progress("simulating caches")
    rounds = itertools.count(1)
    warm = len(recorded.chosen) // 20
    chosen = np.ascontiguousarray(recorded.chosen[:, 1:])
    nothing = np.full((*chosen.shape[:2], 1), -1, np.int32)
    for share in SHARES:
        capacity = round(share * recorded.n_expert)

        def run(predicted: Ids, policy: Policy, capacity: int = capacity) -> Outcome:
            return simulate(chosen, predicted, recorded.n_expert, capacity, policy, TIMES, warm)

        plain = run(nothing, Policy())
        yield _cache_row(share, "none", 0, Policy(), plain, plain)
        for name, all_predicted in recorded.predicted.items():
            for m, recent, urgent in itertools.product(COUNTS, (False, True), (True, False)):
                if m > capacity or ("oracle" in name and m > chosen.shape[2]):
                    continue
                policy = Policy(name in EARLY, recent, urgent)
                predicted = np.ascontiguousarray(all_predicted[:, 1:, :m])
                yield _cache_row(share, name, m, policy, run(predicted, policy), plain)
            progress.update(next(rounds), len(SHARES) * len(recorded.predicted))
    progress.finish(f"{len(chosen)} tokens")


def _cache_row(
    share: float, name: str, m: int, policy: Policy, found: Outcome, plain: Outcome
) -> Row:
    return {
        "capacity_share": share,
        "predictor": name,
        "m": m,
        "insert": "recent" if policy.recent else "least",
        "queue": "urgent" if policy.urgent else "fifo",
        "misses_per_layer": found.missed,
        "misses_without": plain.missed,
        "covered": found.covered,
        "vain_per_layer": found.vain,
        "tps": speed(found.layer_us),
        "gain": plain.layer_us / found.layer_us,
    }


def speed(layer_us: float) -> float:
    """Return tokens per second of `N_LAYERS` such layers."""
    return 1e6 / (layer_us * N_LAYERS)


def copied(rows: list[Row]) -> Iterator[Row]:
    """Yield what a prediction brings if nothing of it is dropped, which no times change."""
    keys = ("capacity_share", "predictor", "m", "insert", "misses_without", "misses_per_layer")
    for row in rows:
        if row["queue"] == "fifo" and row["m"] in (4, 8, 16):
            yield {key: row[key] for key in (*keys, "covered", "vain_per_layer")}


def best(rows: list[Row]) -> Iterator[Row]:
    """Yield the fastest line of every capacity, predictor and queue."""

    def case(row: Row) -> tuple[Value, ...]:
        return row["capacity_share"], row["predictor"], row["queue"]

    for _, group in itertools.groupby(sorted(rows, key=case), key=case):
        yield max(group, key=lambda row: float(row["tps"] or 0))


def needed_rows() -> Iterator[Row]:
    """Yield the speed against recall on the generated trace.

    `vain` says what the wrong ones among the K predicted are: `none`, experts that are resident
    anyway, or `random`, any that are not chosen. The chance to be predicted is the same for all
    chosen experts; those that miss are harder to predict in truth.
    """
    trace = generate(PROFILE, QWEN_TOKENS, N_LAYERS, QWEN_EXPERTS, QWEN_USED, 1)
    chosen, warm = trace.selections, QWEN_TOKENS // 5
    nothing = np.full((*chosen.shape[:2], 1), -1, np.int32)
    draws = {
        (recall, wrong): drawn(chosen, recall, wrong)
        for recall, wrong in itertools.product(RECALLS, (False, True))
    }
    for share in SHARES:
        capacity = round(share * QWEN_EXPERTS)

        def run(predicted: Ids, policy: Policy, capacity: int = capacity) -> Outcome:
            return simulate(chosen, predicted, QWEN_EXPERTS, capacity, policy, TIMES, warm)

        plain = run(nothing, Policy())
        resident_us = TIMES.attention_us + TIMES.experts_us
        bound = speed(max(resident_us, plain.missed * TIMES.copy_us))
        for (recall, wrong), predicted in draws.items():
            found = {
                f"{'early' if early else 'late'}_{'urgent' if urgent else 'fifo'}": run(
                    predicted, Policy(early, urgent=urgent)
                )
                for early, urgent in itertools.product((False, True), (True, False))
            }
            yield {
                "capacity_share": share,
                "misses_per_layer": plain.missed,
                "without": speed(plain.layer_us),
                "recall": recall,
                "vain": "random" if wrong else "none",
                "vain_per_layer": found["late_fifo"].vain,
                **{name: speed(outcome.layer_us) for name, outcome in found.items()},
                "all_hidden": bound,
            }


def drawn(chosen: Ids, recall: float, wrong: bool) -> Ids:
    """Return predictions that have each chosen expert with the chance `recall` [T, L, K]."""
    rng = np.random.default_rng(0)
    known = rng.random(chosen.shape) < recall
    known[:, 0] = False
    other = np.full_like(chosen, -1)
    if wrong:
        keys = rng.random((*chosen.shape[:2], QWEN_EXPERTS))
        np.put_along_axis(keys, chosen.astype(np.int64), 2, axis=2)
        other = np.argsort(keys, axis=2)[..., : chosen.shape[2]].astype(np.int32)
        other[:, 0] = -1
    return np.where(known, chosen, other)


if __name__ == "__main__":
    main()
