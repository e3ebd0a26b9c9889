"""Pulling and verifying: every byte is checked against the manifest."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pipeline.delivery.manifest import MANIFEST, File, Manifest, check_name, is_name
from pipeline.delivery.release import POINTER, Pointer, in_parallel, read_manifest
from pipeline.delivery.stores import MAX_BYTES, BrokenError, Store, open_store
from pipeline.errors import FailedError, UserError, nearest
from pipeline.imageset import ImageSet
from pipeline.imageset.files import atomic_folder, sha256_file
from pipeline.progress import ProgressLine

_TRIES = 3
_NAMED = 10  # wrong files, in the sentence that verifying ends with


def pull(url: str, dest: Path) -> Path:
    """Fetch the release URL/NAME (its latest version) or URL/NAME@VERSION into the folder `dest`.

    `dest` appears whole or not at all. Raises UserError when there is no such release or `dest` is not empty,
    FailedError when a byte is wrong, the store fails or the disk is too small.
    """
    dest = dest.absolute()
    _check_empty(dest)
    store, manifest, data = _find(url)
    existing = next(parent for parent in dest.parents if parent.exists())
    if (free := shutil.disk_usage(existing).free) < manifest.total_bytes:
        raise FailedError(f"{existing}: has {free:,} bytes free; needed {manifest.total_bytes:,} for {url}")
    line = ProgressLine(f"pulling {manifest.name}@{manifest.version}", manifest.total_bytes, "bytes")
    lock, stopped, done = threading.Lock(), threading.Event(), 0

    def report(fetched: int) -> None:
        nonlocal done
        with lock:
            done += fetched
            line.update(done)
        if stopped.is_set():
            raise FailedError(f"{url}: was stopped")

    with atomic_folder(dest) as part:

        def fetch(file: File) -> None:
            key = f"{manifest.name}/v={manifest.version}/{file.path}"
            _fetch(store, key, file, part / file.path, report)

        for _ in in_parallel(fetch, manifest.files, stopped):
            pass
        (part / MANIFEST).write_bytes(data)
        _check_empty(dest)
    return dest


def verify(target: str) -> Manifest:
    """Rehash a pulled folder, or a release as `pull` names it; then decode every image and check the fingerprint.

    Raises FailedError that names what is wrong, UserError when there is no such folder or release.
    """
    root = Path(target)
    if (root / MANIFEST).is_file():
        return _verify_folder(root)
    if root.is_dir() and not (root / POINTER).exists():
        raise UserError(f"{root}: has no {MANIFEST}; needed a folder that was pulled, or a release as URL/NAME")
    with tempfile.TemporaryDirectory(prefix="forgeline-") as folder:
        return _verify_folder(pull(target, Path(folder, "release")))


def _find(url: str) -> tuple[Store, Manifest, bytes]:
    base, _, last = url.rstrip("/").rpartition("/")
    name, at, version = last.partition("@")
    if not base or base in ("s3:", "s3:/"):
        raise UserError(f"'{url}' is not a release; needed URL/NAME or URL/NAME@VERSION, URL a folder or s3://…")
    check_name("release", name)
    store = open_store(base)
    if not at:
        pointer = Pointer.read(store, name)
        if pointer is None:
            names = [known for known in store.folders("") if is_name(known)]
            hint = f"has no release '{name}'; {nearest(name, names)}" if names else "has no releases"
            raise UserError(f"{base}: {hint}" if name not in names else f"{base}/{name}: has no published version yet")
        version = pointer.version
    check_name("version", version)
    found = read_manifest(store, name, version)
    if found is None:
        versions = [folder.removeprefix("v=") for folder in store.folders(f"{name}/")]
        known = [other for other in versions if other != version and is_name(other)]
        hint = f"; {nearest(version, known)}" if known else ""
        raise UserError(f"{base}/{name}: has no version '{version}'{hint}")
    return store, *found


def _check_empty(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest}: is not empty; needed a new or an empty folder")
    if dest == Path.cwd():
        raise UserError(f"{dest}: is the folder that this runs in; needed another, which is put in place whole")


def _fetch(store: Store, key: str, file: File, path: Path, report: Callable[[int], None]) -> None:
    """One object into the file `path`, begun again when the connection broke."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_TRIES):
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("wb") as out, closing(store.chunks(key)) as chunks:
                for chunk in chunks:
                    size += len(chunk)
                    if size > file.bytes:
                        break
                    digest.update(chunk)
                    out.write(chunk)
                    report(len(chunk))
            break
        except BrokenError:
            if attempt == _TRIES - 1:
                raise
            report(-size)
    if size != file.bytes:
        raise FailedError(f"{store.url}/{key}: is not the {file.bytes:,} bytes that {MANIFEST} says")
    if digest.hexdigest() != file.sha256:
        raise FailedError(f"{store.url}/{key}: has sha256 {digest.hexdigest()}; needed {file.sha256} as in {MANIFEST}")


def _verify_folder(root: Path) -> Manifest:
    path = root / MANIFEST
    if path.stat().st_size > MAX_BYTES:
        raise FailedError(f"{path}: is larger than {MAX_BYTES} bytes; needed what Forgeline writes there")
    manifest = Manifest.parse(path.read_bytes(), str(path))
    wrong = [f"{file.path} {problem}" for file in manifest.files if (problem := _problem(root / file.path, file))]
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    extra = found - {MANIFEST, *(file.path for file in manifest.files)}
    wrong += [f"{name} is not in {MANIFEST}" for name in sorted(extra)]
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise FailedError(f"{root}: {'; '.join(wrong[:_NAMED])}{more}")
    images = ImageSet.open(root)
    images.verify()
    if (images.fingerprint, images.classes) != (manifest.fingerprint, manifest.classes):
        raise FailedError(f"{path}: is of another set than the images beside it")
    return manifest


def _problem(path: Path, file: File) -> str | None:
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != file.bytes:
        return f"has {size:,} bytes, needed {file.bytes:,}"
    if sha256_file(path) != file.sha256:
        return f"has another sha256 than {MANIFEST} says"
    return None
