"""Stages whose starters are killed."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

CHILD = f"""{sys.executable} -c '
import os, threading, time
from pipeline import starters
starters.end_with_them()
print(os.getpid(), threading.active_count() - 1, flush=True)
time.sleep(600)'"""
# As DVC: the shell has DVC_STAGE in its environment, who waits for it has not.
STARTER = """
import os, subprocess, sys
command, *variables = sys.argv[1:]
subprocess.run(command, shell=True, executable="/bin/sh", env=os.environ | dict.fromkeys(variables, "train"))
"""


def started(command: str, *variables: str) -> tuple[psutil.Popen, psutil.Process, int]:
    """The one that waits, the process that runs `command` for it, and how many threads that has beside its first."""
    known = {name: value for name, value in os.environ.items() if name not in ("RANK", "DVC_STAGE")}
    words = [sys.executable, "-c", STARTER, command, *variables]
    starter = psutil.Popen(words, env=known, stdout=subprocess.PIPE, text=True)
    found, threads = starter.stdout.readline().split()
    return starter, psutil.Process(int(found)), int(threads)


@pytest.mark.parametrize("command", [f"exec {CHILD}", f"{CHILD}; true"], ids=["the shell gone", "the shell between"])
def test_a_stage_ends_when_dvc_is_killed(command: str) -> None:
    dvc, stage, _ = started(command, "DVC_STAGE")
    with dvc:
        dvc.kill()
        _, alive = psutil.wait_procs([stage], timeout=60)
        for process in alive:
            process.kill()
    assert alive == []


def test_nobody_is_watched_where_neither_dvc_nor_torchrun_has_started_it() -> None:
    starter, process, threads = started(f"exec {CHILD}")
    with starter:
        process.kill()
    assert threads == 0
