"""Local files in place of downloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_demo import pin
from hub_machine import COMMIT, FILE, REPO, ROW, SIZE, Machine, content, sha256
from loopback_hub import Trouble, running

NOBODY = "http://127.0.0.1:9"
"""Where no hub is."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with running() as hub:
        yield Machine(tmp_path, hub)


@pytest.fixture
def own(machine: Machine) -> Path:
    """A folder that has the right file somewhere in it."""
    return machine.local_file(content())


def test_a_local_file_is_used_where_it_lies(machine: Machine, own: Path) -> None:
    outcome = machine.run("fetch", ROW, "--from", str(own))
    assert outcome.status == 0
    assert str(own / "somewhere" / FILE) in outcome.out
    assert machine.lock()[ROW]["files"][0]["sha256"] == sha256(content())
    assert not machine.hub.requests("head", "get", "file")
    assert machine.blobs() == []


def test_the_variable_names_a_folder_too(machine: Machine, own: Path) -> None:
    pin(machine)
    outcome = machine.run("fetch", ROW, TEC_MODELS=str(own))
    assert outcome.status == 0
    assert str(own / "somewhere" / FILE) in outcome.out
    assert not machine.hub.log


def test_a_file_that_the_folder_lacks_is_fetched(machine: Machine, own: Path) -> None:
    (own / "somewhere" / FILE).unlink()
    assert machine.run("fetch", ROW, TEC_MODELS=str(own)).status == 0
    assert machine.cached().read_bytes() == content()


def test_a_named_folder_has_to_have_the_file(machine: Machine, own: Path) -> None:
    (own / "somewhere" / FILE).unlink()
    outcome = machine.run("fetch", ROW, "--from", str(own))
    assert outcome.status == 2
    assert f"{FILE} not found" in outcome.err
    assert not machine.hub.log


def test_a_folder_that_is_not_there(machine: Machine) -> None:
    outcome = machine.run("fetch", ROW, TEC_MODELS=str(machine.folder / "gone"))
    assert outcome.status == 2
    assert "no such folder" in outcome.err
    assert str(machine.folder / "gone") in outcome.err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (content(5), [sha256(content(5)), sha256(content())]),
        (content(1, 1000), ["has 1000 bytes", f"pinned are {SIZE}"]),
    ],
)
def test_another_local_file_is_refused_and_left_alone(
    machine: Machine, data: bytes, words: list[str]
) -> None:
    folder = machine.local_file(data)
    outcome = machine.run("fetch", ROW, "--from", str(folder))
    assert outcome.status == 2
    for word in [*words, "--pin-local"]:
        assert word in outcome.err
    assert (folder / "somewhere" / FILE).read_bytes() == data
    assert not machine.hub.requests("file")


def test_the_file_of_the_pinned_size_is_taken(machine: Machine, own: Path) -> None:
    other = own / "a-smaller-one" / FILE
    other.parent.mkdir()
    other.write_bytes(b"another quantisation of that name")
    outcome = machine.run("fetch", ROW, "--from", str(own))
    assert outcome.status == 0
    assert str(own / "somewhere" / FILE) in outcome.out


def test_of_files_of_the_pinned_size_the_right_one_is_taken(machine: Machine, own: Path) -> None:
    pin(machine)
    for folder, data in (("a-wrong-one", content(5)), ("z-wrong-one", content(6))):
        other = own / folder / FILE
        other.parent.mkdir()
        other.write_bytes(data)
    outcome = machine.run("fetch", ROW, "--from", str(own))
    assert outcome.status == 0
    assert str(own / "somewhere" / FILE) in outcome.out


@pytest.mark.parametrize("variables", [{"HF_ENDPOINT": NOBODY}, {"HF_HUB_OFFLINE": "1"}])
def test_an_unpinned_file_needs_the_hub(
    machine: Machine, own: Path, variables: dict[str, str]
) -> None:
    outcome = machine.run("fetch", ROW, "--from", str(own), **variables)
    assert outcome.status == 2
    assert f"row {ROW} is not pinned, so its local file cannot be checked" in outcome.err
    assert "--pin-local" in outcome.err
    assert machine.lock() == {}


def test_a_local_file_can_be_pinned_as_it_is(machine: Machine, own: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    outcome = machine.run("fetch", ROW, "--from", str(own), "--pin-local", **offline)
    assert outcome.status == 0
    assert f"pinned {REPO} as in local files" in outcome.err
    entry = machine.lock()[ROW]
    assert entry["commit"] is None
    assert entry["files"] == [{"name": FILE, "size": SIZE, "sha256": sha256(content())}]
    assert machine.run("fetch", ROW, TEC_MODELS=str(own), **offline).status == 0


def test_a_locally_pinned_file_cannot_be_fetched(machine: Machine, own: Path) -> None:
    machine.run("fetch", ROW, "--from", str(own), "--pin-local")
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 2
    assert "pinned to a local file, which is not here" in outcome.err
    assert "--repin" in outcome.err
    assert not machine.hub.log
    assert machine.run("fetch", ROW, "--repin").status == 0
    assert machine.lock()[ROW]["commit"] is not None


def test_a_locally_pinned_file_gets_no_place_in_the_cache(machine: Machine, own: Path) -> None:
    assert machine.run("fetch", ROW).status == 0  # so that the cache has its bytes
    machine.run("fetch", ROW, "--from", str(own), "--pin-local")
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 2
    assert "pinned to a local file, which is not here" in outcome.err
    assert "0 of 1 in the cache" in machine.run("fetch", "--list", ROW).out
    assert [path.name for path in (machine.repo_cache / "snapshots").iterdir()] == [COMMIT]


def test_pinning_locally_needs_a_local_file(machine: Machine) -> None:
    outcome = machine.run("fetch", ROW, "--pin-local")
    assert outcome.status == 2
    assert "--from FOLDER" in outcome.err


def test_the_parts_of_a_split_model_lie_together(machine: Machine) -> None:
    parts = ["deep/m-00001-of-00002.gguf", "deep/m-00002-of-00002.gguf"]
    machine.add_row("split", parts)
    folder = machine.local_file(content(1), "m-00001-of-00002.gguf")
    elsewhere = folder / "elsewhere" / "m-00002-of-00002.gguf"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(content(2))
    arguments = ("fetch", "split", "--from", str(folder), "--pin-local")
    apart = machine.run(*arguments)
    assert apart.status == 2
    assert "together in one folder" in apart.err
    elsewhere.rename(folder / "somewhere" / elsewhere.name)
    assert machine.run(*arguments).status == 0
    hashes = [file["sha256"] for file in machine.lock()["split"]["files"]]
    assert hashes == [sha256(content(1)), sha256(content(2))]


def test_a_big_file_is_read_once(machine: Machine, own: Path) -> None:
    machine.run("fetch", ROW, "--from", str(own))
    record = machine.folder / "cache" / "models" / "verified.json"
    assert sha256(content()) in record.read_text()
    forged = record.read_text().replace(sha256(content()), "f" * 64)
    record.write_text(forged)
    assert "f" * 64 in machine.run("fetch", ROW, "--from", str(own)).err  # not read again
    (own / "somewhere" / FILE).write_bytes(content())  # another time of change
    assert machine.run("fetch", ROW, "--from", str(own)).status == 0


def test_a_row_that_is_a_file_has_nothing_to_fetch(machine: Machine) -> None:
    path = machine.folder / "models" / "own.yaml"
    digest = "0" * 64
    path.write_text(
        f"name: own\ntitle: Own\nsource: {{kind: file, path: own.gguf, sha256: '{digest}'}}\n"
        "prompts: p.jsonl\n"
    )
    outcome = machine.run("fetch", "own")
    assert outcome.status == 2
    assert "nothing to fetch" in outcome.err
    listed = machine.run("fetch", "--list", "own")
    assert listed.status == 0
    assert listed.out == "own: own.gguf, a file of the repository; nothing to fetch\n"


@pytest.mark.parametrize("arguments", [(), ("unknown",), (ROW, "--jobs", "0")])
def test_bad_arguments(machine: Machine, arguments: tuple[str, ...]) -> None:
    machine.hub.troubles = [Trouble("info", 500, times=99)]
    outcome = machine.run("fetch", *arguments)
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert not machine.hub.log
