"""What `list`, `show` and `history` print. What a store says is text from strangers: no control codes, no markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pipeline.delivery.manifest import CARD
from pipeline.delivery.pointer import Pointer
from pipeline.delivery.versions import ReleaseInfo, Version
from pipeline.errors import FailedError

_WIDEST = 1000  # letters of a row that is a line; a table takes what it needs of them
_POINTS = re.compile(r": [^():]* points(?=\))")  # by how much a set helps, which the card says: here are many sets
_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def releases_table(releases: Iterable[ReleaseInfo]) -> Table:
    """A row for each version."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    for title in ("version", "created (UTC)"):
        table.add_column(title, no_wrap=True)
    for title in ("images", "classes", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("named by")
    table.add_column("verdict", min_width=24)
    for release in releases:
        if release.damaged is not None:
            damage = Text.assemble(("damaged: ", "red"), _plain(release.damaged))
            table.add_row(release.name, release.version, *[""] * 4, ", ".join(release.channels), damage)
            continue
        verdict = _plain(_POINTS.sub("", release.verdict))
        counts = [f"{release.images:,}", f"{release.classes:,}", f"{release.bytes / 1e6:,.2f} MB"]
        if release.yanked is not None:
            verdict = Text.assemble(
                ("yanked and removed: " if release.removed else "yanked: ", "red"), _plain(release.yanked)
            )
        table.add_row(
            release.name,
            release.version,
            _plain(release.created[:16].replace("T", " ")),
            *([""] * len(counts) if release.removed else counts),  # of what was removed they are not known
            ", ".join(release.channels),
            verdict,
        )
    return table


def releases_json(releases: Iterable[ReleaseInfo]) -> str:
    """A list of objects, for programs."""
    return json.dumps([asdict(release) for release in releases], indent=1)


def history_table(pointers: Iterable[Pointer]) -> Table:
    """A row for each move of each channel, newest first."""
    table = Table(box=None, pad_edge=False)
    for title in ("channel", "version", "since", "by", "what"):
        table.add_column(title, no_wrap=True)
    table.add_column("why")
    for pointer in pointers:
        for move in pointer.moves:
            texts = (move.version, move.since, move.by, move.action, move.why)
            table.add_row(pointer.channel, *map(_plain, texts))
    return table


def put_table(table: Table | Group) -> None:
    """Print it as wide as the terminal. In a file or a pipe a row is a line, and no line ends in blanks."""
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    console.width = _WIDEST
    with console.capture() as printed:
        console.print(table)
    print(re.sub(" +$", "", printed.get(), flags=re.MULTILINE), end="")


def put_card(version: Version) -> None:
    """Print the card of a version. In a file or a pipe it is as it was written. Raises FailedError when it has none."""
    data, console = version.read(CARD), Console()
    if data is None:
        raise FailedError(f"{version.store.url}: {version.name} has no {CARD}")
    text = _plain(_HEADER.sub("", data.decode(errors="replace"))).plain
    if version.yank:
        said = Text.assemble((f"Yanked on {_plain(version.yank.since[:10])}: ", "red"), _plain(version.yank.why))
        console.print(said, soft_wrap=True)
    if not console.is_terminal:
        print(text.strip())
        return
    from rich.markdown import Markdown  # brings a parser and highlighting, which a table does without

    console.print(Markdown(text, hyperlinks=False))


def _plain(text: str) -> Text:
    return Text("".join(letter for letter in text if letter.isprintable() or letter == "\n"))
