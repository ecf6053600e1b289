"""Xet storage: the real extension against a store in a folder, and plain HTTP in its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_machine import COMMIT, FILE, REPO, ROW, SIZE, Machine, content, sha256
from loopback_hub import running

_STORE = """
import sys
from hf_xet import XetSession
with XetSession().new_upload_commit(endpoint=sys.argv[1]) as commit:
    upload = commit.start_upload_file(sys.argv[2])
print(upload.result().xet_info.hash)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine beside a hub that has the file in Xet storage."""
    pytest.importorskip("hf_xet")
    file, store = tmp_path / "file", f"local://{tmp_path}/store"
    file.write_bytes(content())
    command = [sys.executable, "-c", _STORE, store, str(file)]
    stored = subprocess.run(command, capture_output=True, text=True, check=True)
    with running() as hub:
        machine = Machine(tmp_path, hub)
        hub.xet_endpoint = store
        hub.repos[REPO].xet[FILE] = stored.stdout.strip()
        yield machine


def test_the_bytes_come_from_xet_storage(machine: Machine) -> None:
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    assert machine.hub.requests("token")
    assert not machine.hub.requests("get", "file")
    assert machine.cached().read_bytes() == content()


def test_what_has_arrived_is_not_asked_for_again(machine: Machine) -> None:
    partial = machine.repo_cache / "blobs" / f"{sha256(content())}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(1000))  # not what the file begins with, to see that it stays
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    kept = bytes(1000) + content()[1000:]
    assert f"has SHA-256 {sha256(kept)}" in outcome.err
    assert machine.cached().read_bytes() == content()


def test_plain_http_takes_over_from_a_store_without_the_file(machine: Machine) -> None:
    machine.hub.repos[REPO].xet[FILE] = "f" * 64
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    assert f"Xet storage ended after 0 of {SIZE} bytes; going on without Xet" in outcome.err
    assert [request.sent for request in machine.hub.requests("file")] == [SIZE]
    assert machine.cached().read_bytes() == content()


def test_plain_http_takes_over_from_a_store_that_fails(machine: Machine) -> None:
    machine.hub.xet_endpoint = "local:///dev/null/store"
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    assert "Xet storage failed (" in outcome.err
    assert "Traceback" not in outcome.err
    assert machine.cached().read_bytes() == content()


def test_xet_can_be_switched_off(machine: Machine) -> None:
    outcome = machine.run("fetch", ROW, HF_HUB_DISABLE_XET="1")
    assert outcome.status == 0
    assert not machine.hub.requests("token")
    assert [request.sent for request in machine.hub.requests("file")] == [SIZE]
    assert machine.cached(commit=COMMIT).read_bytes() == content()
