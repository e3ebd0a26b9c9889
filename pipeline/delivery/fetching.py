"""Bytes from a store into files and memory, checked against the sha256 that is known of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.delivery.manifest import MANIFEST, File
from pipeline.delivery.stores import BrokenError, Store
from pipeline.errors import FailedError
from pipeline.progress import ProgressLine

_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Span:
    """Some bytes of an object."""

    offset: int
    bytes: int
    sha256: str


class Tally:
    """Counts bytes of several threads on one progress line, in MB, and ends them all once `stopped` is set."""

    def __init__(self, label: str, total: int, *, quiet: bool = False) -> None:
        self.label, self.total = label, total
        self.line = None if quiet else ProgressLine(label, -(-total // 10**6), "MB")
        self.stopped = threading.Event()
        self._lock, self._done = threading.Lock(), 0

    def add(self, fetched: int) -> None:
        """Count `fetched` more bytes, or fewer where it is below 0."""
        with self._lock:
            self._done += fetched
            if self.line:
                percent = 100 * self._done // max(1, self.total)
                self.line.update(-(-self.total // 10**6) if percent >= 100 else self._done // 10**6, f"{percent} %")
        if self.stopped.is_set():
            raise FailedError(f"{self.label}: was stopped")


def fetch_file(store: Store, key: str, file: File, path: Path, tally: Tally) -> None:
    """The object `key` as the file `path`, of which a part or all may be there from before.

    Goes on where a connection broke. Raises FailedError, and leaves no `path`, when the bytes are not those of `file`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    resumed = path.exists() and path.stat().st_size > 0
    found = _complete(store, key, file, path, tally)
    if found != file.sha256 and resumed:  # what was there from before may be what is wrong
        tally.add(-path.stat().st_size)
        path.unlink()
        found = _complete(store, key, file, path, tally)
    if found != file.sha256:
        size = path.stat().st_size
        path.unlink()
        if size != file.bytes:
            raise FailedError(f"{store.url}/{key}: is not the {file.bytes:,} bytes that {MANIFEST} says")
        raise FailedError(f"{store.url}/{key}: has sha256 {found}; needed {file.sha256} as in {MANIFEST}")


def _complete(store: Store, key: str, file: File, path: Path, tally: Tally) -> str:
    """Add to `path` what it lacks, at most a chunk more than `file.bytes`; its sha256."""
    digest, size = hashlib.sha256(), 0
    with path.open("a+b") as out:
        out.seek(0)
        while chunk := out.read(1 << 20):
            size += len(chunk)
            digest.update(chunk)
            tally.add(len(chunk))
        attempt = 1
        while size < file.bytes:
            before = size
            try:
                with closing(store.chunks(key, size)) as chunks:
                    for chunk in chunks:
                        size += len(chunk)
                        digest.update(chunk)
                        out.write(chunk)
                        tally.add(len(chunk))
                        if size > file.bytes:
                            break
                break
            except BrokenError:
                attempt = 1 if size > before else attempt + 1  # slow is not stuck
                if attempt > _TRIES:
                    raise
    return digest.hexdigest()


def span_chunks(store: Store, key: str, span: Span) -> Iterator[bytes]:
    """A part of the object `key`. Raises FailedError, at its end, when its bytes are not those that the span says."""
    digest, size, attempt = hashlib.sha256(), 0, 1
    while size < span.bytes:
        before = size
        try:
            with closing(store.chunks(key, span.offset + size, span.offset + span.bytes)) as chunks:
                for chunk in chunks:
                    size += len(chunk)
                    if size > span.bytes:
                        break
                    digest.update(chunk)
                    yield chunk
            break
        except BrokenError:
            attempt = 1 if size > before else attempt + 1
            if attempt > _TRIES:
                raise
    if size != span.bytes or digest.hexdigest() != span.sha256:
        raise FailedError(f"{store.url}/{key}: bytes {span.offset} to {span.offset + span.bytes} are not as published")
