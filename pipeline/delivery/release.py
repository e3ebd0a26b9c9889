"""Publishing: immutable objects first, then the manifest as the commit, then the one pointer that is ever replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.delivery import rowgroups
from pipeline.delivery.card import GRID, card
from pipeline.delivery.croissant import croissant
from pipeline.delivery.description import Description, Lineage
from pipeline.delivery.fetching import Tally
from pipeline.delivery.manifest import (
    CARD,
    CHECKSUMS,
    MANIFEST,
    File,
    Manifest,
    check_name,
)
from pipeline.delivery.pointer import LATEST, Pointer, move, now
from pipeline.delivery.rowgroups import ROWGROUPS
from pipeline.delivery.signature import SIGNATURE, read_private_key
from pipeline.delivery.stores import MAX_BYTES, Store, keeps_conditions
from pipeline.delivery.versions import Yank, read_version
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import sha256_file
from pipeline.imageset.layout import IMAGESET_JSON
from pipeline.parallel import in_parallel

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_HASHED, _SENT = 2, 16  # shards at a time


@dataclass(frozen=True, kw_only=True)
class Published:
    """`new` is False where the version was there already; `latest` says whether the channel names it.

    `caveat` is a sentence about what the store cannot promise, None where nothing was found.
    """

    version: str
    url: str
    new: bool
    latest: bool
    caveat: str | None


def version_id(images: ImageSet, lineage: Lineage) -> str:
    """The id that content, model and params give: the same set is the same version, whenever and wherever made."""
    identity = {
        "imageset": sha256_file(images.root / IMAGESET_JSON),  # has the fingerprint and every shard's sha256
        "model": lineage.model,
        "params": lineage.params,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def publish(
    store: Store,
    name: str,
    imageset: Path,
    *,
    description: Description,
    documents: Mapping[str, bytes],
    key: Path | None = None,
    channel: str = LATEST,
    why: str = "",
) -> Published:
    """Publish the ImageSet with its card, and `documents` (path in the release: bytes) beside it, signed by any `key`.

    The channel then names it, `why` in its history.

    What is there already is left as it is, so that a publish that was interrupted goes on where it was.
    Raises UserError for a bad name or a yanked set, FailedError when the store fails or another publisher was faster.
    """
    check_name("release", name)
    private = read_private_key(key) if key else None
    images = ImageSet.open(imageset)
    draft = _Draft(
        store=store,
        name=name,
        version=version_id(images, description.lineage),
        images=images,
        description=description,
        created=now(),
    )
    before = Pointer.read(store, name, channel)
    if yank := Yank.read(store, name, draft.version):
        raise UserError(f"{store.url}: {name}@{draft.version} (this set) was yanked ({yank.why}); needed another set")
    caveat = None
    new = store.read(draft.key(MANIFEST)) is None
    if new:
        caveat, files = draft.upload(documents)
        new = draft.commit(files)
    if private:
        draft.sign(private)
    latest = [each.version for each in before.moves] if before else []
    if draft.version not in latest:  # else a rerun would undo a rollback
        move(store, name, draft.version, before, action="publish", channel=channel, why=why)
        latest.insert(0, draft.version)
    return Published(
        version=draft.version,
        url=f"{store.url}/{draft.key('')}".rstrip("/"),
        new=new,
        latest=latest[0] == draft.version,
        caveat=caveat,
    )


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

    def upload(self, documents: Mapping[str, bytes]) -> tuple[str | None, list[File] | None]:
        """Create every object but the manifest that is not there yet. The caveat of Published, and what is there then.

        The latter is None where an earlier attempt left something, for that may be collected at any moment.
        """
        there = self.store.sizes(self.key(""))
        if self.key(CHECKSUMS) in there:
            return _caveat(self.store, self.key(CHECKSUMS)), None
        shards = {shard.path: shard for shard in self.images.shards}
        small = {IMAGESET_JSON: (self.images.root / IMAGESET_JSON).read_bytes(), **documents, **self._descriptions()}
        sizes = {shard.path: shard.bytes for shard in shards.values()}
        sizes |= {path: len(data) for path, data in small.items()}
        size = sum(sizes.values())
        unknown = dict.fromkeys((ROWGROUPS, CHECKSUMS), size)  # at most
        self._manifest(File(path=path, bytes=most, sha256="0" * 64) for path, most in {**sizes, **unknown}.items())
        tally = Tally(f"publishing {self.name}@{self.version}", size)

        def describe(path: str) -> tuple[str, str]:
            """The path of a shard, which is as it was when it was written, and what rowgroups.json says of it."""
            file = self.images.root / path
            groups, sha256 = rowgroups.describe_shard(file)
            if sha256 != shards[path].sha256:
                raise FailedError(f"{file}: has sha256 {sha256}; needed {shards[path].sha256} as in {IMAGESET_JSON}")
            return path, groups

        def settle_shard(described: tuple[str, str]) -> tuple[str, File]:
            """What rowgroups.json says of it, and the file."""
            path, groups = described
            needed = File(path=path, bytes=shards[path].bytes, sha256=shards[path].sha256)
            if self._settle(needed, self.images.root / path, there) != needed:
                raise FailedError(
                    f"{self.store.url}/{self.key(path)}: was left damaged by an earlier publish; needed to be removed "
                    "first"
                )
            tally.add(needed.bytes)
            return groups, needed

        def settle(path: str) -> File:
            """A card or a report of an earlier attempt serves as well."""
            found = self._settle(_file(path, small[path]), small[path], there)
            tally.add(len(small[path]) if path != ROWGROUPS else 0)  # whose size nobody knows before
            return found

        files = list(in_parallel(settle, small, tally.stopped))
        # Few are hashed at a time, and just before they travel: the first are soon on their way, none is read twice.
        hashing = in_parallel(describe, shards, tally.stopped, threads=_HASHED, ahead=_HASHED)
        with ThreadPoolExecutor(1) as aside, closing(hashing) as described:
            caveat = aside.submit(_caveat, self.store, self.key(IMAGESET_JSON))  # while the shards travel
            settled = list(in_parallel(settle_shard, described, tally.stopped, ahead=_SENT))
        small[ROWGROUPS] = rowgroups.describe(groups for groups, _ in settled)
        files += [*(file for _, file in settled), settle(ROWGROUPS)]
        files.sort(key=lambda file: file.path)
        # Created after all that it lists: whoever wins, where two publish this set with other documents at the same
        # time, it lists what is there, and the manifest follows it.
        self.store.create(self.key(CHECKSUMS), _checksums(files))
        return caveat.result(), None if there else files

    def _settle(self, file: File, source: bytes | Path, there: Mapping[str, int]) -> File:
        """Create the object, or keep the one that an earlier attempt left; what is in the store then."""
        key = self.key(file.path)
        if key not in there and self.store.create(key, source, file.sha256):
            return file
        digest, size = hashlib.sha256(), 0
        for chunk in self.store.chunks(key):
            digest.update(chunk)
            size += len(chunk)
        return File(path=file.path, bytes=size, sha256=digest.hexdigest())

    def _descriptions(self) -> dict[str, bytes]:
        schema = self.images.schema
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        about = (self.images, {column: features[column] for column in schema.names}, self.description)
        url = f"{self.store.url}/{self.name}/v={self.version}"
        return {
            GRID: self.description.grid,
            CARD: card(*about, name=self.name, version=self.version, url=url),
            "croissant.json": croissant(*about, name=self.name, version=self.version, created=self.created),
        }

    def commit(self, files: list[File] | None) -> bool:
        """Write the manifest; False when another publisher of this set did before.

        The files are those that SHA256SUMS lists. They are looked for, which some servers hash all of them for, unless
        they are the `files` that were just sent.
        """
        checksums, _ = self.store.read(self.key(CHECKSUMS)) or (b"", "")
        if files is None or checksums != _checksums(files):
            files = self._listed(checksums)
        data = self._manifest(sorted([*files, _file(CHECKSUMS, checksums)], key=lambda file: file.path))
        # A store that ignores conditions still never overwrites what is seen to be there.
        written = self.store.read(self.key(MANIFEST)) is None and self.store.create(self.key(MANIFEST), data)
        if written and self.store.read(self.key(CHECKSUMS)) is None:
            self.store.delete(self.key(MANIFEST))
            raise FailedError(f"{self.store.url}: {self.name}@{self.version} was collected meanwhile; publish again")
        if written:
            return True
        found = self.store.read(self.key(MANIFEST))
        return found is not None and found[0] == data  # ours, and only the answer to it was lost

    def _listed(self, checksums: bytes) -> list[File]:
        """What SHA256SUMS lists, with the sizes that it has in the store."""
        sizes = self.store.sizes(self.key(""))
        try:
            listed = dict(line.split("  ", 1)[::-1] for line in checksums.decode().splitlines())
            listed.pop(CHECKSUMS, None)
            return [File(path=path, bytes=sizes[self.key(path)], sha256=sha256) for path, sha256 in listed.items()]
        except (ValueError, KeyError):
            raise FailedError(
                f"{self.store.url}/{self.key(CHECKSUMS)}: does not list what is there; needed that nobody else writes "
                "or removes files of a version"
            ) from None

    def _manifest(self, files: Iterable[File]) -> bytes:
        """The manifest of such files. Raises UserError where no reader would take it."""
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
        if len(data) > MAX_BYTES:
            raise UserError(
                f"{self.images.root}: {MANIFEST} of its {len(manifest.files):,} files and its params would have "
                f"{len(data):,} bytes; needed at most {MAX_BYTES:,}, by fewer and larger shards"
            )
        return data

    def sign(self, private: Ed25519PrivateKey) -> None:
        """Sign the manifest that is there, for it is of this set. Raises FailedError when another key signed before."""
        found = read_version(self.store, self.name, self.version)
        if found is None or found.manifest.fingerprint != self.images.fingerprint:
            raise FailedError(f"{self.store.url}/{self.key(MANIFEST)}: is not of this set; nothing was signed")
        signature, key = private.sign(found.data), self.key(SIGNATURE)
        if self.store.read(key) is None and self.store.create(key, signature):  # looked, as `commit` does
            return
        there = self.store.read(key)
        if there is None or there[0] != signature:  # ed25519 signs the same bytes the same way
            raise FailedError(f"{self.store.url}/{key}: is of another key already")


def _file(path: str, data: bytes) -> File:
    return File(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _checksums(files: Iterable[File]) -> bytes:
    """SHA256SUMS."""
    return "".join(f"{file.sha256}  {file.path}\n" for file in files).encode()


def _caveat(store: Store, key: str) -> str | None:
    """One sentence where the store ignores conditions, tried by writing to an object the bytes that it holds."""
    found = store.read(key)
    if found is None or all(keeps_conditions(store, key, found[0])):
        return None
    return (
        f"{store.url}: ignores conditional writes, so it cannot promise that two publishers at the same moment "
        "do not overwrite each other; publish from one place at a time"
    )
