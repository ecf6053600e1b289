"""What a user sees when the hub misbehaves, beside the hub's own log.

    .venv/bin/python tests/hub_demo.py [NAME...]

plays each scenario with the real client against a hub on loopback. The tests play the same ones.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hub_machine import COMMIT, FILE, REPO, ROW, SIZE, Machine, Outcome, content
from loopback_hub import LoopbackHub, Repo, Trouble, running

NEXT = "b" * 40
"""A later commit than the one that is pinned."""
ANNOUNCED = 10**15
"""Bytes; no disk has room for them."""


@dataclass(frozen=True)
class Scenario:
    """How the hub behaves, and what the user runs."""

    prepare: Callable[[Machine], None]
    variables: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    """The row was pinned by an earlier run that saw a hub in order; its cache is gone."""
    arguments: tuple[str, ...] = ("fetch", ROW)


def play(name: str, machine: Machine) -> Outcome:
    """Run the scenario of this name; the hub's log has what was asked from then on."""
    scenario = SCENARIOS[name]
    if scenario.pinned:
        pin(machine)
    scenario.prepare(machine)
    return machine.run(*scenario.arguments, **scenario.variables)


def pin(machine: Machine) -> None:
    """Fetch the row, and lose the cache."""
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0, outcome.err
    (machine.folder / "hf").rename(machine.folder / "hf-before")
    machine.hub.log.clear()


def _troubles(*troubles: Trouble) -> Callable[[Machine], None]:
    """Return a preparation; each run gets troubles of its own, for they are used up."""

    def prepare(machine: Machine) -> None:
        machine.hub.troubles = [Trouble(**vars(trouble)) for trouble in troubles]

    return prepare


def _renamed_file(machine: Machine) -> None:
    machine.hub.repos[REPO].commits[COMMIT] = {"tiny-moe-Q8_K.gguf": content()}


def _no_repository(machine: Machine) -> None:
    machine.hub.repos.clear()


def _revision_gone(machine: Machine) -> None:
    machine.hub.repos[REPO] = Repo({NEXT: {FILE: content(2)}}, NEXT)


def _file_changed(machine: Machine) -> None:
    machine.hub.repos[REPO].commits[COMMIT] = {FILE: content(2, SIZE + 1)}


def _new_revision(machine: Machine) -> None:
    repo = machine.hub.repos[REPO]
    repo.commits[NEXT] = {FILE: content(2)}
    repo.main = NEXT


def _too_big(machine: Machine) -> None:
    machine.hub.repos[REPO].announced[FILE] = ANNOUNCED


_GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to the model is restricted"}
_ALWAYS = 99

SCENARIOS: dict[str, Scenario] = {
    "all in order": Scenario(_troubles()),
    "connection cut twice": Scenario(_troubles(Trouble("file", cut_after=SIZE // 3, times=2))),
    "connection cut always": Scenario(_troubles(Trouble("file", cut_after=0, times=_ALWAYS))),
    "no ranges": Scenario(
        _troubles(Trouble("file", cut_after=SIZE // 3), Trouble("file", no_ranges=True))
    ),
    "stalled": Scenario(
        _troubles(Trouble("file", hold_after=SIZE // 3)), {"HF_HUB_DOWNLOAD_TIMEOUT": "4"}
    ),
    "wrong bytes once": Scenario(_troubles(Trouble("file", wrong_bytes=True))),
    "wrong bytes always": Scenario(_troubles(Trouble("file", wrong_bytes=True, times=_ALWAYS))),
    "401": Scenario(_troubles(Trouble("info", 401, times=_ALWAYS)), {"HF_TOKEN": "hf_wrong"}),
    "gated": Scenario(_troubles(Trouble("head", 403, _GATED, times=_ALWAYS))),
    "gated, token without access": Scenario(
        _troubles(Trouble("head", 403, _GATED, times=_ALWAYS)), {"HF_TOKEN": "hf_other"}
    ),
    "403": Scenario(_troubles(Trouble("head", 403, times=_ALWAYS))),
    "404 file": Scenario(_renamed_file),
    "404 repository": Scenario(_no_repository),
    "429 with Retry-After": Scenario(_troubles(Trouble("file", 429, {"Retry-After": "1"}))),
    "429, an hour": Scenario(
        _troubles(Trouble("head", 429, {"Retry-After": "3600"}, times=_ALWAYS))
    ),
    "500 once": Scenario(
        _troubles(Trouble("info", 500), Trouble("head", 502), Trouble("get", 503))
    ),
    "500 always": Scenario(_troubles(Trouble("head", 500, times=_ALWAYS))),
    "revision gone": Scenario(_revision_gone, pinned=True),
    "file changed at its revision": Scenario(_file_changed, pinned=True),
    "new revision": Scenario(_new_revision, pinned=True),
    "new revision, --repin": Scenario(
        _new_revision, pinned=True, arguments=("fetch", ROW, "--repin")
    ),
    "disk too small": Scenario(_too_big),
    "not a hub": Scenario(_troubles(Trouble("info", html=True, times=_ALWAYS))),
    "offline": Scenario(_troubles(), {"HF_HUB_OFFLINE": "1"}, pinned=True),
}


def main(names: list[str]) -> None:
    """Print the hub's log and what the user saw, for each scenario."""
    for name in names or SCENARIOS:
        with running() as hub, tempfile.TemporaryDirectory() as folder:
            machine = Machine(Path(folder), hub)
            outcome = play(name, machine)
            print(f"=== {name}\n--- the hub's log")
            print(_plain("\n".join(map(str, hub.log)) or "(nothing was asked)", hub, folder))
            print(f"--- what the user saw (exit status {outcome.status})")
            print(_plain(outcome.err + outcome.out, hub, folder))


def _plain(text: str, hub: LoopbackHub, folder: str) -> str:
    """Return `text` without what differs between runs."""
    return text.replace(f":{hub.port}", ":PORT").replace(folder, "FOLDER").rstrip() + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
