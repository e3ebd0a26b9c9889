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
        verdict = _plain(release.verdict)
        if release.yanked is not None:
            verdict = Text.assemble(
                ("yanked and removed: " if release.removed else "yanked: ", "red"), _plain(release.yanked)
            )
        table.add_row(
            release.name,
            release.version,
            _plain(release.created[:16].replace("T", " ")),
            f"{release.images:,}",
            f"{release.classes:,}",
            f"{release.bytes / 1e6:,.1f} MB",
            ", ".join(release.channels),
            verdict,
        )
    return table


def releases_json(releases: Iterable[ReleaseInfo]) -> str:
    """A list of objects, for programs."""
    return json.dumps([asdict(release) for release in releases], indent=1)


def card_text(version: Version) -> Group:
    """The card of a version. Raises FailedError when it has none."""
    from rich.markdown import Markdown  # brings a parser and highlighting, which a table does without

    data = version.read(CARD)
    if data is None:
        raise FailedError(f"{version.store.url}: {version.name} has no {CARD}")
    text = _HEADER.sub("", data.decode(errors="replace"))
    body = Markdown(_plain(text).plain, hyperlinks=False)
    if version.yank is None:
        return Group(body)
    yank = version.yank
    return Group(Text.assemble((f"Yanked on {_plain(yank.since[:10])}: ", "red"), _plain(yank.why)), body)


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


def put(what: Table | Group) -> None:
    """Print it as wide as the terminal. In a file or a pipe a row of a table is a line, and no line ends in blanks."""
    console = Console()
    if console.is_terminal:
        console.print(what)
        return
    if isinstance(what, Table):
        console.width = _WIDEST
    with console.capture() as printed:
        console.print(what)
    print(re.sub(" +$", "", printed.get(), flags=re.MULTILINE), end="")


def _plain(text: str) -> Text:
    return Text("".join(letter for letter in text if letter.isprintable() or letter == "\n"))
