"""Pulling and verifying: every byte is checked against the manifest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.delivery.fetching import Tally, fetch_file
from pipeline.delivery.formats import WRITERS
from pipeline.delivery.manifest import CARD, MANIFEST, File, Manifest
from pipeline.delivery.parallel import in_parallel
from pipeline.delivery.selecting import ALL, Selection, fetch_selected, open_part
from pipeline.delivery.signature import SIGNATURE
from pipeline.delivery.stores import MAX_BYTES, BrokenError
from pipeline.delivery.versions import Version, find
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import resumable_folder, sha256_file

_CARD_OF_ALL = "RELEASE.md"  # not README.md, whose numbers `datasets` would hold against a part of the set
_NAMED = 10  # wrong files, in the sentence that verifying ends with


def pull(
    url: str,
    dest: Path,
    *,
    yanked: bool = False,
    layout: str = "parquet",
    selection: Selection = ALL,
    key: Path | None = None,
) -> Path:
    """Fetch the release URL/NAME (its latest version), URL/NAME@VERSION or URL/NAME@CHANNEL into the folder `dest`.

    `layout` is one of formats.WRITERS; a selection, or another layout than parquet, has the images and the card only.
    `dest` appears whole or not at all; what a process fetched that was killed, or whose connection broke, the next one
    uses. With `key`, a public one, its holder must have signed the manifest. Raises UserError when there is no such
    release, it was yanked and `yanked` does not insist, or `dest` is not empty; FailedError when a byte is wrong, the
    store fails or the disk is too small.
    """
    dest = dest.absolute()
    _check_empty(dest)
    version = find(url)
    if not yanked:
        version.check_not_yanked()
    if key:
        version.check_signature(key)
    with _resumable(dest, version.manifest.version) as work:
        if layout == "parquet" and selection == ALL:
            _pull_files(version, work)
        else:
            _pull_images(version, work, layout, selection)
        _check_empty(dest)
    return dest


def _pull_files(version: Version, work: Path) -> None:
    """Every file of the version, as it is."""
    manifest = version.manifest
    _check_space(work, manifest.total_bytes, version.name)
    tally = Tally(f"pulling {version.name}", manifest.total_bytes)

    def fetch(file: File) -> None:
        fetch_file(version.store, version.key(file.path), file, work / "out" / file.path, tally)

    for _ in in_parallel(fetch, manifest.files, tally.stopped):
        pass
    (work / "out" / MANIFEST).write_bytes(version.data)
    _remove_strangers(work / "out", manifest)


def _pull_images(version: Version, work: Path, layout: str, selection: Selection) -> None:
    """The selected images in another layout, and the card; the images alone are fetched."""
    part = open_part(version, work)
    needed = sum(group.span.bytes for _, group in part.plan(selection))
    _check_space(work, 2 * needed, version.name)  # as fetched and as written
    out = work / "out"
    shutil.rmtree(out)
    out.mkdir()
    batches = fetch_selected(part, selection, work, Tally(f"pulling from {version.name}", needed))
    WRITERS[layout](out, batches, part.images, version.name)
    if card := version.read(CARD):
        (out / _CARD_OF_ALL).write_bytes(card)


def _remove_strangers(root: Path, manifest: Manifest) -> None:
    """Remove what some other program put into the folder that is about to be put in place."""
    known = {MANIFEST, *(file.path for file in manifest.files)}
    for path in root.rglob("*"):
        if not path.is_dir() and path.relative_to(root).as_posix() not in known:
            path.unlink()


@contextmanager
def _resumable(dest: Path, key: str) -> Iterator[Path]:
    """A folder to fetch into, kept for the next try only where that can go better with what is there."""
    with resumable_folder(dest, key) as work:
        try:
            yield work
        except (FailedError, OSError) as error:
            if not isinstance(error, BrokenError):
                shutil.rmtree(work, ignore_errors=True)
            raise


def _check_space(work: Path, needed: int, name: str) -> None:
    there = sum(path.stat().st_blocks * 512 for path in work.rglob("*") if path.is_file())
    if (free := shutil.disk_usage(work).free) + there < needed:
        raise FailedError(f"{work.parent}: has {free:,} bytes free; needed {needed:,} for {name}")


def verify(target: str) -> Manifest:
    """Rehash a pulled folder, or a release as `pull` names it; then decode every image and check the fingerprint.

    Raises FailedError that names what is wrong, UserError when there is no such folder or release.
    """
    root = Path(target)
    if (root / MANIFEST).is_file():
        return _verify_folder(root)
    if root.is_dir() and not any(root.glob("v=*")):
        raise UserError(f"{root}: has no {MANIFEST}; needed a folder that was pulled, or a release as URL/NAME")
    with tempfile.TemporaryDirectory(prefix="forgeline-") as folder:
        return _verify_folder(pull(target, Path(folder, "release"), yanked=True))


def _check_empty(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest}: is not empty; needed a new or an empty folder")
    if dest == Path.cwd():
        raise UserError(f"{dest}: is the folder that this runs in; needed another, which is put in place whole")


def _verify_folder(root: Path) -> Manifest:
    path = root / MANIFEST
    if path.stat().st_size > MAX_BYTES:
        raise FailedError(f"{path}: is larger than {MAX_BYTES} bytes; needed what Forgeline writes there")
    manifest = Manifest.parse(path.read_bytes(), str(path))
    wrong = [f"{file.path} {problem}" for file in manifest.files if (problem := _problem(root / file.path, file))]
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    extra = found - {MANIFEST, SIGNATURE, *(file.path for file in manifest.files)}
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
