"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from pipeline.errors import FailedError, UserError

_KEEP_UNUSED_SECONDS = 30 * 24 * 3600
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
    """A new file, open for writing, that takes the place of `path` at the end; an exception leaves `path` as it was.

    Raises FailedError on a full disk and where nothing can be written.
    """
    with _new_sibling(path, Path.touch) as part, part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        part.replace(path)
        _fsync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of `path`, and of all that was in it, at the end; else as `atomic_file`."""
    with _new_sibling(path, Path.mkdir) as part:
        yield part
        _put_in_place(part, path)


@contextmanager
def resumable_folder(path: Path, key: str) -> Iterator[Path]:
    """A hidden folder beside `path` for work that goes on where an earlier process with the same `key` left it.

    What is in its subfolder `out` at the end takes the place of `path`. An exception leaves it for another try; those
    of other keys are removed. Raises UserError while another process has it, FailedError where nothing can be written.
    """
    work = path.with_name(f".{path.name}.{key}.resumable")
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(_claimed(work))
            for other in path.parent.glob(f".{glob.escape(path.name)}.*.resumable"):
                if other != work:
                    _remove_unlocked(other)
            (work / "out").mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritten(path, error) from error
        with _room_for(path):
            yield work
            _put_in_place(work / "out", path)
            _remove(work)


@contextmanager
def _claimed(work: Path) -> Iterator[None]:
    """The folder `work`, made where there is none, for this process alone."""
    while True:
        work.mkdir(exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as held:  # its former owner has just finished and removed it
            # Shared, as in `_new_sibling`: folders are made in it. The file inside is what only one can have.
            _lock(held.enter_context(_opened(work)), fcntl.LOCK_SH)
            file = held.enter_context((work / "lock").open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{work}: another process works in it; needed to wait for that one") from None
            except OSError:
                pass  # a network disk without locks
            if (work / "lock").stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield
                return


def _put_in_place(part: Path, path: Path) -> None:
    """Make the folder `part` durable, then `path`."""
    for folder, _, names in os.walk(part):
        for name in (*names, "."):
            _fsync(Path(folder, name))
    old = _sibling(path)
    if path.exists() or path.is_symlink():  # only an empty folder can be renamed onto
        path.rename(old)
    part.rename(path)
    _fsync(path.parent)
    _remove(old)


@contextmanager
def _new_sibling(path: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden sibling of `path`, locked while in use, and gone at the end unless it was renamed."""
    part = _sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path.parent) as parent:
            if _lock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB):  # alone: nobody is between creating a sibling and its lock
                _remove_abandoned(path)
            _lock(parent, fcntl.LOCK_SH)  # shared, as the parent may be a folder that this process is making
            create(part)
            claim = os.open(part, os.O_RDONLY)
            _lock(claim, fcntl.LOCK_SH)
    except OSError as error:
        raise _unwritten(path, error) from error
    try:
        with _room_for(path, part):
            yield part
    finally:
        _remove(part)
        os.close(claim)


def mark_used(path: Path) -> None:
    """Keep a file of a cache for another month."""
    with suppress(OSError):  # of a cache that can only be read
        os.utime(path)


def forget_unused(folder: Path, pattern: str) -> None:
    """Remove the files of a cache that were not marked as used for a month."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process has removed it
            if time.time() - path.stat().st_mtime > _KEEP_UNUSED_SECONDS:
                path.unlink()


@contextmanager
def scratch_file(folder: Path) -> Iterator[BinaryIO]:
    """A nameless file in `folder`, to write and read; gone at the end. Raises FailedError on a full disk."""
    with _room_for(folder), TemporaryFile(dir=folder) as file:
        yield file


@contextmanager
def _room_for(path: Path, part: Path | None = None) -> Iterator[None]:
    """Raise FailedError where the disk is full, or `part`, what becomes `path`, cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL or error.filename == str(part):
            raise _unwritten(path, error) from error
        raise  # of what the caller reads


def _unwritten(path: Path, error: OSError) -> FailedError:
    name = re.sub(r"\.([^/]+)\.[0-9a-f]{8}\.partial\b", r"\1", str(path))  # as it would have been called
    return FailedError(f"{name}: cannot be written ({os.strerror(error.errno or 0)})")


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _remove_abandoned(path: Path) -> None:
    """Remove siblings that no living process has locked: one that was killed could not tidy up after itself."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        _remove_unlocked(part)


def _remove_unlocked(part: Path) -> None:
    with suppress(FileNotFoundError), _opened(part) as descriptor:  # its writer may just have finished
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(descriptor: int, flags: int) -> bool:
    try:
        fcntl.flock(descriptor, flags)
    except OSError:  # held by another; or a network disk without locks, where nothing is ever taken for abandoned
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)
