"""The program that fake_tools installs: a script that does without this project's package."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(sys.argv[0]).resolve().parent
TOOL = Path(sys.argv[0]).name
FAULTS: dict[str, Any] = json.loads((HERE / "faults.json").read_text())
LINE = " ".join([TOOL, *sys.argv[1:]])
N_EXPERT_USED = 2
N_LAYER = 2
MIB = 1024**2


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def struck(fault: str) -> bool:
    return fault in FAULTS and FAULTS[fault] in LINE


def capacity() -> int:
    asked = option("--expert-cache", "off")
    if asked == "off" or "not_engaged" in FAULTS:
        return 0
    return 12 if asked == "auto" else int(asked)


def policy() -> str:
    return option("--expert-cache-policy", "lru")


def by_cpu() -> bool:
    """Say whether misses are computed by the CPU: there are none where each expert has a slot."""
    return policy() != "lru" and 0 < capacity() < 16


def failed(why: str) -> SystemExit:
    print(f"loading\nerror: {why}", file=sys.stderr)
    return SystemExit(1)


def on_gpu() -> tuple[int, int]:
    """Return how many layers are on the GPU, and how many of their experts."""
    layers = int(FAULTS.get("layers", N_LAYER))
    if option("--fit") == "on":
        room = int(option("--vram-limit")) - int(option("--fit-target"))
        loads = [n for n in range(layers + 1) if used(layers, n) <= room]
        return layers, loads[-1] if loads else 0
    given = min(int(option("--gpu-layers", "0")), layers + 1)
    whole = max(0, given - 1) if given <= layers else layers
    return whole, min(whole, max(0, layers - int(option("--n-cpu-moe", "0"))))


def used(layers: int, experts: int) -> int:
    """Return the MiB that a model of 16 experts of 100 MiB in a layer takes."""
    factor = 2 if struck("big") else 1
    all_layers = int(FAULTS.get("layers", N_LAYER))
    return 100 + 50 * (layers + 1) + factor * 100 * (16 * experts + capacity() * all_layers)


def occupy() -> None:
    """Fail as the tool does where the card, or what of it may be used, is too small."""
    if "--vram-limit" in sys.argv:
        if "gpu_mib" not in FAULTS:
            raise failed("--vram-limit: there is no GPU whose memory could be limited")
        limit, free = int(option("--vram-limit")), FAULTS["gpu_mib"]
        if free < limit:
            raise failed(f"--vram-limit: CUDA0 has {free} MiB free, fewer than the limit: choose")
    room = int(option("--vram-limit", str(FAULTS.get("gpu_mib", 10**9))))
    grown = struck("grows") and int(option("-n")) > 8
    if "gpu_mib" in FAULTS and (grown or used(*on_gpu()) > room):
        raise failed("cannot load 'm.gguf': unable to allocate CUDA0 buffer")


def devices() -> list[dict[str, Any]]:
    if "gpu_mib" not in FAULTS:
        return []
    total = (FAULTS["gpu_mib"] + 500) * MIB
    room = int(option("--vram-limit", str(FAULTS["gpu_mib"])))
    free = (room - used(*on_gpu())) * MIB
    return [{"name": "CUDA0", "total_bytes": total, "free_bytes": free}]


def prompt(index: int, n_gen: int) -> dict[str, Any]:
    """Return one prompt's result: a hit rate of C/16, faster with more hits, one cold step."""
    strike = index == 1
    tokens = [index * 100 + step for step in range(n_gen)]
    salt = str(os.getpid()) if FAULTS.get("flaky") else ""
    salt += "sums of the CPU" if by_cpu() else ""
    hashes = [
        hashlib.sha256(f"{index} {step}{salt}".encode()).hexdigest()[:16] for step in range(n_gen)
    ]
    if strike and struck("wrong_logits"):
        hashes[3:] = ["0" * 16] * (n_gen - 3)
    if strike and struck("wrong_tokens"):
        tokens[3:] = [0] * (n_gen - 3)
    asked = N_EXPERT_USED * N_LAYER if capacity() else 0
    hits = asked if struck("all_hits") else asked * min(capacity(), 16) // 16
    step_ns = 2_000_000 + 100_000 * (asked - hits)
    if "gpu_mib" in FAULTS and not capacity():
        step_ns += 1_000_000 * (FAULTS.get("layers", N_LAYER) - on_gpu()[1])
    return {
        "id": f"p{index}",
        "n_prompt": 10,
        "prompt_ns": 5_000_000,
        "tokens": tokens,
        "token_ns": [0, 9_000_000 if index == 0 else step_ns, *[step_ns] * (n_gen - 2)],
        "logits_hash": hashes,
        "logits_margin": [0.25] * n_gen,
        "hits": [0, *[hits] * (n_gen - 1)],
        "misses": [0, *[asked - hits] * (n_gen - 1)],
    }


def expert_bench() -> str:
    """Return one line for each batch size, or one for the tokens given with --forced."""
    occupy()
    if "--forced" in sys.argv:
        for name in ("--prompts", "--replay"):
            if option(name) and not Path(option(name)).is_file():
                raise failed(f"cannot read {option(name)}")
        if trace := option("--trace-out"):
            write_trace(Path(trace), int(option("-n")))
        tokens = prompt(0, int(option("-n")))
        for what in ("token_ns", "hits", "misses"):
            tokens[what][0] = tokens[what][-1]
        return result_line([tokens], 1, int(option("-n")))
    n_gen = int(option("-n"))
    batches = [int(word) for word in option("--parallel", "1").split(",")]
    prompts = [prompt(index, n_gen) for index in range(2)]
    return "".join(result_line(prompts, batch, 2 * (n_gen - 1)) for batch in batches)


def write_trace(path: Path, n_tokens: int) -> None:
    """Write a routing trace in which every token selects the same experts, 0 and 1."""
    head = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({n_tokens}, {N_LAYER}, 2), }}"
    head += " " * (63 - (10 + len(head)) % 64) + "\n"
    content = struct.pack("<2i", 0, 1) * N_LAYER * n_tokens
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + content)


def result_line(prompts: list[dict[str, Any]], batch: int, decode_tokens: int) -> str:
    past = capacity() > 0 and batch > capacity() // N_EXPERT_USED
    if past:
        none = {what: [0] * len(prompts[0][what]) for what in ("hits", "misses")}
        prompts = [{**p, **none} for p in prompts]
    hits, misses = (sum(sum(p[what]) for p in prompts) for what in ("hits", "misses"))
    layers = [
        {
            "layer": layer,
            "hits": hits // N_LAYER,
            "misses": misses // N_LAYER,
            "expert_bytes": 100 * MIB,
        }
        for layer in range(N_LAYER if capacity() else 0)
    ]
    result = {
        "schema": 1,
        "tool": "llama-expert-bench",
        "repetition": 0,
        "parallel": batch,
        "model": option("-m"),
        "forced": "--forced" in sys.argv,
        "n_gen": int(option("-n")),
        "prompts": prompts,
        "decode_ns": sum(sum(p["token_ns"]) for p in prompts),
        "decode_tokens": decode_tokens,
        "prompt_ns": 0 if "--replay" in sys.argv else 10_000_000,
        "prompt_tokens": 20,
        "hits": hits,
        "misses": misses,
        "computed": misses if by_cpu() else 0,
        "bytes_moved": 0 if by_cpu() else misses * 100 * MIB,
        "copy": {"bytes_per_second": 50e9} if "gpu_mib" in FAULTS else None,
        "vram_limit_bytes": int(option("--vram-limit", "0")) * MIB or None,
        "layers": layers,
        "memory": {"host_peak_bytes": 1, "devices": devices(), "cache_bytes": 0},
        "status": {
            "engaged": capacity() > 0,
            "reason": None if capacity() else "off",
            "policy": policy(),
            "computed_by_cpu": misses if by_cpu() else 0,
            "capacity": capacity(),
            "cache_bytes": (used(0, 0) - 150) * MIB,
            "batch_limit": capacity() // N_EXPERT_USED,
        },
    }
    return json.dumps(result) + "\n"


def llama_bench() -> str:
    result = {
        "n_prompt": int(option("-p")),
        "n_gen": int(option("-n")),
        "avg_ts": 400.0 + capacity(),
        "expert_cache": option("--expert-cache", "off"),
        "expert_cache_capacity": capacity(),
        "expert_cache_hits": 3 * capacity(),
        "expert_cache_misses": 48 - 3 * capacity() if capacity() else 0,
    }
    return json.dumps(result) + "\n"


def perplexity() -> str:
    base = Path(option("--kl-divergence-base"))
    if "--kl-divergence" not in sys.argv:
        base.write_text("predictions")
        return "[1]10.0,\n0.29.005.974 I Final estimate: PPL = 10.0000 +/- 0.10000\n"
    if not base.exists():
        raise SystemExit(f"error: no {base}")
    kl = 0.5 if struck("wrong_logits") else 0.0003 if by_cpu() else 0.000001
    return (
        "Mean PPL(Q)                   :  10.000000 ±   0.100000\n"
        "Mean PPL(base)                :  10.000000 ±   0.100000\n"
        "Mean ln(PPL(Q)/PPL(base))     :   0.000000 ±       -nan\n"
        f"Mean    KLD: {kl:10.6f} ±   0.000000\nMaximum KLD:   0.000009\n"
        "Same top p: 100.000 ± 0.000 %\n"
    )


def router_trace() -> str:
    """Write the scores of 300 tokens that select the experts 0 and 1, as `write_trace` has them."""
    n_expert = 16
    with Path(os.environ["ROUTER_TRACE_OUT"]).open("wb") as out:
        out.write(struct.pack("<8s2i", b"RTRACE01", n_expert, 0))
        scores = struct.pack(f"<{n_expert}f", 0.6, 0.4, *[0.0] * (n_expert - 2))
        for token in range(300):
            for layer in range(N_LAYER):
                out.write(struct.pack("<2i", token, layer) + scores)
    return ""


def main() -> None:
    with (HERE / "calls.txt").open("a") as log:
        log.write(LINE + "\n")
    time.sleep(FAULTS.get("slow", 0))
    if struck("fail"):
        print("loading\nerror: capacity 1 is below the 2 experts used per token", file=sys.stderr)
        raise SystemExit(1)
    tools = {
        "llama-expert-bench": expert_bench,
        "llama-bench": llama_bench,
        "llama-perplexity": perplexity,
        "llama-router-trace": router_trace,
    }
    text = tools[TOOL]()
    sys.stdout.write(text[: len(text) // 2] if "torn" in FAULTS else text)


main()
