"""One live line for long work: how far, how fast, time left."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """`95.2` as `1m35s`, `7300` as `2h01m`."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


_UNFINISHED = re.compile(r"\s*[^:]+: ([\d,]+) of (?!\1 )[\d,]+ ")


def is_unfinished(line: str) -> bool:
    """Whether `line` says of some work that more is to come, as a ProgressLine does."""
    return _UNFINISHED.match(line) is not None


class Terminal:
    """Lines on a terminal; one that says that more is to come is replaced by the next."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.rows = stream, 0

    def write(self, line: str) -> None:
        unfinished = is_unfinished(line)
        up = f"\x1b[{self.rows - 1}A" if self.rows > 1 else ""  # a long line takes several rows
        self.stream.write(f"{up}\r\x1b[J{line}" + ("\r" if unfinished else "\n"))
        self.stream.flush()
        self.rows = -(-len(line) // shutil.get_terminal_size().columns) if unfinished else 0


class ProgressLine:
    """Rewrites one line on a terminal; into a pipe or a log it writes a new line every few seconds, later minutes.

    `done` is what was done before, as when a run is resumed; the speed is of what this process does.
    """

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = Terminal(self.stream) if self.stream.isatty() else None
        self.started = self.written = time.monotonic()
        self.first, self.ended = done, False

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total is done; written only when the period has passed, or once at the end."""
        now = time.monotonic()
        elapsed = now - self.started
        period = 0.2 if self.terminal else min(max(5.0, elapsed / 100), 60.0)  # a day is some thousand lines
        ended, self.ended = self.ended, done >= self.total
        if ended if self.ended else now - self.written < period:
            return
        self.written = now
        rate = (done - self.first) / elapsed if elapsed > 0 else 0.0
        left = f", {duration((self.total - done) / rate)} left" if rate > 0 and done < self.total else ""
        line = f"{self.label}: {done:,} of {self.total:,} {self.unit}, {rate:,.0f} {self.unit} a second{left}"
        line += f", {note}" if note else ""
        if self.terminal:
            self.terminal.write(line)
        else:
            self.stream.write(f"{line}\n")
            self.stream.flush()


def progress(items: Iterable[T], label: str, total: int, unit: str) -> Iterator[T]:
    """The items, counted on a progress line as they are taken."""
    line = ProgressLine(label, total, unit)
    for done, item in enumerate(items, start=1):
        yield item
        line.update(done)
