"""`tec calibrate`: from a model and a prompt to the experts to pin.

The built-in prompt is configs/prompts/calibration.txt, written for this project: prose, code,
dialogue, lists, mathematics and ten languages, because which experts are wanted depends on the kind
of text, and a prompt of one kind would pin that kind's experts. It has 6,900 bytes: 3,330 tokens of
the shipped model's small vocabulary, and at four bytes a token enough for 512 experts, top-10.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from tec import outcome
from tec.build import Manifest, load_manifest
from tec.calibration import (
    DEFAULT_SHARE,
    check_length,
    choose_pins,
    count_uses,
    selections_per_expert,
    stability,
)
from tec.calibration_model import CalibratedModel, find_model
from tec.calibration_record import (
    Calibration,
    LayerSummary,
    Origin,
    read_calibration,
    record_path,
    sha256_text,
    why_stale,
)
from tec.calibration_trace import Recording, record_routing
from tec.errors import TecError
from tec.files import sha256_file, write_atomically
from tec.machine_lock import machine_lock
from tec.paths import CACHE, ROOT, build_manifest
from tec.pin_list import PinList, write_pin_list
from tec.routing_trace import write_trace

BUILT_IN = ROOT / "configs" / "prompts" / "calibration.txt"


@dataclass(frozen=True)
class Job:
    """A calibration and where its results go."""

    model: CalibratedModel
    prompt: Path
    text: str
    generated: int
    limit: int | None
    manifest: Manifest
    log: Path
    out: Path
    trace: Path | None
    """Where the recorded routing goes, if anywhere."""

    @property
    def origin(self) -> Origin:
        """What decides the list."""
        return Origin(
            model=self.model.sha256,
            prompt=sha256_text(self.text),
            generated=self.generated,
            limit=self.limit,
        )

    def record(self, text: str, generated: int = 0) -> Recording:
        """Record the routing of a text."""
        return record_routing(self.model, text, generated, self.manifest, self.log)

    def run(self) -> tuple[Recording, PinList]:
        """Make the list, then its record: without one that fits, a list counts as damaged."""
        recording = self.record(self.text, self.generated)
        if warning := check_length(recording.trace):
            print(f"warning: {warning}", file=sys.stderr)
        geometry = self.model.geometry
        pins = choose_pins(recording.trace, recording.layers, geometry.n_layer, self.limit)
        if self.trace:
            write_trace(self.trace, recording.trace)
        write_pin_list(self.out, pins)
        made = self._describe(recording)
        write_atomically(record_path(self.out), made.model_dump_json(indent=2) + "\n")
        return recording, pins

    def _describe(self, recording: Recording) -> Calibration:
        geometry, trace = self.model.geometry, recording.trace
        slots = self.limit or round(DEFAULT_SHARE * geometry.n_expert)
        return Calibration(
            origin=self.origin,
            pins=sha256_file(self.out),
            model=self.model.name,
            arch=geometry.arch,
            n_layer=geometry.n_layer,
            n_expert=geometry.n_expert,
            n_expert_used=geometry.n_expert_used,
            moe_layers=recording.layers,
            prompt=self.prompt.name,
            tokens=trace.n_tokens,
            contexts=recording.pieces,
            selections_per_expert=selections_per_expert(trace),
            stability=stability(trace, slots),
            layers=_summaries(recording, slots),
            engine=f"{self.manifest.commit[:12]} {self.manifest.series_hash[:12]}",
            target=self.manifest.target,
        )


def _summaries(recording: Recording, slots: int) -> tuple[LayerSummary, ...]:
    lines = []
    for layer, uses in zip(recording.layers, count_uses(recording.trace), strict=True):
        most = sorted(uses.tolist(), reverse=True)
        lines.append(
            LayerSummary(
                layer=layer,
                used=int((uses > 0).sum()),
                top=most[0],
                covered=sum(most[:slots]) / sum(most),
            )
        )
    return tuple(lines)


def read_text(path: Path) -> str:
    """Return a text file's content.

    Raises:
        TecError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise TecError(f"cannot read the text: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        raise TecError(f"not UTF-8 text: byte {error.start}", path, "convert it") from error
    if not text.strip():
        raise TecError("the text is empty", path, "take some pages of the kind to be served")
    return text


def parse_pinned(text: str, n_expert: int) -> int:
    """Return a number of slots from `16`, or from a share such as `25%` or `0.25`.

    Raises:
        TecError: it is neither, not positive, or more than there are experts.
    """
    try:
        if text.endswith("%"):
            slots = round(float(text[:-1]) / 100 * n_expert)
        else:
            slots = round(float(text) * n_expert) if "." in text else int(text)
    except (ValueError, OverflowError) as error:
        raise TecError(
            f"'{text}' is no number of slots", "--pinned", "write 16, 25% or 0.25"
        ) from error
    if not 1 <= slots <= n_expert:
        raise TecError(
            f"{text} is {slots} slots to pin, the model has {n_expert} experts per layer",
            "--pinned",
            f"take 1 to {n_expert}",
        )
    return slots


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tec calibrate`."""
    parser = sub.add_parser("calibrate", help="make a pin list: the experts that a text uses most")
    parser.add_argument(
        "model", metavar="MODEL_OR_ROW", help="a GGUF file, a row, or the record of a row's model"
    )
    parser.add_argument("--out", type=Path, required=True, help="the list; its record lies beside")
    parser.add_argument(
        "--prompt", type=Path, default=BUILT_IN, help="text to calibrate on (default: built in)"
    )
    parser.add_argument(
        "--pinned",
        metavar="P",
        help="list the P most used experts of each layer, or a share such as 25%% (default: all)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=0,
        help="tokens to generate after the prompt (default: none; a model that generates greedily "
        "soon repeats itself)",
    )
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="TEXT",
        help="show hit rates on a text that the list is not made from",
    )
    parser.add_argument("--trace", type=Path, help="keep the recorded routing as .npy")
    parser.add_argument(
        "--build", type=Path, default=build_manifest("cpu"), help="manifest.json of the build"
    )
    parser.add_argument("--log", type=Path, default=CACHE / "logs" / "calibrate.log")
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds to wait for a measurement on this machine"
    )
    outcome.add_argument(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    record = Path(options.model)
    makes = [options.out, record_path(options.out), *([options.trace] if options.trace else [])]
    outcome.attempt(
        lambda: _calibrate(options),
        options,
        row=record.stem.rpartition(".")[0] if record.suffix == ".json" else options.model,
        stage="calibrate",
        reads=[record],
        makes=makes,
    )


def _calibrate(options: argparse.Namespace) -> None:
    text = read_text(options.prompt)
    held_out = read_text(options.held_out) if options.held_out else None
    if options.tokens < 0:
        raise TecError(f"{options.tokens} tokens cannot be generated", "--tokens", "0 or more")
    model = find_model(options.model)
    job = Job(
        model=model,
        prompt=options.prompt,
        text=text,
        generated=options.tokens,
        limit=parse_pinned(options.pinned, model.geometry.n_expert) if options.pinned else None,
        manifest=load_manifest(options.build),
        log=options.log,
        out=options.out,
        trace=options.trace,
    )
    stale = why_stale(job.out, job.origin)
    if stale is None and held_out is None and job.trace is None:
        print(f"{job.out} is up to date: made from this model and prompt")
        return
    if stale and job.out.exists():
        print(f"{job.out} is stale ({stale}): calibrating again", file=sys.stderr)
    _check_outputs(job)
    with machine_lock(f"calibrating {model.name}", options.wait):
        recording, pins = job.run()
        other = job.record(held_out) if held_out is not None else None
    _tell(job, recording)
    if other is not None:
        _compare(recording, other, pins)


def _check_outputs(job: Job) -> None:
    """Raise a TecError if something that `tec calibrate` did not write would be lost."""
    if job.out in (job.prompt, job.trace):
        raise TecError("two files have the same name", job.out, "choose another --out")
    if not job.out.exists() or outcome.failure_in(job.out):
        return
    try:
        read_calibration(job.out)
    except TecError as error:
        hint = "choose another --out, or remove the file"
        what = f"there is a file that no calibration left like this: {error.what}"
        raise TecError(what, job.out, hint) from error


def _tell(job: Job, recording: Recording) -> None:
    slots = job.limit or round(DEFAULT_SHARE * job.model.geometry.n_expert)
    found = stability(recording.trace, slots)
    print(
        f"{job.out}: {len(recording.layers)} layers from {recording.trace.n_tokens} tokens; of the "
        f"{slots} most used experts alternate tokens agree on {found.alternate:.0%}, the two "
        f"halves on {found.halves:.0%} (chance: {found.chance:.0%})"
    )


def _compare(recording: Recording, held_out: Recording, pins: PinList) -> None:
    """Print hit rates on the calibration's text and on the other, side by side."""
    from tec.calibration_check import capacities, hit_rates  # loads the compiler

    at = capacities(recording.trace.n_expert, recording.trace.top_k)
    own, other = (hit_rates(found.trace, pins, found.layers, at) for found in (recording, held_out))
    print(f"{'policy':<9}{'C':>5}{'P':>5}{'calibration':>13}{'held out':>10}{'lost':>7}")
    for before, after in zip(own, other, strict=True):
        print(
            f"{before.policy:<9}{before.capacity:>5}{before.pinned:>5}{before.rate:>13.1%}"
            f"{after.rate:>10.1%}{before.rate - after.rate:>7.1%}"
        )
