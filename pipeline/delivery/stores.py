"""Where releases live: a folder or an S3 bucket, both with create-once and compare-and-swap."""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pipeline.errors import FailedError, UserError

MAX_BYTES = 1 << 22  # of a manifest, pointer or list of checksums; what is larger is not read into memory


class StoreError(FailedError):
    """The store did not do what it was asked; of what it holds this says nothing."""


class ForbiddenError(StoreError):
    """The store refuses these credentials."""


class BrokenError(StoreError):
    """The connection broke, or nobody answered; it may go well another time."""


class Store(Protocol):
    """Keys are relative, with '/' between their parts. Everything raises FailedError or UserError in one sentence."""

    url: str

    def read(self, key: str) -> tuple[bytes, str] | None:
        """A small object and its tag, None where there is none. Raises FailedError above MAX_BYTES."""

    def chunks(self, key: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """The object's bytes from `start` to before `stop`, or to its end; a megabyte or less at a time."""

    def sizes(self, prefix: str) -> Mapping[str, int]:
        """The bytes of each object whose key begins with `prefix`, a key that ends in '/'."""

    def times(self, prefix: str) -> Mapping[str, datetime]:
        """When each object was written, its keys as `sizes` gives them."""

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly in `prefix`, which is empty or ends in '/'."""

    def files(self, prefix: str) -> list[str]:
        """The names of the objects directly in `prefix`, as `folders` takes it."""

    def create(self, key: str, source: bytes | Path, sha256: str | None = None) -> bool:
        """Write the object whole; False, and nothing written, where there is one already.

        The `sha256` of the source, where it is known, is what a server holds the bytes that it gets against.
        """

    def swap(self, key: str, data: bytes, tag: str | None) -> bool:
        """Replace the object that was read with `tag` (None: that was not there); False if it is another by now."""

    def delete(self, key: str) -> None:
        """Remove the object."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a bucket is reached, as far as the environment does not say it; the files are those of AWS' tools.

    `verify` is false where any certificate will do, or a file of authorities; an `endpoint_url` overrides `use_ssl`.
    """

    endpoint_url: str | None = None
    use_ssl: bool = True
    verify: bool | str | None = None
    region: str | None = None
    profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    config_file: str | None = None
    credentials_file: str | None = None


_SECRET_IN_URL = re.compile(r"(?<=://)(?:[^/@\s:]*:[^@\s]*|[^/@\s]*)@|(?<=\?)[^\s'\"]*=[^\s'\"]*")


def shown(text: str) -> str:
    """`text` for messages and logs: without the user, the password and the query of URLs, which may be credentials."""
    return _SECRET_IN_URL.sub(lambda found: "***@" if found[0].endswith("@") else "***", text)


def check_url(url: str) -> None:
    """Raise UserError for what may be credentials in a URL, for a store's are of the environment."""
    if "://" in url and shown(url) != url:
        raise UserError(
            f"'{shown(url)}' has a user or a query; needed s3://bucket/prefix alone, and the credentials in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile in AWS_PROFILE"
        )


def open_store(url: str, access: Access | None = None) -> Store:
    """The store at `url`: s3://bucket/prefix or a folder. Nothing is read or written yet."""
    check_url(url)
    if url.startswith("s3:///"):
        raise UserError(f"'{url}' names no bucket; needed s3://bucket/prefix")
    if url.startswith("s3://"):
        from pipeline.delivery.s3 import S3Store

        return S3Store(url, access or Access())
    if "://" in url or not url:
        raise UserError(f"'{url}' is not a store; needed s3://bucket/prefix or a folder")
    from pipeline.delivery.folder import FolderStore

    return FolderStore(url)


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What a store was seen to do: read, write, refuse to create twice, refuse a swap on a stale tag."""

    read: bool
    write: bool
    create: bool
    swap: bool


def check(store: Store) -> Promises:
    """Try every promise on an object of its own, removed afterwards. Raises FailedError when the store is not there."""
    key = f".forgeline/probe-{secrets.token_hex(8)}"
    try:
        store.folders("")
        read = True
    except ForbiddenError:
        read = False
    try:
        store.create(key, b"a probe; may be removed")
    except ForbiddenError:
        return Promises(read=read, write=False, create=False, swap=False)
    try:
        creates, swaps = keeps_conditions(store, key, b"a probe; may be removed")
        found = store.read(key)
        swaps = swaps and found is not None and store.swap(key, b"a swapped probe; may be removed", found[1])
    except ForbiddenError:
        return Promises(read=False, write=True, create=False, swap=False)
    finally:
        with suppress(ForbiddenError):
            store.delete(key)
    return Promises(read=read, write=True, create=creates, swap=swaps)


def keeps_conditions(store: Store, key: str, data: bytes) -> tuple[bool, bool]:
    """Whether the store refuses to create the object `key` again, and to swap it on a wrong tag.

    The object holds `data` already, so that a store which ignores conditions writes what is there.
    """
    return not store.create(key, data), not store.swap(key, data, '"00000000000000000000000000000000"')
