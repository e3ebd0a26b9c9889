"""Pointers: NAME/CHANNEL.json, the only objects that are ever replaced. Publishing moves the channel `latest`."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from pipeline.delivery.manifest import MANIFEST, SCHEMA_VERSION, check_name, is_name, parse_json, to_json
from pipeline.delivery.stores import Store
from pipeline.errors import FailedError, UserError

LATEST = "latest"
Action = Literal["publish", "promote", "rollback", "yank"]

_SUFFIX = ".json"
_MAX_HISTORY = 1000
_VERSION = re.compile(r"[0-9a-f]{16}")


def is_version(word: str) -> bool:
    """Whether `word` after NAME@ is a version; what is none is a channel."""
    return _VERSION.fullmatch(word) is not None


@dataclass(frozen=True, kw_only=True)
class Move:
    """A pointer was made to name `version`: since when (ISO 8601), by which user, by what act, and why."""

    version: str
    since: str
    action: Action
    by: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What a channel names; its moves, newest first; and the tag to swap it by."""

    channel: str
    moves: tuple[Move, ...]
    tag: str

    @property
    def version(self) -> str:
        """The version that the channel names."""
        return self.moves[0].version

    @classmethod
    def read(cls, store: Store, name: str, channel: str = LATEST) -> Pointer | None:
        """None where there is no such channel. Raises FailedError when it is not a pointer."""
        key = _key(name, channel)
        found = store.read(key)
        if found is None:
            return None
        content = parse_json(found[0], f"{store.url}/{key}", {"version": str, "history": list})
        version, history = content["version"], content["history"]
        if not all(_is_move(move) for move in history):
            raise FailedError(f"{store.url}/{key}: history is not a list of moves")
        if not is_name(version) or [version] != [move["version"] for move in history[:1]]:
            raise FailedError(f"{store.url}/{key}: points to {version!r:.99}; needed the newest of its history")
        return cls(channel=channel, moves=tuple(Move(**move) for move in history), tag=found[1])

    def earlier(self) -> list[str]:
        """The versions that the channel named before, as a rollback or a yank finds them: nearest first."""
        stack: list[str] = []
        for move in reversed(self.moves):
            if move.action in ("rollback", "yank") and move.version in stack:
                del stack[stack.index(move.version) :]
            elif move.version in stack:
                stack.remove(move.version)
            stack.append(move.version)
        return stack[-2::-1]


def channels(store: Store, name: str) -> list[str]:
    """The names of a release's channels, `latest` first."""
    files = [file.removesuffix(_SUFFIX) for file in store.files(f"{name}/") if file.endswith(_SUFFIX)]
    return sorted(filter(is_name, files), key=lambda channel: (channel != LATEST, channel))


def read_pointers(store: Store, name: str) -> list[Pointer]:
    """Every channel of a release, as `channels` has them. Raises FailedError when one of them is not a pointer."""
    return [pointer for channel in channels(store, name) if (pointer := Pointer.read(store, name, channel))]


def move(
    store: Store,
    name: str,
    version: str,
    before: Pointer | None,
    *,
    action: Action,
    channel: str = LATEST,
    why: str = "",
) -> None:
    """Make the channel name `version`, unless it changed since it was read as `before`.

    Raises FailedError for a lost race, and when the version is removed at the same moment; UserError for a bad name.
    """
    check_name("channel", channel)
    if is_version(channel):
        raise UserError(f"'{channel}' cannot be a channel; needed a name that is not like a version")
    key, tag = _key(name, channel), before.tag if before else None
    made = Move(version=version, since=now(), action=action, by=user(), why=why)
    found = Pointer.read(store, name, channel)
    data = _written([made, *(before.moves if before else ())])
    if (found.tag if found else None) != tag or not store.swap(key, data, tag):
        found = Pointer.read(store, name, channel)
        if found is None or found.version != version:
            raise FailedError(
                f"{store.url}/{name}: version {version} is published, but another publisher was faster and made "
                f"{found.version if found else 'none'} the {channel}; publish again to make this one the {channel}"
            )
    if store.read(f"{name}/v={version}/{MANIFEST}") is None:
        # Looked for after the swap, as prune looks at the pointers after it took the manifest away: one of both sees
        # the other, so that none is left which names nothing.
        found = Pointer.read(store, name, channel)
        if before and found and found.version == version:
            store.swap(key, _written(before.moves), found.tag)
        raise FailedError(f"{store.url}/{name}: version {version} was removed meanwhile; {channel} is as before")


def now() -> str:
    """The time, as everything in a store has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def user() -> str:
    """Who does what is written down in a store."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may know no name for its user
        return "unknown"


def _written(moves: Sequence[Move]) -> bytes:
    history = [asdict(each) for each in moves[:_MAX_HISTORY]]
    return to_json({"schema_version": SCHEMA_VERSION, "version": moves[0].version, "history": history})


def _key(name: str, channel: str) -> str:
    return f"{name}/{channel}{_SUFFIX}"


def _is_move(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == Move.__dataclass_fields__.keys()
        and all(isinstance(text, str) for text in value.values())
        and value["action"] in get_args(Action)
    )
