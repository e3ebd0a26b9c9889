"""Zip and tar archives, read where they lie: nothing is unpacked onto the disk."""

from __future__ import annotations

import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# The last three are what zipfile stumbles over in names and fields that it does not look at first.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError),
    *(ValueError, IndexError, struct.error),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file; `read` gives its bytes and raises ValueError that says why where they are damaged."""

    path: str
    size: int
    read: Callable[[], bytes]


@contextmanager
def open_archive(file: Path, name: str) -> Iterator[list[Entry]]:
    """The regular files in an archive, in its own order, for one thread to read. `name` is for sentences.

    Raises UserError for what is no archive, and for an entry that would lie outside of it, a link or a device.
    """
    with ExitStack() as stack:
        try:
            if name.lower().endswith(".zip"):
                entries = _zip_entries(stack.enter_context(zipfile.ZipFile(file)), name)
            else:
                entries = _tar_entries(stack.enter_context(tarfile.open(file)), name)
        except _DAMAGE as error:
            said = str(error).partition("\n")[0].rstrip(":")
            raise UserError(f"{name}: cannot be read as the archive that its name promises ({said})") from None
        yield entries


def _zip_entries(archive: zipfile.ZipFile, name: str) -> list[Entry]:
    entries = []
    for info in archive.infolist():
        path = _safe(name, info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _not_plain(name, info.filename)
        if not info.is_dir():
            entries.append(_entry(path, info.file_size, partial(archive.open, info)))
    return entries


def _tar_entries(archive: tarfile.TarFile, name: str) -> list[Entry]:
    entries = []
    for member in archive:
        path = _safe(name, member.name)
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise _not_plain(name, member.name)
        if member.isreg():
            entries.append(_entry(path, member.size, partial(archive.extractfile, member)))
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops there without a word
        raise tarfile.ReadError("is cut off or damaged: it does not end as a tar archive does")
    return entries


def _safe(name: str, path: str) -> str:
    if re.match(r"[/\\]|[A-Za-z]:", path) or ".." in re.split(r"[/\\]", path):
        raise UserError(
            f"{name}: its entry '{path}' lies outside of it; needed paths without '/' at their head and '..'"
        )
    return PurePosixPath(path).as_posix()


def _not_plain(name: str, path: str) -> UserError:
    return UserError(f"{name}: its entry '{path}' is a link, a device or a sparse file; needed plain files and folders")


def _entry(path: str, size: int, open_entry: Callable[[], IO[bytes] | None]) -> Entry:
    def read() -> bytes:
        try:
            stream = open_entry()
            assert stream is not None  # tarfile has none for folders only
            with stream:
                return stream.read(size)  # and no more, where a header lies
        except _DAMAGE as error:
            raise ValueError(f"is damaged in its archive ({error})") from None

    return Entry(path=path, size=size, read=read)
