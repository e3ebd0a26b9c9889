"""A stage ends when those end who started it and wait for it: DVC, killed, kills none of the stages that it runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil

_EVERY_SECONDS = 0.5


def end_with_them() -> None:
    """From now on tell this process to stop, by SIGTERM, as soon as who waits for it is gone.

    That is DVC, which runs it as a stage, or the process that started it as one of several that train together; where
    it was started by neither, nobody is watched.
    """
    if line := list(_line()):
        threading.Thread(target=_watch, args=[line], name="starters", daemon=True).start()


def _line() -> Iterator[tuple[psutil.Process, int]]:
    """This process, and each between it and who waits for it, with the parent that it has as long as that one lives.

    DVC is one away or two: not every shell that it runs a stage's command by makes way for the command.
    """
    process = psutil.Process()
    try:
        while process is not None and {"RANK", "DVC_STAGE"} & process.environ().keys():
            yield process, process.ppid()
            process = process.parent()
    except psutil.Error:
        pass  # another user's process, or one that ended just now: the line is as long as could be seen


def _watch(line: list[tuple[psutil.Process, int]]) -> None:
    while _all_live(line):
        time.sleep(_EVERY_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _all_live(line: list[tuple[psutil.Process, int]]) -> bool:
    try:
        return all(process.ppid() == parent for process, parent in line)
    except psutil.NoSuchProcess:
        return False
