"""Publishing: immutable objects first, then the manifest as the commit, then the one pointer that is ever replaced."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq

from pipeline.delivery.card import GRID, card
from pipeline.delivery.croissant import croissant
from pipeline.delivery.description import Description, Lineage
from pipeline.delivery.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    File,
    Manifest,
    check_name,
    is_name,
    parse_json,
    to_json,
)
from pipeline.delivery.stores import Store, keeps_conditions
from pipeline.errors import FailedError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import sha256_file
from pipeline.imageset.layout import IMAGESET_JSON
from pipeline.progress import progress

T = TypeVar("T")
R = TypeVar("R")

CHECKSUMS = "SHA256SUMS"
POINTER = "latest.json"
_THREADS = 8
_MAX_HISTORY = 1000


@dataclass(frozen=True, kw_only=True)
class Published:
    """`new` is False where the version was there already; `latest` says whether the pointer names it.

    `caveat` is a sentence about what the store cannot promise, None where nothing was found.
    """

    version: str
    url: str
    new: bool
    latest: bool
    caveat: str | None


@dataclass(frozen=True, kw_only=True)
class ReleaseInfo:
    """One published version."""

    name: str
    version: str
    created: str
    images: int
    classes: int
    bytes: int
    latest: bool


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """NAME/latest.json: each version that was the latest and since when, newest first, and the tag to swap it by."""

    history: tuple[tuple[str, str], ...]
    tag: str

    @property
    def version(self) -> str:
        """The latest version."""
        return self.history[0][0]

    @classmethod
    def read(cls, store: Store, name: str) -> Pointer | None:
        """None where nothing was published yet. Raises FailedError when it is not a pointer."""
        key = f"{name}/{POINTER}"
        found = store.read(key)
        if found is None:
            return None
        content = parse_json(found[0], f"{store.url}/{key}", {"version": str, "history": list})
        version, history = content["version"], content["history"]
        if any(not isinstance(entry, list) or [type(value) for value in entry] != [str, str] for entry in history):
            raise FailedError(f"{store.url}/{key}: history is not a list of versions and times")
        if not is_name(version) or [version] != [former for former, _ in history[:1]]:
            raise FailedError(f"{store.url}/{key}: points to {version!r:.99}; needed the newest of its history")
        return cls(history=tuple((former, since) for former, since in history), tag=found[1])


def version_id(images: ImageSet, lineage: Lineage) -> str:
    """The id that content, model and params give: the same set is the same version, whenever and wherever made."""
    identity = {
        "imageset": sha256_file(images.root / IMAGESET_JSON),  # has the fingerprint and every shard's sha256
        "model": lineage.model,
        "params": lineage.params,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def publish(
    store: Store, name: str, imageset: Path, *, description: Description, documents: Mapping[str, bytes]
) -> Published:
    """Publish the ImageSet with its card, and `documents` (path in the release: bytes) beside it.

    What is there already is left as it is, so that a publish that was interrupted goes on where it was.
    Raises UserError for a bad name, FailedError when the store fails or another publisher was faster.
    """
    check_name("release", name)
    images = ImageSet.open(imageset)
    draft = _Draft(
        store=store,
        name=name,
        version=version_id(images, description.lineage),
        images=images,
        description=description,
        created=_now(),
    )
    before = Pointer.read(store, name)
    caveat = None
    new = store.read(draft.key(MANIFEST)) is None
    if new:
        draft.upload(documents)
        caveat = _caveat(store, draft.key(CHECKSUMS))
        new = draft.commit()
    latest = [version for version, _ in before.history] if before else []
    if draft.version not in latest:  # else a rerun would undo a rollback
        _swing(store, name, draft.version, before)
        latest.insert(0, draft.version)
    return Published(
        version=draft.version,
        url=f"{store.url}/{draft.key('')}".rstrip("/"),
        new=new,
        latest=latest[0] == draft.version,
        caveat=caveat,
    )


def list_releases(store: Store) -> list[ReleaseInfo]:
    """Every published version, by name and then newest first."""
    rows = []
    for name in filter(is_name, store.folders("")):
        pointer = Pointer.read(store, name)
        versions = [folder.removeprefix("v=") for folder in store.folders(f"{name}/") if folder.startswith("v=")]
        found = list(in_parallel(partial(read_manifest, store, name), versions, threading.Event()))
        manifests = sorted((each[0] for each in found if each), key=lambda manifest: manifest.created, reverse=True)
        rows += [
            ReleaseInfo(
                name=name,
                version=manifest.version,
                created=manifest.created,
                images=manifest.images,
                classes=len(manifest.classes),
                bytes=manifest.total_bytes,
                latest=pointer is not None and pointer.version == manifest.version,
            )
            for manifest in manifests
        ]
    return rows


def read_manifest(store: Store, name: str, version: str) -> tuple[Manifest, bytes] | None:
    """A version's manifest and its bytes, None where none was committed. Raises FailedError when it is not right."""
    key = f"{name}/v={version}/{MANIFEST}"
    found = store.read(key)
    if found is None:
        return None
    manifest = Manifest.parse(found[0], f"{store.url}/{key}")
    if (manifest.name, manifest.version) != (name, version):
        raise FailedError(f"{store.url}/{key}: is the manifest of {manifest.name}@{manifest.version}")
    return manifest, found[0]


def in_parallel(work: Callable[[T], R], items: Iterable[T], stopped: threading.Event) -> Iterator[R]:
    """The results in order. At a failure nothing more is begun, and `stopped` tells what is under way to end."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield from pool.map(work, items)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A version that is being published."""

    store: Store
    name: str
    version: str
    images: ImageSet
    description: Description
    created: str

    def key(self, path: str) -> str:
        return f"{self.name}/v={self.version}/{path}"

    def upload(self, documents: Mapping[str, bytes]) -> None:
        """Create every object but the manifest that is not there yet."""
        there = self.store.sizes(self.key(""))
        if self.key(CHECKSUMS) in there:
            return
        images = self.images
        sources: dict[str, bytes | Path] = {shard.path: images.root / shard.path for shard in images.shards}
        sources |= {IMAGESET_JSON: images.root / IMAGESET_JSON, **documents, **self._descriptions()}
        fixed = {shard.path: shard.sha256 for shard in images.shards}

        def settle(path: str) -> tuple[str, str]:
            return path, _settle(self.store, self.key(path), sources[path], there, fixed.get(path))

        settling = in_parallel(settle, sources, threading.Event())
        settled = progress(settling, f"publishing {self.name}@{self.version}", len(sources), "files")
        lines = [f"{sha256}  {path}\n" for path, sha256 in sorted(settled)]
        # Created after all that it lists: whoever wins, where two publish this set with other documents at the same
        # time, it lists what is there, and the manifest follows it.
        self.store.create(self.key(CHECKSUMS), "".join(lines).encode())

    def _descriptions(self) -> dict[str, bytes]:
        schema = pq.read_schema(self.images.root / self.images.shards[0].path)
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        about = (self.images, {column: features[column] for column in schema.names}, self.description)
        url = f"{self.store.url}/{self.name}/v={self.version}"
        return {
            GRID: self.description.grid,
            "README.md": card(*about, name=self.name, version=self.version, url=url),
            "croissant.json": croissant(*about, name=self.name, version=self.version, created=self.created),
        }

    def commit(self) -> bool:
        """Write the manifest of all that SHA256SUMS lists; False when another publisher of this set did before."""
        sizes = self.store.sizes(self.key(""))
        checksums, _ = self.store.read(self.key(CHECKSUMS)) or (b"", "")
        try:
            listed = dict(line.split("  ", 1)[::-1] for line in checksums.decode().splitlines())
            listed[CHECKSUMS] = hashlib.sha256(checksums).hexdigest()
            files = [File(path=path, bytes=sizes[self.key(path)], sha256=listed[path]) for path in sorted(listed)]
        except (ValueError, KeyError):
            raise FailedError(
                f"{self.store.url}/{self.key(CHECKSUMS)}: does not list what is there; needed that nobody else writes "
                "or removes files of a version"
            ) from None
        manifest = Manifest(
            name=self.name,
            version=self.version,
            created=self.created,
            title=self.description.title,
            licence=self.description.licence,
            verdict=self.description.verdict,
            synthetic=self.images.synthetic,
            classes=self.images.classes,
            images=sum(map(sum, self.images.counts.values())),
            fingerprint=self.images.fingerprint,
            files=tuple(files),
            lineage=asdict(self.description.lineage),
        )
        data = manifest.to_json()
        # A store that ignores conditions still never overwrites what is seen to be there.
        if self.store.read(self.key(MANIFEST)) is None and self.store.create(self.key(MANIFEST), data):
            return True
        found = self.store.read(self.key(MANIFEST))
        return found is not None and found[0] == data  # ours, and only the answer to it was lost


def _settle(store: Store, key: str, source: bytes | Path, there: Mapping[str, int], fixed: str | None) -> str:
    """Create the object, or keep the one that an earlier attempt left; the sha256 of what is in the store.

    A card or a report of that attempt serves as well; a shard must have the sha256 `fixed`, here and there.
    """
    ours = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_file(source)
    if fixed is not None and ours != fixed:
        raise FailedError(f"{source!s}: has sha256 {ours}; needed {fixed} as in {IMAGESET_JSON}")
    if key not in there and store.create(key, source):
        return ours
    digest = hashlib.sha256()
    for chunk in store.chunks(key):
        digest.update(chunk)
    if fixed is not None and digest.hexdigest() != fixed:
        raise FailedError(f"{store.url}/{key}: was left damaged by an earlier publish; needed to be removed first")
    return digest.hexdigest()


def _caveat(store: Store, key: str) -> str | None:
    """One sentence where the store ignores conditions, tried by writing to an object the bytes that it holds."""
    found = store.read(key)
    if found is None or all(keeps_conditions(store, key, found[0])):
        return None
    return (
        f"{store.url}: ignores conditional writes, so it cannot promise that two publishers at the same moment "
        "do not overwrite each other; publish from one place at a time"
    )


def _swing(store: Store, name: str, version: str, before: Pointer | None) -> None:
    """Make `version` the latest, unless the pointer changed since it was read. Raises FailedError for a lost race."""
    history = ((version, _now()), *(before.history if before else ()))[:_MAX_HISTORY]
    data = to_json({"schema_version": SCHEMA_VERSION, "version": version, "history": history})
    tag = before.tag if before else None
    now = Pointer.read(store, name)
    if (now.tag if now else None) == tag and store.swap(f"{name}/{POINTER}", data, tag):
        return
    now = Pointer.read(store, name)
    if now is None or now.version != version:
        raise FailedError(
            f"{store.url}/{name}: version {version} is published, but another publisher was faster and made "
            f"{now.version if now else 'none'} the latest; publish again to make this one the latest"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
