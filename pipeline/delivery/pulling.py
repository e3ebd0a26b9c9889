"""Pulling and verifying: every byte is checked against the manifest."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.delivery.fetching import Tally, fetch_file
from pipeline.delivery.formats import WRITERS
from pipeline.delivery.manifest import CARD, CHECKSUMS, MANIFEST, File, Manifest
from pipeline.delivery.selecting import ALL, Selected, Selection, fetch_selected, least_bytes, open_part
from pipeline.delivery.signature import SIGNATURE
from pipeline.delivery.stores import MAX_BYTES, StoreError
from pipeline.delivery.versions import Version, find
from pipeline.errors import FailedError, ForgelineError, UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.files import resumable_folder, sha256_file
from pipeline.imageset.layout import IMAGESET_JSON
from pipeline.parallel import in_parallel

_CARD_OF_ALL = "RELEASE.md"  # not README.md, whose numbers `datasets` would hold against a part of the set
_NAMED = 10  # wrong files, in the sentence that verifying ends with
_HEAD = re.compile(r"# (\d{1,15}) images of ([a-z0-9._-]{1,100})@([a-z0-9._-]{1,100})\n")  # a comment to sha256sum


class _NoRoomError(FailedError):
    """The disk is too small."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found to be right: a whole release, as published, or some of its images, as they were pulled."""

    name: str
    version: str
    images: int
    whole: bool


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

    `layout` is one of formats.WRITERS; a selection, or another layout than parquet, has the images, the card and
    checksums of its own.
    `dest` appears whole or not at all; what a process fetched that was killed, or that the store or a full disk
    stopped, the next one uses. With `key`, a public one, its holder must have signed the manifest. Raises UserError
    when there is no such release, it was yanked and `yanked` does not insist, or `dest` is not empty; FailedError when
    a byte is wrong, the store fails or the disk is too small.
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
    plan = part.plan(selection)
    _check_space(work, least_bytes(plan, selection), version.name)
    out = work / "out"
    shutil.rmtree(out)
    out.mkdir()
    planned = sum(group.span.bytes for _, group in plan)
    images = 0

    def counted(image: Selected) -> Selected:
        nonlocal images
        images += 1
        return image

    fetched = fetch_selected(part, plan, selection, work, Tally(f"pulling from {version.name}", planned))
    WRITERS[layout](out, map(counted, fetched), part.images, version.name)
    if card := version.read(CARD):
        (out / _CARD_OF_ALL).write_bytes(card)
    with (out / CHECKSUMS).open("x", encoding="utf-8") as checksums:
        checksums.write(f"# {images} images of {version.name}\n")
        checksums.writelines(f"{sha256_file(out / path)}  {path}\n" for path in _files(out) if path != CHECKSUMS)


def _remove_strangers(root: Path, manifest: Manifest) -> None:
    """Remove what some other program put into the folder that is about to be put in place."""
    known = {MANIFEST, *(file.path for file in manifest.files)}
    for path in _files(root):
        if path not in known:
            (root / path).unlink()


def _files(root: Path) -> Iterator[str]:
    """The paths of all that is no folder, sorted within each; not a list, for there may be millions."""
    for folder, folders, names in os.walk(root):
        linked = {name for name in folders if Path(folder, name).is_symlink()}
        folders[:] = sorted(set(folders) - linked)
        for name in sorted([*names, *linked]):
            yield Path(folder, name).relative_to(root).as_posix()


@contextmanager
def _resumable(dest: Path, key: str) -> Iterator[Path]:
    """A folder to fetch into, kept for the next try where the store or the disk was at fault, and not what it holds."""
    with resumable_folder(dest, key) as work:
        for path in (work, *(work / path for path in _files(work))):
            if path.is_symlink():  # what is written there would be written elsewhere
                raise UserError(f"{path}: is a link; needed to be removed, for an earlier pull left none")
        try:
            yield work
        except ForgelineError as error:
            if not isinstance(error, StoreError | _NoRoomError) and not isinstance(error.__cause__, OSError):
                shutil.rmtree(work, ignore_errors=True)
            raise


def _check_space(work: Path, needed: int, name: str) -> None:
    there = sum(path.stat().st_blocks * 512 for path in work.rglob("*") if path.is_file())
    if (free := shutil.disk_usage(work).free) + there < needed:
        raise _NoRoomError(f"{work.parent}: has {free:,} bytes free; needed {needed:,} for {name}")


def verify(target: str) -> Verified:
    """Rehash a pulled folder, or a release as `pull` names it; then decode every image and check the fingerprint.

    A folder of another layout than parquet is rehashed only: its images were decoded when it was pulled. Raises
    FailedError that names what is wrong, UserError when there is no such folder or release.
    """
    root = Path(target)
    if (root / MANIFEST).is_file():
        return _verify_folder(root)
    if (root / CHECKSUMS).is_file():
        return _verify_images(root)
    if root.is_dir() and not any(root.glob("v=*")):
        raise UserError(f"{root}: has no {MANIFEST}; needed a folder that was pulled, or a release as URL/NAME")
    with tempfile.TemporaryDirectory(prefix="forgeline-") as folder:
        return _verify_folder(pull(target, Path(folder, "release"), yanked=True))


def _check_empty(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        found = "is not empty" if dest.is_dir() else "is no folder"
        raise UserError(f"{dest}: {found}; needed a new or an empty folder")
    if dest == Path.cwd():
        raise UserError(f"{dest}: is the folder that this runs in; needed another, which is put in place whole")


def _verify_folder(root: Path) -> Verified:
    """A release as it was published."""
    path = root / MANIFEST
    if path.stat().st_size > MAX_BYTES:
        raise FailedError(f"{path}: is larger than {MAX_BYTES} bytes; needed what Forgeline writes there")
    manifest = Manifest.parse(path.read_bytes(), str(path))
    wrong = [f"{file.path} {problem}" for file in manifest.files if (problem := _problem(root / file.path, file))]
    known = {MANIFEST, SIGNATURE, *(file.path for file in manifest.files)}
    wrong += [f"{name} is not in {MANIFEST}" for name in _files(root) if name not in known]
    _refuse(root, wrong)
    images = ImageSet.open(root)
    images.verify()
    if (images.fingerprint, images.classes) != (manifest.fingerprint, manifest.classes):
        raise FailedError(f"{path}: is of another set than the images beside it")
    return Verified(name=manifest.name, version=manifest.version, images=manifest.images, whole=True)


def _verify_images(root: Path) -> Verified:
    """Images as `_pull_images` left them."""
    path = root / CHECKSUMS
    with path.open(encoding="utf-8", errors="replace") as lines:
        head = _HEAD.fullmatch(lines.readline(1000))
        if head is None:
            raise FailedError(f"{path}: does not say of which release it is; needed what 'forgeline pull' leaves")
        _refuse(root, _differences(root, lines))
    if (root / IMAGESET_JSON).is_file():
        ImageSet.open(root).verify()
    return Verified(name=head[2], version=head[3], images=int(head[1]), whole=False)


def _differences(root: Path, lines: Iterable[str]) -> Iterator[str]:
    """What is wrong with the files in `root`, against the lines of its SHA256SUMS."""
    listed = {path: sha256 for sha256, _, path in (line.rstrip("\n").partition("  ") for line in lines)}
    for path in _files(root):
        if path == CHECKSUMS:
            continue
        if path not in listed:
            yield f"{path} is not in {CHECKSUMS}"
        elif sha256_file(root / path) != listed.pop(path):
            yield f"{path} has another sha256 than {CHECKSUMS} says"
    yield from (f"{path} is missing" for path in listed)


def _refuse(root: Path, wrong: Iterable[str]) -> None:
    """Raise FailedError when something is wrong, with the first of it."""
    found = list(wrong)
    if found:
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise FailedError(f"{root}: {'; '.join(found[:_NAMED])}{more}")


def _problem(path: Path, file: File) -> str | None:
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != file.bytes:
        return f"has {size:,} bytes, needed {file.bytes:,}"
    if sha256_file(path) != file.sha256:
        return f"has another sha256 than {MANIFEST} says"
    return None
