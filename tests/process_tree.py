"""Killing a process with all it started, as the end of a container or a session does."""

from __future__ import annotations

import subprocess

import psutil


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants, and wait until they are gone."""
    stopped = _stop(psutil.Process(process.pid))
    for one in stopped:
        one.kill()
    process.wait(10)
    psutil.wait_procs(stopped, timeout=10)


def _stop(process: psutil.Process) -> list[psutil.Process]:
    """Stop a process before its children are listed: it can start no more of them."""
    process.suspend()
    below = [one for child in process.children() for one in _stop(child)]
    return [process, *below]
