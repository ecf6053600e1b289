"""Fetching with the real client from a hub on loopback; every run is a process of its own."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub_demo import ANNOUNCED, NEXT, pin, play
from hub_machine import COMMIT, FILE, REPO, ROW, SIZE, Machine, content, sha256
from loopback_hub import Repo, Trouble, running

TRIES = 5
PARTS = [f"UD/tiny-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with running() as hub:
        yield Machine(tmp_path, hub)


def sent(machine: Machine) -> list[tuple[str | None, int]]:
    """Return range and bytes of each time the file itself was sent."""
    return [(request.range, request.sent) for request in machine.hub.requests("file")]


def tries(error: str) -> list[str]:
    return re.findall(r"try (\d) of 5", error)


def nothing_looks_whole(machine: Machine) -> bool:
    whole = [name for name in machine.blobs() if not name.endswith(".incomplete")]
    return not whole and not machine.cached().exists()


def test_a_file_is_pinned_fetched_checked_and_then_reused(machine: Machine) -> None:
    machine.add_row(ROW, [FILE], unconfirmed="whether the name is right")
    outcome = play("all in order", machine)
    assert outcome.status == 0
    assert f"pinned {REPO} at {COMMIT[:12]}" in outcome.err
    assert "not read from the hub before: whether the name is right" in outcome.err
    assert machine.cached().read_bytes() == content()
    assert machine.lock()[ROW] == {
        "repo": REPO,
        "commit": COMMIT,
        "files": [{"name": FILE, "size": SIZE, "sha256": sha256(content())}],
    }
    machine.hub.log.clear()
    again = machine.run("fetch", ROW)
    assert again.status == 0
    assert not machine.hub.log
    assert "pinned" not in again.err


def test_the_clients_own_calls_find_the_file(machine: Machine) -> None:
    play("all in order", machine)
    blob = machine.repo_cache / "blobs" / sha256(content())
    assert machine.cached().resolve() == blob.resolve()
    assert not machine.cached().readlink().is_absolute()
    machine.hub.log.clear()
    assert client_download(machine) == str(machine.cached())
    assert not machine.hub.log


def test_a_file_that_the_client_downloaded_is_used(machine: Machine) -> None:
    path = client_download(machine)
    machine.hub.log.clear()
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    assert path in outcome.out
    assert not machine.hub.requests("head", "get", "file")


def client_download(machine: Machine) -> str:
    code = (
        "import sys; from huggingface_hub import hf_hub_download\n"
        "print(hf_hub_download(sys.argv[1], sys.argv[2], revision=sys.argv[3]))"
    )
    out, err = machine.python("-c", code, REPO, FILE, COMMIT).communicate(timeout=60)
    assert out, err
    return out.strip()


def test_the_same_file_of_an_earlier_revision_is_used(machine: Machine) -> None:
    play("all in order", machine)
    machine.hub.repos[REPO] = Repo({NEXT: {FILE: content()}}, NEXT)
    machine.hub.log.clear()
    assert machine.run("fetch", ROW, "--repin").status == 0
    assert machine.cached(commit=NEXT).read_bytes() == content()
    assert not machine.hub.requests("head", "get", "file")


def test_two_processes_fetch_a_file_once(machine: Machine) -> None:
    machine.hub.troubles = [Trouble("file", hold_after=1000)]
    first = machine.start("fetch", ROW, HF_HUB_DOWNLOAD_TIMEOUT="60")
    assert machine.hub.holding.wait(60)
    second = machine.start("fetch", ROW)
    assert second.stderr is not None
    assert "waiting for another process" in second.stderr.readline()
    machine.hub.released.set()
    for process in (first, second):
        process.communicate(timeout=60)
        assert process.returncode == 0
    # the first was held back and went on after the cut
    assert sent(machine) == [(None, 1000), ("bytes=1000-", SIZE - 1000)]


def test_a_cut_connection_goes_on_where_it_broke(machine: Machine) -> None:
    outcome = play("connection cut twice", machine)
    third = SIZE // 3
    assert outcome.status == 0
    assert outcome.err.count("the connection was cut") == 2
    assert sent(machine) == [
        (None, third),
        (f"bytes={third}-", third),
        (f"bytes={2 * third}-", third),
    ]
    assert machine.cached().read_bytes() == content()


def test_a_connection_that_brings_nothing_is_given_up(machine: Machine) -> None:
    outcome = play("connection cut always", machine)
    assert outcome.status == 2
    assert f"the connection was cut, {TRIES} times in a row" in outcome.err
    assert tries(outcome.err) == ["2", "3", "4", "5"]
    assert len(sent(machine)) == TRIES
    assert nothing_looks_whole(machine)


def test_what_arrived_before_giving_up_is_kept(machine: Machine) -> None:
    machine.hub.troubles = [Trouble("file", cut_after=1000), Trouble("file", 500, times=TRIES)]
    assert machine.run("fetch", ROW).status == 2
    assert nothing_looks_whole(machine)
    machine.hub.troubles.clear()
    machine.hub.log.clear()
    assert machine.run("fetch", ROW).status == 0
    assert sent(machine) == [("bytes=1000-", SIZE - 1000)]
    assert machine.cached().read_bytes() == content()


def test_a_server_without_ranges_sends_all_again(machine: Machine) -> None:
    outcome = play("no ranges", machine)
    assert outcome.status == 0
    assert [size for _, size in sent(machine)] == [SIZE // 3, SIZE]
    assert machine.cached().read_bytes() == content()


def test_a_stalled_connection_is_opened_again(machine: Machine) -> None:
    outcome = play("stalled", machine)
    assert outcome.status == 0
    assert "the hub does not answer in time; try 2 of 5" in outcome.err
    assert sent(machine)[1][0] == f"bytes={SIZE // 3}-"
    assert machine.cached().read_bytes() == content()


def test_wrong_bytes_are_fetched_once_more(machine: Machine) -> None:
    outcome = play("wrong bytes once", machine)
    assert outcome.status == 0
    assert "deleted, fetching it once more" in outcome.err
    assert sent(machine) == [(None, SIZE), (None, SIZE)]
    assert machine.cached().read_bytes() == content()


def test_wrong_bytes_twice_are_an_error_and_leave_nothing(machine: Machine) -> None:
    outcome = play("wrong bytes always", machine)
    assert outcome.status == 2
    assert sha256(bytes(SIZE)) in outcome.err
    assert sha256(content()) in outcome.err
    assert len(sent(machine)) == 2
    assert machine.blobs() == []
    assert not machine.cached().exists()


def test_a_file_that_went_bad_in_the_cache_is_fetched_again(machine: Machine) -> None:
    play("all in order", machine)
    machine.cached().write_bytes(content(3))
    machine.hub.log.clear()
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    assert "deleted, fetching it once more" in outcome.err
    assert sent(machine) == [(None, SIZE)]
    assert machine.cached().read_bytes() == content()


def test_a_bad_file_is_kept_when_it_cannot_be_fetched_again(machine: Machine) -> None:
    play("all in order", machine)
    machine.cached().write_bytes(content(3))
    outcome = machine.run("fetch", ROW, HF_HUB_OFFLINE="1")
    assert outcome.status == 2
    assert sha256(content(3)) in outcome.err
    assert machine.cached().read_bytes() == content(3)


@pytest.mark.parametrize(
    ("name", "stage", "words"),
    [
        ("401", "info", ["refuses access", REPO, "401", "HF_TOKEN"]),
        ("gated", "head", ["is gated", f"/{REPO}", "accept the terms", "HF_TOKEN", "is not set"]),
        ("gated, token without access", "head", ["accept the terms", "HF_TOKEN", "not enough"]),
        ("403", "head", ["403 Forbidden", FILE]),
        ("404 file", "info", [f"no file {FILE}", "did you mean 'tiny-moe-Q8_K.gguf'?"]),
        ("404 repository", "info", [f"no repository {REPO}", f"configs/models/{ROW}.yaml"]),
        ("429, an hour", "head", ["429 Too Many Requests", "asks to wait 3600 s"]),
        ("revision gone", "head", ["no longer has the pinned revision", COMMIT, "--repin"]),
        ("not a hub", "info", ["not a hub's", "HF_ENDPOINT"]),
    ],
)
def test_a_refusal_is_explained_and_never_repeated(
    machine: Machine, name: str, stage: str, words: list[str]
) -> None:
    outcome = play(name, machine)
    assert outcome.status == 2
    for word in words:
        assert word in outcome.err
    assert "Traceback" not in outcome.err
    assert len(machine.hub.requests(stage)) == 1
    assert not machine.hub.requests("file")
    assert nothing_looks_whole(machine)


def test_a_hub_that_is_busy_is_waited_for(machine: Machine) -> None:
    outcome = play("429 with Retry-After", machine)
    assert outcome.status == 0
    assert "429 Too Many Requests; try 2 of 5 in 1 s" in outcome.err
    assert [request.status for request in machine.hub.requests("file")] == [429, 200]


def test_an_error_of_the_hub_passes(machine: Machine) -> None:
    outcome = play("500 once", machine)
    assert outcome.status == 0
    for status in ("500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable"):
        assert f"{status}; try 2 of 5" in outcome.err
    assert machine.cached().read_bytes() == content()


def test_an_error_of_the_hub_that_stays_is_given_up(machine: Machine) -> None:
    outcome = play("500 always", machine)
    assert outcome.status == 2
    assert tries(outcome.err) == ["2", "3", "4", "5"]
    assert len(machine.hub.requests("head")) == TRIES
    assert nothing_looks_whole(machine)


def test_no_hub_at_all(machine: Machine) -> None:
    outcome = machine.run("fetch", ROW, HF_ENDPOINT="http://127.0.0.1:9")
    assert outcome.status == 2
    assert "cannot connect to http://127.0.0.1:9, 5 times in a row" in outcome.err
    assert machine.lock() == {}


def test_a_file_that_changed_at_its_revision_is_refused(machine: Machine) -> None:
    outcome = play("file changed at its revision", machine)
    assert outcome.status == 2
    assert f"SHA-256 was {sha256(content())}, is {sha256(content(2, SIZE + 1))}" in outcome.err
    assert f"size was {SIZE}, is {SIZE + 1}" in outcome.err
    assert f"tec fetch {ROW} --repin" in outcome.err
    assert not machine.hub.requests("file")


def test_a_later_revision_changes_nothing(machine: Machine) -> None:
    assert play("new revision", machine).status == 0
    assert machine.cached().read_bytes() == content()
    assert machine.lock()[ROW]["commit"] == COMMIT


def test_a_later_revision_can_be_pinned(machine: Machine) -> None:
    outcome = play("new revision, --repin", machine)
    assert outcome.status == 0
    assert f"pinned {REPO} at {NEXT[:12]}" in outcome.err
    assert f"was {REPO} at {COMMIT[:12]}" in outcome.err
    assert machine.lock()[ROW]["commit"] == NEXT
    assert machine.cached(commit=NEXT).read_bytes() == content(2)


def test_a_row_that_names_other_files_than_the_lock(machine: Machine) -> None:
    pin(machine)
    machine.add_row(ROW, ["other.gguf"])
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 2
    assert FILE in outcome.err
    assert "other.gguf" in outcome.err
    assert "--repin" in outcome.err
    assert not machine.hub.log


def test_no_byte_is_asked_for_when_the_disk_is_too_small(machine: Machine) -> None:
    outcome = play("disk too small", machine)
    assert outcome.status == 2
    assert f"{ANNOUNCED / 1e9:,.2f} GB have still to be fetched" in outcome.err
    assert re.search(r"only [\d,.]+ GB are free", outcome.err)
    assert str(machine.folder / "hf") in outcome.err
    assert "HF_HOME" in outcome.err
    assert not machine.hub.requests("head", "get", "file")


def test_offline_works_from_the_cache_alone(machine: Machine) -> None:
    assert play("all in order", machine).status == 0
    machine.hub.log.clear()
    assert machine.run("fetch", ROW, HF_HUB_OFFLINE="1").status == 0
    assert not machine.hub.log


def test_offline_without_the_file(machine: Machine) -> None:
    outcome = play("offline", machine)
    assert outcome.status == 2
    for word in ("HF_HUB_OFFLINE", FILE, str(machine.folder / "hf"), "TEC_MODELS"):
        assert word in outcome.err
    assert not machine.hub.log


def test_killed_in_the_middle_and_continued(machine: Machine) -> None:
    machine.hub.troubles = [Trouble("file", hold_after=SIZE // 3)]
    process = machine.start("fetch", ROW)
    partial = machine.repo_cache / "blobs" / f"{sha256(content())}.incomplete"
    # what is still in a buffer is lost with the process: wait for a part to be on disk
    wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    arrived = partial.stat().st_size
    assert 0 < arrived <= SIZE // 3
    assert nothing_looks_whole(machine)
    machine.hub.released.set()
    machine.hub.log.clear()
    assert machine.run("fetch", ROW).status == 0
    assert sent(machine) == [(f"bytes={arrived}-", SIZE - arrived)]
    assert machine.cached().read_bytes() == content()
    assert machine.blobs() == [sha256(content())]


def test_interrupted_by_the_user(machine: Machine) -> None:
    machine.hub.troubles = [Trouble("file", hold_after=SIZE // 3)]
    process = machine.start("fetch", ROW, HF_HUB_DOWNLOAD_TIMEOUT="5")
    assert process.stderr is not None
    while process.stderr.readline() not in ("fetching ...\n", ""):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fetching: interrupted" in error
    assert "run the same command again to continue" in error
    assert "Traceback" not in error
    assert nothing_looks_whole(machine)


def test_a_part_that_does_not_belong_is_found_out(machine: Machine) -> None:
    pin(machine)
    partial = machine.repo_cache / "blobs" / f"{sha256(content())}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(1000))
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    assert sent(machine) == [("bytes=1000-", SIZE - 1000), (None, SIZE)]
    assert machine.cached().read_bytes() == content()


def test_a_users_own_file_behind_the_caches_name_is_left_alone(machine: Machine) -> None:
    pin(machine)
    own = machine.local_file(content(5)) / "somewhere" / FILE
    machine.cached().parent.mkdir(parents=True)
    machine.cached().symlink_to(own)
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 0
    assert f"has SHA-256 {sha256(content(5))}" in outcome.err
    assert own.read_bytes() == content(5)
    assert machine.cached().read_bytes() == content()
    assert machine.blobs() == [sha256(content())]


def test_more_bytes_than_announced_stop_the_fetch(machine: Machine) -> None:
    machine.hub.repos[REPO].announced[FILE] = 1000
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 2
    assert f"more than the 1000 bytes of {FILE} arrive" in outcome.err
    assert len(machine.hub.requests("file")) == 1
    assert nothing_looks_whole(machine)
    assert all(path.stat().st_size <= 1000 for path in (machine.repo_cache / "blobs").iterdir())


def test_the_token_is_shown_to_the_hub_only(machine: Machine) -> None:
    machine.variables |= {"HF_TOKEN": "hf_of_a_test"}
    assert machine.run("fetch", ROW).status == 0
    assert all(request.authorized for request in machine.hub.requests("info", "head", "get"))
    assert not any(request.authorized for request in machine.hub.requests("file"))


def split_row(machine: Machine) -> dict[str, bytes]:
    parts = {name: content(number, 50_000) for number, name in enumerate(PARTS)}
    machine.hub.repos[REPO] = Repo({COMMIT: parts}, COMMIT)
    machine.add_row("split", PARTS)
    return parts


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_split_files_lie_side_by_side(machine: Machine, jobs: str) -> None:
    parts = split_row(machine)
    outcome = machine.run("fetch", "split", "--jobs", jobs)
    assert outcome.status == 0
    assert "split: 3 files checked, 150,000 bytes" in outcome.out
    for name, data in parts.items():
        assert machine.cached(name).read_bytes() == data
    assert [file["name"] for file in machine.lock()["split"]["files"]] == PARTS


def test_one_file_at_a_time_unless_told_otherwise(machine: Machine) -> None:
    split_row(machine)
    machine.hub.troubles = [Trouble("file", hold_after=1000)]
    process = machine.start("fetch", "split")
    assert machine.hub.holding.wait(60)
    assert len(machine.hub.requests("file")) == 1
    machine.hub.released.set()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert [Path(request.path).name for request in machine.hub.requests("file")] == [
        Path(name).name for name in (PARTS[0], *PARTS)
    ]


def test_several_files_at_a_time(machine: Machine) -> None:
    split_row(machine)
    machine.hub.troubles = [Trouble("file", hold_after=1000, times=2)]
    process = machine.start("fetch", "split", "--jobs", "2")
    wait_for(lambda: len(machine.hub.requests("file")) == 2)  # none of the two has ended
    machine.hub.released.set()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_file_that_fails_does_not_lose_the_others(machine: Machine) -> None:
    parts = split_row(machine)
    machine.hub.troubles = [Trouble("head", 403)]
    outcome = machine.run("fetch", "split")
    assert outcome.status == 2
    assert "403 Forbidden" in outcome.err
    assert not machine.cached(PARTS[0]).exists()
    assert machine.cached(PARTS[2]).read_bytes() == parts[PARTS[2]]


def test_the_list_says_what_is_pinned_and_here(machine: Machine) -> None:
    machine.add_row("later", ["later.gguf"])
    play("all in order", machine)
    outcome = machine.run("fetch", "--list")
    assert outcome.status == 0
    later, here = outcome.out.splitlines()
    assert later == f"later: {REPO}, later.gguf; not pinned"
    assert f"pinned {REPO} at {COMMIT[:12]}" in here
    assert "1 of 1 in the cache" in here


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cache_that_cannot_be_written(machine: Machine) -> None:
    (machine.folder / "hf").write_text("a file where a folder should be")
    outcome = machine.run("fetch", ROW)
    assert outcome.status == 2
    assert "a file cannot be used: Not a directory" in outcome.err
    assert "HF_HOME" in outcome.err
