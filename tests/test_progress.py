"""What a person sees of long work, on a real terminal and in a log."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import pytest

from pipeline.progress import ProgressLine, Terminal, duration, is_unfinished, progress


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.progress.time", clock)
    return clock


@pytest.fixture
def screen() -> Iterator[tuple[TextIO, int]]:
    """A terminal to write to, and the file descriptor that gives what was written."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        yield stream, master
    os.close(master)


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0s"), (95.2, "1m35s"), (7300, "2h01m")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_a_line_every_few_seconds_with_speed_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    line = ProgressLine("train", 1000, "images", stream=stream)
    for second in range(1, 11):
        clock.seconds = second
        line.update(second * 50, "loss 1.00")
    assert stream.getvalue().splitlines() == [
        "train: 250 of 1,000 images, 50 images a second, 15s left, loss 1.00",
        "train: 500 of 1,000 images, 50 images a second, 10s left, loss 1.00",
    ]


def test_the_speed_is_of_this_process_alone(clock: Clock) -> None:
    stream = io.StringIO()
    line = ProgressLine("train", 1000, "images", done=900, stream=stream)
    clock.seconds = 10
    line.update(1000)
    assert stream.getvalue() == "train: 1,000 of 1,000 images, 10 images a second\n"


def test_the_end_is_written_once_and_again_when_it_was_none(clock: Clock) -> None:
    stream = io.StringIO()
    line = ProgressLine("pull", 10, "MB", stream=stream)
    clock.seconds = 5
    for done in (10, 10, 11, 4, 10):  # a file that arrived damaged is fetched anew
        line.update(done)
    assert stream.getvalue().splitlines() == ["pull: 10 of 10 MB, 2 MB a second"] * 2


def test_a_day_does_not_flood_a_log(clock: Clock) -> None:
    stream = io.StringIO()
    line = ProgressLine("train", 86_401, "images", stream=stream)
    for second in range(86_400):
        clock.seconds = second
        line.update(second)
    assert 1_000 < len(stream.getvalue().splitlines()) < 2_500


def test_items_are_counted_as_they_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), "read", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("read: 3 of 3 letters, ")


@pytest.mark.parametrize(
    ("line", "unfinished"),
    [
        ("    train: 1,000 of 2,000 images, 3 images a second", True),
        ("train: 100 of 1,000 images, 3 images a second", True),
        ("train: 2,000 of 2,000 images, 3 images a second", False),
        ("[5/10] train: done in 3s", False),
        ("forgeline: photos: 4 of 28 files (14.3%) are bad", False),
    ],
)
def test_what_is_replaced_on_a_terminal(line: str, unfinished: bool) -> None:
    assert is_unfinished(line) == unfinished


def test_a_terminal_shows_the_last_state_in_the_place_of_the_ones_before(
    screen: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream, master = screen
    terminal = Terminal(stream)
    terminal.write("a: 1 of 9 x, and so on to a second row")
    terminal.write("a: 9 of 9 x")
    terminal.write("done")
    stream.close()
    shown = b""
    with suppress(OSError):  # all is read, and nobody holds the other end: a terminal's way of ending
        while read := os.read(master, 1000):
            shown += read
    assert shown.decode() == (
        "\r\x1b[Ja: 1 of 9 x, and so on to a second row\r\x1b[1A\r\x1b[Ja: 9 of 9 x\r\n\r\x1b[Jdone\r\n"
    )
