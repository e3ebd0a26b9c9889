"""What tests do with processes that are not theirs alone: wait for what these bring about, and end them all at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psutil

T = TypeVar("T")

_PATIENCE_SECONDS = 600  # on a busy machine


def wait_for(find: Callable[[], T | None]) -> T:
    """The first thing that `find` gives."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := find()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def kill_all(process: psutil.Process) -> None:
    """It and all its children, as when a machine loses its power: nobody of them says a word any more."""
    with suppress(psutil.NoSuchProcess):
        process.suspend()  # so that it starts no other
        everybody = [*process.children(recursive=True), process]
        for signal in (psutil.Process.suspend, psutil.Process.kill):
            for each in everybody:
                with suppress(psutil.NoSuchProcess):
                    signal(each)
        psutil.wait_procs(everybody, timeout=60)
