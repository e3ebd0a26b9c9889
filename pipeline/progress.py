"""One live line for long work: how far, how fast, time left."""

from __future__ import annotations

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


class ProgressLine:
    """Rewrites one line on a terminal; into a pipe or a log it writes a new line every few seconds."""

    def __init__(self, label: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()
        self.period_seconds = 0.2 if self.live else 5.0
        self.started = self.written = time.monotonic()
        self.first: int | None = None

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total is done; written only when the period has passed, or at the end."""
        if self.first is None:
            self.first = done  # a resumed run's speed is of what this process did
        now = time.monotonic()
        if now - self.written < self.period_seconds and done < self.total:
            return
        self.written = now
        elapsed = now - self.started
        rate = (done - self.first) / elapsed if elapsed > 0 else 0.0
        left = f", {duration((self.total - done) / rate)} left" if rate > 0 and done < self.total else ""
        line = f"{self.label}: {done:,} of {self.total:,} {self.unit}, {rate:,.0f} a second{left}"
        line += f", {note}" if note else ""
        end = "\n" if done >= self.total or not self.live else ""
        self.stream.write(f"\r\x1b[K{line}{end}" if self.live else f"{line}\n")
        self.stream.flush()


def progress(items: Iterable[T], label: str, total: int, unit: str) -> Iterator[T]:
    """The items, counted on a progress line as they are taken."""
    line = ProgressLine(label, total, unit)
    for done, item in enumerate(items, start=1):
        yield item
        line.update(done)
