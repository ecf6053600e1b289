"""`tec trace`: look into routing traces, convert or draw them, make pin lists from them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tec import trace_generator
from tec.errors import TecError
from tec.pin_list import most_used, write_pin_list
from tec.routing_trace import RoutingTrace, read_trace, write_trace
from tec.rtrace import open_rtrace, to_selections, write_rtrace

_SCORES = (".rtrace", ".bin")
_SHOWN_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec trace`."""
    parser = sub.add_parser(
        "trace", help="routing traces: what is in one, another format, a pin list"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    info = actions.add_parser("info", help="show shape, overlap, reuse and hit rates")
    _add_input(info)
    info.set_defaults(run=_info)
    convert = actions.add_parser("convert", help="write .npy from .rtrace or .bin, or the reverse")
    _add_input(convert)
    convert.add_argument("output", type=Path)
    _add_layers(convert)
    convert.set_defaults(run=_convert)
    pins = actions.add_parser(
        "pins", help="write a pin list: each layer's experts, most used first"
    )
    _add_input(pins)
    pins.add_argument("-o", "--out", type=Path, required=True)
    _add_layers(pins)
    pins.add_argument("--n-layer", type=int, help="layers of the model (default: the last one's)")
    pins.set_defaults(run=_pins)
    trace_generator.register(actions)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, help=".npy (selected experts), or .rtrace or .bin")
    parser.add_argument(
        "--n-expert", type=int, help="experts per layer (.npy: by default the largest id and one)"
    )
    parser.add_argument("--top-k", type=int, help="experts per token, for .rtrace and .bin")


def _add_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layers", help="model layers with experts, such as 1-47 or 0,2,4 (.npy: default from 0)"
    )


def _info(options: argparse.Namespace) -> None:
    from tec.locality import POLICIES, analyse  # loads the compiler

    trace, _ = _read(options)
    stated = "" if _is_scores(options.trace) or options.n_expert else " (the largest id and one)"
    print(f"tokens           {trace.n_tokens}")
    print(f"MoE layers       {trace.n_layers}")
    print(f"experts          {trace.n_expert}{stated}")
    print(f"per token        {trace.top_k}")
    found = analyse(trace)
    overlap, uniform, reuse = found.overlap(), found.uniform_overlap(), found.reuse()
    for window in (1, 8, 64):
        if window < trace.n_tokens:
            print(
                f"overlap, W = {window:<3} {overlap[window - 1]:6.1%}   "
                f"(uniformly random: {uniform[window - 1]:.1%})"
            )
    print(f"median reuse     {found.median_reuse or 'none'} tokens")
    print(f"on next token    {reuse[min(1, trace.n_tokens - 1)]:6.1%}")
    print(f"within 8 tokens  {reuse[min(8, trace.n_tokens - 1)]:6.1%}")
    print(f"never before     {found.first_uses:6.1%}")
    print("hit rate         " + "".join(f"{policy:>8}" for policy in POLICIES))
    for capacity in shown_capacities(trace.top_k, trace.n_expert):
        rates = "".join(f"{found.hit_rate(policy, capacity):8.1%}" for policy in POLICIES)
        print(f"  C = {capacity:<11}{rates}")


def shown_capacities(top_k: int, n_expert: int) -> list[int]:
    """Return the capacities that tables for people have: K, and eighths of all experts above it."""
    shares = (round(share * n_expert) for share in _SHOWN_SHARES)
    return sorted({top_k, *(capacity for capacity in shares if capacity > top_k)})


def _convert(options: argparse.Namespace) -> None:
    if _is_scores(options.trace) == _is_scores(options.output):
        raise TecError(
            "both files are of the same format",
            options.output,
            "name a .npy and a .rtrace or .bin file",
        )
    trace, layers = _read(options)
    if _is_scores(options.output):
        write_rtrace(options.output, trace, layers)
    else:
        write_trace(options.output, trace)


def _pins(options: argparse.Namespace) -> None:
    trace, layers = _read(options)
    write_pin_list(options.out, most_used(trace, layers, options.n_layer))


def _read(options: argparse.Namespace) -> tuple[RoutingTrace, list[int] | None]:
    """Return the trace and the model layer of each of its layers, None if that is not known."""
    asked = getattr(options, "layers", None)
    layers = _parse_layers(asked) if asked else None
    if not _is_scores(options.trace):
        return read_trace(options.trace, options.n_expert), layers
    if options.top_k is None:
        raise TecError(
            "the file has scores: how many experts a token selects is not in it",
            options.trace,
            "add --top-k with the number that the model uses",
        )
    scores = open_rtrace(options.trace, options.n_expert)
    if layers is not None and layers != list(scores.layers):
        raise TecError(f"the trace has layers {list(scores.layers)}", options.trace)
    return to_selections(scores, options.top_k), list(scores.layers)


def _is_scores(path: Path) -> bool:
    if path.suffix not in (*_SCORES, ".npy"):
        raise TecError(
            f"unknown kind of trace '{path.suffix}'", path, "name it .npy, .rtrace or .bin"
        )
    return path.suffix in _SCORES


def _parse_layers(text: str) -> list[int]:
    layers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None:
            raise TecError(f"'{part}' is no layer", "--layers", "write them as 1-47 or 0,2,4")
        layers.extend(range(int(found[1]), int(found[2] or found[1]) + 1))
    return layers
