"""What a pull can leave: an ImageSet as Parquet, a folder of pictures for each class, or tars for `webdataset`."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.delivery.manifest import is_plain
from pipeline.delivery.selecting import Selected
from pipeline.errors import FailedError
from pipeline.imageset import ImageSet, Row, png, write_imageset

_TAR_IMAGES = 10_000
_CLASSES = "classes.json"
T = TypeVar("T")


def write_parquet(root: Path, selected: Iterable[Selected], images: ImageSet, release: str) -> None:
    """An ImageSet with the classes, and so the labels, of `images`, the PNG bytes as published."""
    rows = (
        Row(
            split=split,
            label=label,
            image=_naming(png.decode, data, path, images),
            path=path,
            provenance=more,
            encoded=data,
        )
        for split, label, data, path, more in selected
    )
    try:
        write_imageset(
            root,
            rows,
            classes=images.classes,
            source={**images.source, "release": release},
            resize=images.resize,
            synthetic=images.synthetic,
            generator=images.generator,
        )
    except ValueError as error:
        raise FailedError(f"{release}: {error}") from None


def write_imagefolder(root: Path, selected: Iterable[Selected], images: ImageSet, release: str) -> None:
    """SPLIT/CLASS/NUMBER.png, the bytes as published; classes.json gives the labels in order."""
    folders = class_folders(images.classes)
    counts: Counter[tuple[str, int]] = Counter()
    for split, label, data, path, _ in selected:
        _naming(png.check, data, path, images)
        place = root / split / folders[label]
        if not counts[split, label]:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{counts[split, label]:07d}.png").write_bytes(data)
        counts[split, label] += 1
        del data  # which may be 50 MB, before the next one is there in two forms
    _write_classes(root, images)


def write_webdataset(root: Path, selected: Iterable[Selected], images: ImageSet, release: str) -> None:
    """SPLIT-NUMBER.tar of some thousand images: .png as published, .cls the label, .json the other columns."""
    counts: Counter[str] = Counter()
    tars: dict[str, tarfile.TarFile] = {}
    try:
        for split, label, data, path, more in selected:
            _naming(png.check, data, path, images)
            if counts[split] % _TAR_IMAGES == 0:
                if split in tars:
                    tars[split].close()
                tars[split] = tarfile.open(root / f"{split}-{counts[split] // _TAR_IMAGES:06d}.tar", "w")  # noqa: SIM115
            _add(tars[split], f"{counts[split]:08d}.png", data)
            _add(tars[split], f"{counts[split]:08d}.cls", b"%d" % label)
            _add(tars[split], f"{counts[split]:08d}.json", json.dumps(more, sort_keys=True).encode())
            counts[split] += 1
            del data  # as above
    finally:
        for tar in tars.values():
            tar.close()
    _write_classes(root, images)


WRITERS = {"parquet": write_parquet, "imagefolder": write_imagefolder, "webdataset": write_webdataset}


def class_folders(classes: Sequence[str]) -> list[str]:
    """A folder for each class: their names where these are different folders on every system, else their numbers."""
    if all(map(is_plain, classes)) and len({name.casefold() for name in classes}) == len(classes):
        return list(classes)
    return [f"class-{label:05d}" for label in range(len(classes))]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _naming(work: Callable[[bytes, tuple[int, int, int]], T], data: bytes, path: str, images: ImageSet) -> T:
    """What `work` makes of PNG bytes; what is wrong with them as a FailedError that has the name of the image."""
    try:
        return work(data, images.shape)
    except ValueError as error:
        raise FailedError(f"the image {path!r:.99} {error}") from None


def _write_classes(root: Path, images: ImageSet) -> None:
    (root / _CLASSES).write_text(json.dumps(images.classes, ensure_ascii=False) + "\n", encoding="utf-8")
