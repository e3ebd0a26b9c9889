"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import FailedError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_file(path: Path) -> str:
    """Hex sha256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the whole new one. Raises FailedError on a full disk."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of `path` at the end; an exception leaves `path` as it was."""
    with _full_disk_in_a_sentence(path), _claimed_sibling(path) as part, part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        part.replace(path)
        _fsync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of `path`, and of all that was in it, at the end.

    An exception removes the new folder and leaves `path` as it was. Raises FailedError on a full disk.
    """
    with _full_disk_in_a_sentence(path), _claimed_sibling(path, folder=True) as part:
        yield part
        for folder, _, names in os.walk(part):
            for name in names:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if path.is_dir():
            # POSIX renames onto an empty folder only
            path.rename(_sibling(path))
        part.rename(path)
        _fsync(path.parent)
    _remove_abandoned(path)


@contextmanager
def _full_disk_in_a_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise FailedError(f"{path}: could not be written, the disk is full ({os.strerror(error.errno)})") from error


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def _claimed_sibling(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new hidden sibling of `path`, locked while it is written, and gone at the end unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    part = _sibling(path)
    with _locked(path.parent):  # nobody may take it for abandoned between its creation and its lock
        part.mkdir() if folder else part.touch(exist_ok=False)
        claim = _lock(part)
    try:
        yield part
    finally:
        _remove(part)
        os.close(claim)


def _remove_abandoned(path: Path) -> None:
    """Remove siblings that no living process has locked: a killed one could not tidy up after itself."""
    with _locked(path.parent):
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            with suppress(BlockingIOError, FileNotFoundError):
                claim = _lock(part, fcntl.LOCK_NB)
                _remove(part)
                os.close(claim)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    claim = _lock(path)
    try:
        yield
    finally:
        os.close(claim)


def _lock(path: Path, flags: int = 0) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
