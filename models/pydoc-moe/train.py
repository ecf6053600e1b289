"""Train the model on token files written by prepare.py, seeded, on one GPU (or the CPU, slowly).

Writes into ``--out``: model.pt (float32 weights), loss.csv, router-load.csv, router-balance.csv
and train.json. The last two tables and the held-out loss are computed with IQ4_NL weights.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import lzma
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import Geometry, Model, Routing
from optimiser import Muon, split_parameters
from torch import Tensor
from torch.nn import functional

LOSS_COLUMNS = [
    "step",
    "tokens",
    "seconds",
    "rate_share",
    "quantised_share",
    "train_loss",
    "balance_loss",
    "heldout_loss",
]


def parse_arguments() -> argparse.Namespace:
    """Command line; the defaults are the shipped model's."""
    parser = argparse.ArgumentParser(description="Train pydoc-moe.")
    parser.add_argument("--tokens", type=Path, default=Path(".cache/pydoc-moe"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8800)
    parser.add_argument("--batch", type=int, default=64, help="windows of n_ctx tokens")
    parser.add_argument("--muon-rate", type=float, default=0.015)
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--decay", type=float, default=0.1, help="Muon's weight decay")
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the balance loss")
    parser.add_argument("--router-z", type=float, default=1e-4, help="weight of the z-loss")
    parser.add_argument("--deadline", type=float, default=1e9, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=20260102)
    parser.add_argument("--n-layer", type=int, default=Geometry.n_layer)
    parser.add_argument("--n-ctx", type=int, default=Geometry.n_ctx)
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def read_tokens(folder: Path, split: str) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """A split's tokens, from SPLIT.npy or from SPLIT.u16.xz (the same numbers, compressed)."""
    packed = folder / f"{split}.u16.xz"
    if packed.exists():
        return np.frombuffer(lzma.decompress(packed.read_bytes()), dtype=np.uint16)
    tokens: np.ndarray[Any, np.dtype[np.uint16]] = np.load(folder / f"{split}.npy")
    return tokens


def window_starts(n_tokens: int, n_ctx: int, count: int, seed: int) -> Tensor:
    """Starts of ``count`` training windows [count].

    Whole epochs of disjoint windows, shuffled, each epoch at its own random phase.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces: list[Tensor] = []
    per_epoch = (n_tokens - 1) // n_ctx - 1
    while sum(map(len, pieces)) < count:
        phase = torch.randint(0, n_ctx, (1,), generator=generator)
        pieces.append(torch.randperm(per_epoch, generator=generator) * n_ctx + phase)
    return torch.cat(pieces)[:count]


def windows(tokens: Tensor, starts: Tensor, n_ctx: int) -> Tensor:
    """Tokens [N], starts [B] -> [B, n_ctx + 1] int64."""
    offsets = torch.arange(n_ctx + 1, device=tokens.device)
    return tokens[starts.to(tokens.device)[:, None] + offsets].long()


def rate_share(progress: float) -> float:
    """Learning-rate factor: 2 % warm-up, constant to 40 %, then linear to 1 %."""
    if progress < 0.02:
        return progress / 0.02
    return 1.0 if progress < 0.4 else 0.01 + 0.99 * (1 - progress) / 0.6


def quantised_share(progress: float) -> float:
    """How far weights are moved to their IQ4_NL value: 0 to 30 %, 1 from 40 % of the training."""
    return min(1.0, max(0.0, (progress - 0.3) / 0.1))


def token_loss(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    return functional.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten())


class Trainer:
    """Everything one run needs; see ``run``."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.geometry = Geometry(n_layer=options.n_layer, n_ctx=options.n_ctx)
        self.model = Model(self.geometry).to(self.device)
        matrices, rest = split_parameters(self.model)
        self.muon = Muon(matrices, options.muon_rate, options.decay)
        self.adam = torch.optim.AdamW(
            rest, options.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.loss = token_loss
        if not options.no_compile:
            for layer in self.model.layers:
                layer.compile(dynamic=False)
            self.loss = torch.compile(token_loss, dynamic=False)
        self.tokens = {
            split: torch.from_numpy(read_tokens(options.tokens, split).astype(np.int32)).to(
                self.device
            )
            for split in ("train", "heldout")
        }
        self.rows: list[dict[str, float | int | str]] = []

    def train_step(self, batch: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """One optimiser step on batch [B, n_ctx + 1] -> (token loss, mean balance loss)."""
        options = self.options
        self.model.share.fill_(quantised_share(progress))
        hidden, routings = self.model(batch[:, :-1])
        loss = self.loss(self.model, hidden, batch[:, 1:])
        balance = torch.stack([routing.balance_loss for routing in routings]).mean()
        z_loss = torch.stack([routing.z_loss for routing in routings]).mean()
        (loss + options.balance * balance + options.router_z * z_loss).backward()
        scale = rate_share(progress)
        for group in self.adam.param_groups:
            group["lr"] = options.adam_rate * scale
        self.adam.step()
        self.muon.step(scale)
        self.model.zero_grad(set_to_none=True)
        return loss.detach(), balance.detach()

    @torch.no_grad()
    def heldout(self, n_batches: int) -> tuple[float, list[Tensor]]:
        """Mean loss over the first held-out windows with the present weights.

        Batches have the training shape, so nothing recompiles. Returns nats per token and each
        layer's expert load [E].
        """
        n_ctx, batch = self.geometry.n_ctx, self.options.batch
        tokens = self.tokens["heldout"]
        available = (tokens.numel() - 1) // n_ctx
        losses: list[Tensor] = []
        loads: list[list[Routing]] = []
        for start in range(0, min(n_batches * batch, available - batch + 1), batch):
            data = windows(tokens, torch.arange(start, start + batch) * n_ctx, n_ctx)
            hidden, routings = self.model(data[:, :-1])
            losses.append(self.loss(self.model, hidden, data[:, 1:]))
            loads.append(routings)
        layers = zip(*loads, strict=True)
        mean = [torch.stack([item.load for item in layer]).mean(0).cpu() for layer in layers]
        return float(torch.stack(losses).mean()), mean

    def run(self) -> None:
        """Train, evaluate, write every output."""
        options, n_ctx = self.options, self.geometry.n_ctx
        starts = window_starts(
            self.tokens["train"].numel(), n_ctx, options.steps * options.batch, options.seed
        ).view(options.steps, options.batch)
        began = time.monotonic()
        step = 0
        for step in range(options.steps):
            progress = step / options.steps
            batch = windows(self.tokens["train"], starts[step], n_ctx)
            loss, balance = self.train_step(batch, progress)
            if step % 25 == 0:
                self.log(step, progress, began, float(loss), float(balance))
                if time.monotonic() - began > options.deadline:
                    break
        self.finish(step + 1, time.monotonic() - began)

    def log(self, step: int, progress: float, began: float, loss: float, balance: float) -> None:
        """Add a row of the loss curve; every 250 steps with a held-out loss."""
        heldout = f"{self.heldout(1)[0]:.4f}" if step % 250 == 0 else ""
        values = [step, (step + 1) * self.options.batch * self.geometry.n_ctx]
        shares = [f"{rate_share(progress):.4f}", f"{quantised_share(progress):.3f}"]
        seconds = f"{time.monotonic() - began:.1f}"
        row = [*values, seconds, *shares, f"{loss:.4f}", f"{balance:.4f}", heldout]
        self.rows.append(dict(zip(LOSS_COLUMNS, row, strict=True)))
        print(*row, flush=True)

    def finish(self, steps: int, seconds: float) -> None:
        """Final held-out loss with exact IQ4_NL weights, router tables, checkpoint, train.json."""
        out: Path = self.options.out
        out.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), out / "model.pt")
        self.model.share.fill_(0.0)
        float_loss, _ = self.heldout(10**6)
        self.model.share.fill_(1.0)
        loss, loads = self.heldout(10**6)
        write_table(out / "loss.csv", self.rows)
        write_router_tables(out, loads)
        tokens = steps * self.options.batch * self.geometry.n_ctx
        options = {key: value for key, value in vars(self.options).items() if key not in PRIVATE}
        record = {
            "geometry": asdict(self.geometry),
            "options": options,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps_done": steps,
            "tokens_seen": tokens,
            "train_tokens": self.tokens["train"].numel(),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(tokens / seconds),
            "heldout_loss_iq4_nl_nats": round(loss, 4),
            "heldout_loss_latent_nats": round(float_loss, 4),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "torch": torch.__version__,
            "tokens_sha256": {name: digest_of(data) for name, data in self.tokens.items()},
        }
        (out / "train.json").write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record), flush=True)


PRIVATE = {"tokens", "out", "no_compile", "deadline"}


def digest_of(tokens: Tensor) -> str:
    """sha256 of tokens [N] as little-endian uint16."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<u2").tobytes()).hexdigest()


def write_table(path: Path, rows: list[dict[str, float | int | str]]) -> None:
    """Write rows with equal keys as CSV."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_router_tables(out: Path, loads: list[Tensor]) -> None:
    """router-load.csv: load of each expert, 1 = its even share; router-balance.csv: per layer."""
    experts: list[dict[str, float | int | str]] = []
    layers: list[dict[str, float | int | str]] = []
    for index, load in enumerate(loads):
        relative = load * load.numel()
        entropy = -(load * load.clamp(min=1e-12).log2()).sum() / np.log2(load.numel())
        experts += [
            {"layer": index, "expert": expert, "relative_load": f"{value:.4f}"}
            for expert, value in enumerate(relative.tolist())
        ]
        layers.append(
            {
                "layer": index,
                "entropy_share": f"{float(entropy):.4f}",
                "max_relative_load": f"{float(relative.max()):.3f}",
                "min_relative_load": f"{float(relative.min()):.3f}",
            }
        )
    write_table(out / "router-load.csv", experts)
    write_table(out / "router-balance.csv", layers)


if __name__ == "__main__":
    Trainer(parse_arguments()).run()
