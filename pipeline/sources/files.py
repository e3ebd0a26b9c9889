"""The files of a source: in a folder of this machine, or under a prefix of an S3 bucket."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import FailedError, UserError
from pipeline.imageset.files import sha256_file
from pipeline.parallel import in_parallel
from pipeline.paths import INVENTORY

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


READERS = 8  # threads: most of the time of a read from S3 is waiting
Identity = Mapping[str, int | str]
"""`bytes`, and `sha256` (a local file) or `etag` (an object of S3, which would have to be downloaded to be hashed)."""


class Place(Protocol):
    """Where files are. Raises UserError where there is no such place, FailedError where it cannot be read.

    `name` is that of the only file, None where there may be many; `digest` is what its identities have beside `bytes`.
    """

    name: str | None
    digest: str

    def inventory(self, keep: Callable[[str], bool]) -> dict[str, Identity]:
        """Every file below whose path (relative, with "/") is to be kept, in the order of the paths."""

    def read(self, path: str, identity: Identity) -> bytes:
        """The bytes of one file; FailedError when it is not as the inventory says."""

    def fetch(self, path: str, identity: Identity, into: Path) -> Path:
        """One file as a file of this machine, in the folder `into` where it has to be downloaded."""


def check_url(url: str) -> None:
    """Raise ValueError when `url` is neither a path of this machine nor s3://bucket/prefix."""
    if not re.fullmatch(r"s3://[^/]+(/.*)?|(?!\w+://).+", url, re.DOTALL):
        raise ValueError(f"url is '{url}'; needed a path of this machine or s3://bucket/prefix")


def place_of(url: str, *, single: bool) -> Place:
    """The place that `url` names: all files below it, or just the one it is."""
    return Bucket(url, single=single) if url.startswith("s3://") else Folder(Path(url), single=single)


def listed(inventory: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The files of an inventory. Raises UserError where it is not whole, or not one of such a place."""
    files = inventory.get("files")
    if (
        not isinstance(files, dict)
        or (place.name is not None and list(files) != [place.name])
        or any(not isinstance(file, dict) or file.keys() != {"bytes", place.digest} for file in files.values())
    ):
        raise another_inventory()
    return files


def another_inventory() -> UserError:
    """What to say when an inventory is not of what the section `source` describes now."""
    return UserError(f"{INVENTORY}: is not that of source.url; needed 'forgeline stage source' again")


def check_utf8(name: str, paths: Collection[str]) -> None:
    """Raise UserError when one of the paths below `name` is no text."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}: the name {path!r} is not UTF-8; needed one that is") from None


def is_hidden(path: str) -> bool:
    """Whether operating systems and tools keep such files for themselves (.DS_Store, .git/…, __MACOSX/…)."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in path.split("/"))


class Folder:
    """A folder of this machine and all folders below it, or one file. Links are followed."""

    digest = "sha256"

    def __init__(self, root: Path, *, single: bool) -> None:
        self.root = root.parent if single else root
        self.name = root.name if single else None

    def inventory(self, keep: Callable[[str], bool]) -> dict[str, Identity]:
        with _disk_in_a_sentence():
            if self.name is not None:
                if not (self.root / self.name).is_file():
                    raise UserError(f"{self.root / self.name}: is not there; needed a file")
                paths = [self.name]
            elif self.root.is_dir():
                paths = sorted(filter(keep, _walk(self.root)))
            else:
                found = "is a file" if self.root.exists() else "is not there"
                raise UserError(f"{self.root}: {found}; needed a folder, or a file named .zip, .tar, .tar.gz, .parquet")
            return dict(zip(paths, in_parallel(self._identity, paths, threads=READERS), strict=True))

    def _identity(self, path: str) -> Identity:
        file = self.root / path
        if file.is_symlink() and not file.exists():
            raise UserError(f"{file}: is a link to nothing; needed a file")
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{file}: is a pipe, socket or device; needed a regular file")
        return {"bytes": status.st_size, "sha256": sha256_file(file)}

    def read(self, path: str, identity: Identity) -> bytes:
        with _disk_in_a_sentence():
            data = (self.root / path).read_bytes()
        if hashlib.sha256(data).hexdigest() != identity["sha256"]:
            raise _changed(str(self.root / path))
        return data

    def fetch(self, path: str, identity: Identity, into: Path) -> Path:
        with _disk_in_a_sentence():
            if sha256_file(self.root / path) != identity["sha256"]:
                raise _changed(str(self.root / path))
        return self.root / path


class Bucket:
    """The objects of S3 whose keys begin with a prefix, or one object. AWS_ENDPOINT_URL_S3 is honoured."""

    digest = "etag"

    def __init__(self, url: str, *, single: bool) -> None:
        self.url = url.rstrip("/")
        self.bucket, _, key = self.url.removeprefix("s3://").partition("/")
        self.name = PurePosixPath(key).name if single else None
        folder = key.removesuffix(self.name) if self.name is not None else key
        self.prefix = folder if not folder or folder.endswith("/") else f"{folder}/"

    @cached_property
    def client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        # A session of its own: boto3's shared one may not be used by two threads.
        config = Config(max_pool_connections=READERS, connect_timeout=10, retries={"mode": "standard"})
        return boto3.session.Session().client("s3", config=config)

    def inventory(self, keep: Callable[[str], bool]) -> dict[str, Identity]:
        found: dict[str, Identity] = {}
        with self._store_in_a_sentence():
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + (self.name or "")):
                for item in page.get("Contents", []):
                    path = item["Key"].removeprefix(self.prefix)
                    is_folder = item["Key"].endswith("/")  # an empty object that consoles put in place of one
                    if path == self.name if self.name is not None else not is_folder and keep(path):
                        found[path] = {"bytes": item["Size"], "etag": item["ETag"].strip('"')}
        if self.name is not None and not found:
            raise UserError(f"{self.url}: is not there; needed an object of that key")
        return dict(sorted(found.items()))

    def read(self, path: str, identity: Identity) -> bytes:
        with self._store_in_a_sentence():
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)
            self._check(path, identity, answer["ETag"])
            return answer["Body"].read()

    def fetch(self, path: str, identity: Identity, into: Path) -> Path:
        target = into / hashlib.sha256(path.encode()).hexdigest()  # a key may hold ../
        with self._store_in_a_sentence(), target.open("wb") as file:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)
            self._check(path, identity, answer["ETag"])
            shutil.copyfileobj(answer["Body"], file, 1 << 20)
        return target

    def _check(self, path: str, identity: Identity, etag: str) -> None:
        # Compared here and not asked for with If-Match, which servers want quoted, unquoted or not at all.
        if etag.strip('"') != identity["etag"]:
            raise _changed(f"s3://{self.bucket}/{self.prefix}{path}")

    @contextmanager
    def _store_in_a_sentence(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

        try:
            yield
        except ClientError as error:
            code, said = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
            if code == "NoSuchBucket":
                raise UserError(
                    f"{self.url}: the store has no bucket '{self.bucket}'; needed one that exists"
                ) from None
            if code == "NoSuchKey":
                raise FailedError(f"{self.url}: an object went away while it was read; run again") from None
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403):
                raise FailedError(f"{self.url}: the store refuses to let these credentials read it ({code})") from None
            raise FailedError(f"{self.url}: the store answered {code} {said}") from None
        except ParamValidationError:
            raise UserError(f"{self.url}: '{self.bucket}' cannot be the name of a bucket") from None
        except NoCredentialsError:
            raise FailedError(f"{self.url}: no credentials; needed AWS_ACCESS_KEY_ID or a profile") from None
        except BotoCoreError as error:
            raise FailedError(f"{self.url}: the store cannot be reached ({' '.join(str(error).split())})") from None


def _walk(root: Path) -> Iterator[str]:
    """The paths of all files below `root`, relative; a link back to a folder above is not followed round in circles."""

    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=fail):
        here = Path(folder).resolve()
        subfolders[:] = [name for name in subfolders if (here / name).resolve() not in (here, *here.parents)]
        for name in names:
            yield Path(folder, name).relative_to(root).as_posix()


@contextmanager
def _disk_in_a_sentence() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FailedError(f"{error.filename}: went away while it was read; run again") from None
    except PermissionError as error:
        raise FailedError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _changed(name: str) -> FailedError:
    return FailedError(f"{name}: changed after its inventory was taken; run again")
