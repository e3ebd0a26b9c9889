"""What a pull can leave: an ImageSet as Parquet, a folder of pictures for each class, or tars for `webdataset`."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.delivery.manifest import is_plain
from pipeline.errors import FailedError
from pipeline.imageset import ImageSet, Row, png, write_imageset

_TAR_IMAGES = 10_000
_CLASSES = "classes.json"

Batches = Iterable[tuple[str, pa.RecordBatch]]


def write_parquet(root: Path, batches: Batches, images: ImageSet, release: str) -> None:
    """An ImageSet with the classes, and so the labels, of `images`."""
    rows = (
        Row(split=split, label=label, image=image, path=path, provenance=more)
        for split, label, data, path, more in _images(batches)
        for image in [_decode(data, path, images)]
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


def write_imagefolder(root: Path, batches: Batches, images: ImageSet, release: str) -> None:
    """SPLIT/CLASS/NUMBER.png, the bytes as published; classes.json gives the labels in order."""
    folders = class_folders(images.classes)
    counts: Counter[tuple[str, int]] = Counter()
    for split, label, data, path, _ in _images(batches):
        _decode(data, path, images)
        place = root / split / folders[label]
        if not counts[split, label]:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{counts[split, label]:07d}.png").write_bytes(data)
        counts[split, label] += 1
    _write_classes(root, images)


def write_webdataset(root: Path, batches: Batches, images: ImageSet, release: str) -> None:
    """SPLIT-NUMBER.tar of some thousand images: .png as published, .cls the label, .json the other columns."""
    counts: Counter[str] = Counter()
    tars: dict[str, tarfile.TarFile] = {}
    try:
        for split, label, data, path, more in _images(batches):
            _decode(data, path, images)
            if counts[split] % _TAR_IMAGES == 0:
                if split in tars:
                    tars[split].close()
                tars[split] = tarfile.open(root / f"{split}-{counts[split] // _TAR_IMAGES:06d}.tar", "w")  # noqa: SIM115
            texts = {"png": data, "cls": b"%d" % label, "json": json.dumps(more, sort_keys=True).encode()}
            for ending, content in texts.items():
                member = tarfile.TarInfo(f"{counts[split]:08d}.{ending}")
                member.size = len(content)
                tars[split].addfile(member, io.BytesIO(content))
            counts[split] += 1
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


def _images(batches: Batches) -> Iterator[tuple[str, int, bytes, str, dict[str, Any]]]:
    """Split, label, PNG bytes, name and provenance of each image."""
    for split, rows in batches:
        for row in rows.to_pylist():
            image, label = row.pop("image"), row.pop("label")
            yield split, label, image["bytes"] or b"", image["path"] or "", row


def _decode(data: bytes, path: str, images: ImageSet) -> Any:
    try:
        return png.decode(data, images.shape)
    except ValueError as error:
        raise FailedError(f"the image {path!r:.99} {error}") from None


def _write_classes(root: Path, images: ImageSet) -> None:
    (root / _CLASSES).write_text(json.dumps(images.classes, ensure_ascii=False) + "\n", encoding="utf-8")
