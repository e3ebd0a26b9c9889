"""What a publisher does with published versions: promote, roll back, yank, prune, and collect what never finished."""

from __future__ import annotations

import threading
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from pipeline.delivery.manifest import CHECKSUMS, MANIFEST, check_name, is_name
from pipeline.delivery.pointer import LATEST, Action, Pointer, channels, move, now, read_pointers, user
from pipeline.delivery.stores import Store, check_url, open_store
from pipeline.delivery.versions import (
    YANKED,
    Version,
    Yank,
    find,
    folder_versions,
    locate,
    read_version,
    read_versions,
)
from pipeline.errors import UserError, nearest
from pipeline.parallel import in_parallel


def open_release_store(url: str) -> tuple[Store, str]:
    """The store and the name in URL/NAME. Raises UserError where there is no such release."""
    check_url(url)
    base, _, name = url.rstrip("/").rpartition("/")
    if not base or base in ("s3:", "s3:/"):
        raise UserError(f"'{url}' is not a release; needed URL/NAME, URL a folder or s3://…")
    check_name("release", name)
    store = open_store(base)
    if not folder_versions(store, name):
        raise UserError(f"{store.url}: has no release '{name}'")
    return store, name


def promote(url: str, *, channel: str = LATEST, why: str) -> str:
    """Make the channel name the version that `url` names, and say which. Raises UserError for a yanked one."""
    version = find(url)
    if version.yank:
        raise UserError(f"{version.name} was yanked ({version.yank.why}); needed another version")
    store, name = version.store, version.manifest.name
    before = Pointer.read(store, name, channel)
    if before is None or before.version != version.manifest.version:
        move(store, name, version.manifest.version, before, action="promote", channel=channel, why=why)
    return version.name


def rollback(url: str, *, channel: str = LATEST, why: str) -> str:
    """Make the channel of URL/NAME name the nearest version that it named before and that can still be pulled."""
    store, name = open_release_store(url)
    pointer = Pointer.read(store, name, channel)
    if pointer is None:
        raise UserError(f"{store.url}/{name}: has no channel '{channel}'; {nearest(channel, channels(store, name))}")
    version = _back(store, name, pointer, "rollback", why)
    if version is None:
        raise UserError(f"{store.url}/{name}: {channel} named no version before {pointer.version} that is still there")
    return f"{name}@{version}"


def yank(url: str, *, why: str, remove: bool = False) -> list[str]:
    """Take back a version: mark it, then roll back every channel that names it. Sentences that say what was done.

    With `remove` all else of it is removed then, also where a channel still names it, as for want of another version.
    """
    store, name, taken = locate(url)
    if not (remove and Yank.read(store, name, taken)):  # or this goes on with a removal that was cut off
        find(f"{store.url}/{name}@{taken}")
    label = f"{name}@{taken}"
    new = Yank(why=why, since=now(), by=user()).write(store, name, taken)
    said = [f"{label}: yanked" if new else f"{label}: was yanked already"]
    for pointer in read_pointers(store, name):
        if pointer.version != taken:
            continue
        back = _back(store, name, pointer, "yank", why)
        if new and not back:  # for the history
            move(store, name, taken, pointer, action="yank", channel=pointer.channel, why=why)
        said.append(
            f"{pointer.channel}: now {name}@{back}"
            if back
            else f"{pointer.channel}: still names {label}, for there is none to go back to; pullers are refused"
        )
    if remove:
        folder = f"{name}/v={taken}/"
        store.delete(folder + MANIFEST)  # first, so that no reader ever sees a part of it as whole
        _remove(store, store.sizes(folder), keep=folder + YANKED)
        said.append(f"{label}: removed, but for the mark that it was yanked")
    return said


def prune(url: str, *, keep: int) -> list[str]:
    """Remove all versions of URL/NAME but the `keep` newest that are not yanked; never one that a channel names.

    A yanked version stays marked, so that it is not published again. Returns the versions removed.
    """
    store, name = open_release_store(url)
    versions = read_versions(store, name)
    kept = {each.manifest.version for each in [each for each in versions if not each.yank][:keep]}
    return [version.name for version in versions if version.manifest.version not in kept and _withdraw(store, version)]


def collect(store: Store, age: timedelta) -> list[str]:
    """Remove every version's parts that have no manifest and of which none was written within `age`.

    Returns NAME@VERSION of each. A publish of such a version that begins at the same moment fails and says so.
    """
    return [
        f"{name}@{version}"
        for name in filter(is_name, store.folders(""))
        for version in folder_versions(store, name)
        if _collect(store, name, version, datetime.now(UTC) - age)
    ]


def _back(store: Store, name: str, pointer: Pointer, action: Action, why: str) -> str | None:
    for earlier in pointer.earlier():
        found = read_version(store, name, earlier)
        if found and not found.yank:
            move(store, name, earlier, pointer, action=action, channel=pointer.channel, why=why)
            return earlier
    return None


def _withdraw(store: Store, version: Version) -> bool:
    """Remove a version unless a channel names it, its manifest first: no reader ever sees a part of it as whole."""
    name, named = version.manifest.name, version.manifest.version
    if _is_named(store, name, named):
        return False
    store.delete(version.key(MANIFEST))
    if _is_named(store, name, named):  # since a moment ago; `move` looks for the manifest after it moved
        store.create(version.key(MANIFEST), version.data)
        return False
    _remove(store, store.sizes(version.key("")), keep=version.key(YANKED))
    return True


def _collect(store: Store, name: str, version: str, before: datetime) -> bool:
    folder = f"{name}/v={version}/"
    parts = store.times(folder)
    if set(parts) <= {folder + YANKED} or folder + MANIFEST in parts or max(parts.values()) > before:
        return False
    # A publisher looks for its list once more when it has written the manifest, as this looks for the manifest when it
    # has removed the list: one of both sees the other.
    checksums = store.read(folder + CHECKSUMS)
    store.delete(folder + CHECKSUMS)
    if store.read(folder + MANIFEST) is not None:
        if checksums:
            store.create(folder + CHECKSUMS, checksums[0])
        return False
    _remove(store, parts, keep=folder + YANKED)
    return True


def _is_named(store: Store, name: str, version: str) -> bool:
    return any(pointer.version == version for pointer in read_pointers(store, name))


def _remove(store: Store, keys: Collection[str], *, keep: str) -> None:
    for _ in in_parallel(store.delete, [key for key in keys if key != keep], threading.Event()):
        pass
