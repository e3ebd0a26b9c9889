"""A store in a folder of this machine or of a shared file system."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.delivery.stores import MAX_BYTES, ForbiddenError, StoreError
from pipeline.errors import FailedError, UserError
from pipeline.imageset.files import atomic_file


class FolderStore:
    """Objects are files that appear whole; a lock makes the look and the rename of a conditional write one act."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        self.root = Path(url)
        with _in_a_sentence(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise UserError(f"{url}: is a file; needed s3://bucket/prefix or a folder")

    def read(self, key: str) -> tuple[bytes, str] | None:
        path = self.root / key
        try:
            with _in_a_sentence(path), open(path, "rb", opener=_itself) as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(data) > MAX_BYTES:
            raise FailedError(f"{path}: is larger than {MAX_BYTES:,} bytes; needed what Forgeline writes there")
        return data, hashlib.sha256(data).hexdigest()

    def chunks(self, key: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        path = self.root / key
        try:
            with _in_a_sentence(path), open(path, "rb", opener=_itself) as file:
                file.seek(start)
                while chunk := file.read(1 << 20 if stop is None else min(1 << 20, stop - file.tell())):
                    yield chunk
        except FileNotFoundError:
            raise FailedError(f"{path}: is missing") from None

    def sizes(self, prefix: str) -> dict[str, int]:
        return {key: found.st_size for key, found in self._objects(prefix).items()}

    def times(self, prefix: str) -> dict[str, datetime]:
        return {key: datetime.fromtimestamp(found.st_mtime, UTC) for key, found in self._objects(prefix).items()}

    def folders(self, prefix: str) -> list[str]:
        return [path.name for path in self._entries(prefix) if path.is_dir()]

    def files(self, prefix: str) -> list[str]:
        return [path.name for path in self._entries(prefix) if path.is_file() and not path.name.startswith(".")]

    def _objects(self, prefix: str) -> dict[str, os.stat_result]:
        """What is there now: others may remove files and folders while they are listed."""
        found = {}
        with _in_a_sentence(self.root / prefix):
            for folder, _, names in os.walk(self.root / prefix, onerror=_unless_gone):
                for path in (Path(folder, name) for name in names if not name.startswith(".")):  # hidden: in writing
                    with suppress(FileNotFoundError):
                        found[path.relative_to(self.root).as_posix()] = path.stat()
        return found

    def _entries(self, prefix: str) -> list[Path]:
        try:
            with _in_a_sentence(self.root / prefix):
                return sorted((self.root / prefix).iterdir())
        except FileNotFoundError:
            return []

    def create(self, key: str, source: bytes | Path, sha256: str | None = None) -> bool:
        path = self.root / key
        try:
            with _in_a_sentence(path), ExitStack() as held, atomic_file(path) as file:
                if isinstance(source, bytes):
                    file.write(source)
                else:
                    with source.open("rb") as original:
                        shutil.copyfileobj(original, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())  # the lock is not kept while a disk is slow
                held.enter_context(self._locked())
                if path.exists():
                    raise FileExistsError
        except FileExistsError:
            return False
        return True

    def swap(self, key: str, data: bytes, tag: str | None) -> bool:
        path = self.root / key
        with _in_a_sentence(path), self._locked():
            found = self.read(key)
            if (found[1] if found else None) != tag:
                return False
            with atomic_file(path) as file:
                file.write(data)
        return True

    def delete(self, key: str) -> None:
        with _in_a_sentence(self.root / key):
            (self.root / key).unlink(missing_ok=True)
            with suppress(OSError):  # a folder is there while something is in it, as in S3
                for folder in (self.root / key).relative_to(self.root).parents:
                    (self.root / folder).rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".forgeline.lock").open("a") as file:  # NFS locks only what is open for writing
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _itself(path: str, flags: int) -> int:
    """Opens no link: what it leads to was not published."""
    return os.open(path, flags | os.O_NOFOLLOW)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except PermissionError as error:
        raise ForbiddenError(f"{error.filename or path}: may not be read or written by this user") from None
    except FailedError as error:
        raise (ForbiddenError(str(error)) if isinstance(error.__cause__, PermissionError) else error) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FailedError(f"{error.filename or path}: is a link; needed the object itself") from None
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from None
