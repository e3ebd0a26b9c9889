"""Finding published versions: by name, by version or by channel; what they are; whether they were yanked."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.delivery.manifest import MANIFEST, SCHEMA_VERSION, Manifest, check_name, is_name, parse_json, to_json
from pipeline.delivery.pointer import LATEST, Pointer, channels, is_version
from pipeline.delivery.signature import SIGNATURE, check, read_public_key
from pipeline.delivery.stores import BrokenError, Store, check_url, open_store
from pipeline.errors import FailedError, UserError, nearest
from pipeline.parallel import in_parallel

YANKED = "yanked.json"


@dataclass(frozen=True, kw_only=True)
class Yank:
    """A version was taken back: why, since when (ISO 8601), by which user. Written beside its manifest, once."""

    why: str
    since: str
    by: str

    @classmethod
    def read(cls, store: Store, name: str, version: str) -> Yank | None:
        """None where the version was not yanked."""
        key = f"{name}/v={version}/{YANKED}"
        found = store.read(key)
        if found is None:
            return None
        needed = dict.fromkeys(("why", "since", "by"), str)
        content = parse_json(found[0], f"{store.url}/{key}", needed)
        return cls(**{word: content[word] for word in needed})

    def write(self, store: Store, name: str, version: str) -> bool:
        """False, and nothing written, where the version was yanked before."""
        key = f"{name}/v={version}/{YANKED}"
        data = to_json({"schema_version": SCHEMA_VERSION, **asdict(self)})
        return store.read(key) is None and store.create(key, data)  # looked, for a store that ignores conditions


@dataclass(frozen=True, kw_only=True)
class Version:
    """One published version; `data` is its manifest as it was read."""

    store: Store
    manifest: Manifest
    data: bytes
    yank: Yank | None

    @property
    def name(self) -> str:
        """NAME@VERSION."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def key(self, path: str) -> str:
        """The object of a file of this version."""
        return f"{self.manifest.name}/v={self.manifest.version}/{path}"

    def check_not_yanked(self) -> None:
        """Raise UserError, with the reason, when the version was yanked."""
        if self.yank:
            raise UserError(
                f"{self.store.url}: {self.name} was yanked on {self.yank.since:.10} ({self.yank.why}); "
                "needed another version, or --yanked to insist"
            )

    def check_signature(self, key: Path) -> None:
        """Raise FailedError unless the holder of the public key in the file `key` signed the manifest."""
        public = read_public_key(key)
        found = self.store.read(self.key(SIGNATURE))
        check(public, self.data, found[0] if found else None, f"{self.store.url}: {self.name}")

    def read(self, path: str) -> bytes | None:
        """A small file, as the manifest says it is; None where the version has none of that path."""
        file = next((file for file in self.manifest.files if file.path == path), None)
        if file is None:
            return None
        data, _ = self.store.read(self.key(path)) or (b"", "")
        if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
            raise FailedError(f"{self.store.url}/{self.key(path)}: is not what {MANIFEST} says")
        return data


@dataclass(frozen=True, kw_only=True)
class ReleaseInfo:
    """One published version, and the channels that name it; `yanked` is the reason.

    Of one that was `removed` after it was yanked no more than that is known, and since when, which is `created`.
    `damaged` is what is wrong where it cannot be read: then only its name, its version and its channels are known. Of a
    channel that cannot be read the version is not known either.
    """

    name: str
    version: str
    created: str = ""
    images: int = 0
    classes: int = 0
    bytes: int = 0
    licence: str = ""
    verdict: str = ""
    channels: tuple[str, ...]
    yanked: str | None = None
    removed: bool = False
    damaged: str | None = None


def find(url: str) -> Version:
    """The version that URL/NAME (its latest), URL/NAME@VERSION or URL/NAME@CHANNEL names. Raises UserError for none."""
    store, name, version = locate(url)
    found = read_version(store, name, version)
    if found is None:
        raise _missing(store, name, version)
    return found


def locate(url: str) -> tuple[Store, str, str]:
    """The store, the name and the version of what `find` finds, whether that is still there or not."""
    check_url(url)
    base, _, last = url.rstrip("/").rpartition("/")
    name, at, word = last.partition("@")
    if not base or base in ("s3:", "s3:/"):
        raise UserError(f"'{url}' is not a release; needed URL/NAME or URL/NAME@VERSION, URL a folder or s3://…")
    check_name("release", name)
    store = open_store(base)
    if at:
        check_name("version", word)
    if is_version(word):
        return store, name, word
    pointer = Pointer.read(store, name, word or LATEST)
    if pointer is None:
        raise _missing(store, name, word)
    return store, name, pointer.version


def read_version(store: Store, name: str, version: str) -> Version | None:
    """None where no such version was committed. Raises FailedError when its manifest is not right."""
    key = f"{name}/v={version}/{MANIFEST}"
    found = store.read(key)
    if found is None:
        return None
    manifest = Manifest.parse(found[0], f"{store.url}/{key}")
    if (manifest.name, manifest.version) != (name, version):
        raise FailedError(f"{store.url}/{key}: is the manifest of {manifest.name}@{manifest.version}")
    return Version(store=store, manifest=manifest, data=found[0], yank=Yank.read(store, name, version))


def folder_versions(store: Store, name: str) -> list[str]:
    """The versions of which there is anything, published or not."""
    found = [folder.removeprefix("v=") for folder in store.folders(f"{name}/") if folder.startswith("v=")]
    return list(filter(is_name, found))


def read_versions(store: Store, name: str) -> list[Version]:
    """Every published version of a release, newest first."""
    versions = in_parallel(
        lambda version: read_version(store, name, version), folder_versions(store, name), threading.Event()
    )
    return sorted(filter(None, versions), key=lambda version: version.manifest.created, reverse=True)


def list_releases(store: Store) -> list[ReleaseInfo]:
    """Every published version, by name and then newest first; before these what cannot be read, with its sentence.

    Folders without a version are somebody else's. Raises FailedError when the store itself cannot be read, UserError
    when it is a release.
    """
    found = store.folders("")
    if any(name.startswith("v=") for name in found):
        raise UserError(f"{store.url}: is a release; needed the store that it is in, {store.url.rpartition('/')[0]}")
    folders = {name: folder_versions(store, name) for name in filter(is_name, found)}
    return [row for name, versions in folders.items() if versions for row in _list_versions(store, name, versions)]


def _list_versions(store: Store, name: str, versions: list[str]) -> list[ReleaseInfo]:
    naming = dict[str, list[str]]()
    rows = []
    for channel in channels(store, name):
        try:
            pointer = Pointer.read(store, name, channel)
        except FailedError as error:
            rows.append(_damaged(name, "", (channel,), error))
        else:
            if pointer:
                naming.setdefault(pointer.version, []).append(channel)

    def describe(version: str) -> ReleaseInfo | None:
        named_by = tuple(naming.get(version, ()))
        try:
            found = read_version(store, name, version)
            yank = found.yank if found else Yank.read(store, name, version)
        except FailedError as error:
            return _damaged(name, version, named_by, error)
        if found is None:
            if yank is None:
                return None
            return ReleaseInfo(
                name=name, version=version, created=yank.since, channels=named_by, yanked=yank.why, removed=True
            )
        manifest = found.manifest
        return ReleaseInfo(
            name=name,
            version=version,
            created=manifest.created,
            images=manifest.images,
            classes=len(manifest.classes),
            bytes=manifest.total_bytes,
            licence=manifest.licence,
            verdict=manifest.verdict,
            channels=named_by,
            yanked=yank.why if yank else None,
        )

    rows += filter(None, in_parallel(describe, versions, threading.Event()))
    return sorted(rows, key=lambda row: (row.damaged is not None, row.created), reverse=True)


def _damaged(name: str, version: str, named_by: tuple[str, ...], error: FailedError) -> ReleaseInfo:
    """The row of what cannot be read; raises the error where it is the store that did not answer."""
    if isinstance(error, BrokenError):
        raise error
    return ReleaseInfo(name=name, version=version, channels=named_by, damaged=str(error))


def _releases(store: Store, prefix: str) -> list[str]:
    """The names of the releases directly in `prefix`, which is empty or ends in '/'."""
    return [name for name in filter(is_name, store.folders(prefix)) if folder_versions(store, f"{prefix}{name}")]


def _missing(store: Store, name: str, word: str) -> UserError:
    """What to say when a release has no such version or channel, or is none itself."""
    names = _releases(store, "")
    if not names:
        inner = ", ".join(f"{store.url}/{name}/{each}" for each in _releases(store, f"{name}/"))
        return UserError(f"{store.url}: has no releases" + (f"; needed one of {inner}" if inner else ""))
    if name not in names:
        return UserError(f"{store.url}: has no release '{name}'; {nearest(name, names)}")
    if not word:
        return UserError(f"{store.url}/{name}: has no published version yet")
    if is_version(word) and (yank := Yank.read(store, name, word)):
        return UserError(
            f"{store.url}: {name}@{word} was yanked on {yank.since:.10} ({yank.why}) and removed; "
            "needed another version"
        )
    known = channels(store, name)
    known += [version for version in folder_versions(store, name) if version != word]
    hint = f"; {nearest(word, known)}" if known else ""
    kind = "version" if is_version(word) else "version or channel"
    return UserError(f"{store.url}/{name}: has no {kind} '{word}'{hint}")
