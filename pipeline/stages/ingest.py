"""ingest: what the inventory lists → out/real: an ImageSet, its manifest, and the list of the files left out.

Splits are fixed by the content of an image, the hash of its pixels as they stand in the set. What a source itself puts
into test or validation is in test or validation, wherever else a copy of it turns up; a split that it does not name is
carved from the rest by the hash: the first `test_fraction` of all hashes, then `validation_fraction`. So copies never
stand on both sides, and an image stays where it is when others come; but a class in which no hash is that low lends its
lowest, which train again when lower ones come. What trains by its hash, and has trained, is not tested with later.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO, Literal

import numpy as np

from pipeline import paths
from pipeline.errors import FailedError, UserError, nearest
from pipeline.imageset import Row, write_imageset
from pipeline.imageset.files import atomic_folder, scratch_file, write_atomically
from pipeline.imageset.imageset import check_classes
from pipeline.imageset.layout import MAX_IMAGE_SIZE, content_hash
from pipeline.imageset.manifest import write_manifest
from pipeline.imageset.subset import stratified_fraction
from pipeline.parallel import in_parallel
from pipeline.params import Document
from pipeline.progress import progress
from pipeline.sources.picture import RESIZE, Picture, load_picture, without_pillows_own_limit
from pipeline.sources.source import RawImage, Source, Split, load_source

_DECODERS = len(os.sched_getaffinity(0))
_EXAMPLES = 3
Provenance = dict[str, str | int | float]


@dataclass(frozen=True, kw_only=True)
class Params:
    """Images become `channels` × `image_size`²; the fractions are for the splits that the source does not name itself.

    `train_fraction` of each class's training images is kept, for studies of small data: 0.05 is a part of 0.1; of a
    class in `class_counts` so many instead, for studies of rare classes. More bad files than the share
    `max_bad_fraction` fail the stage; a picture of more than `max_pixels` is bad.
    """

    image_size: int
    channels: Literal[1, 3] = 3
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    train_fraction: float = 1.0
    class_counts: dict[str, int] = field(default_factory=dict)
    max_bad_fraction: float = 0.01
    max_pixels: int = 40_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {self.image_size}; needed 1 to {MAX_IMAGE_SIZE}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}; needed between 0 and 1")
        if not 0 < self.validation_fraction < 1 - self.test_fraction:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}; needed above 0, and with test_fraction "
                f"{self.test_fraction} less than 1"
            )
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction is {self.train_fraction}; needed above 0 and at most 1")
        for name, count in self.class_counts.items():
            if count < 1:
                raise ValueError(f"class_counts.{name} is {count}; needed at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {self.max_bad_fraction}; needed 0 to 1")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}; needed at least 1")


def read_params(document: Document) -> tuple[Source, Params]:
    """The source and the settings of this stage."""
    return load_source(document), document.section("ingest", Params)


def run(document: Document) -> None:
    """Write out/real, whole or not at all.

    Raises UserError where a class has too few images, or is asked for and not there; FailedError where too many files
    are bad, which are listed in out/quarantine.json then, and where the data are no longer those of the inventory.
    """
    source, params = read_params(document)
    inventory = _inventory(source)
    with scratch_file(paths.OUT) as spool:
        collection = collect(source, inventory, params, spool)
        refused = paths.OUT / paths.QUARANTINE
        if too_many := collection.too_many_bad(source.name, params.max_bad_fraction):
            write_atomically(refused, collection.quarantine())
            raise FailedError(f"{too_many}; {refused} lists all of them")
        refused.unlink(missing_ok=True)
        splits = split_by_content(
            [image.content for image in collection.images],
            [image.label for image in collection.images],
            [image.split for image in collection.images],
            validation_fraction=params.validation_fraction,
            test_fraction=params.test_fraction,
        )
        check_splits(source.name, collection, splits)
        counts = _counts_by_label(document, params, collection, splits)
        kept = keep(collection.images, splits, params.train_fraction, counts)
        with atomic_folder(paths.REAL) as folder:
            imageset = write_imageset(
                folder / paths.IMAGESET,
                collection.rows(kept, splits, spool),
                classes=collection.classes,
                source=source.about,
                resize=RESIZE if collection.resized else None,
                synthetic=False,
            )
            write_manifest(folder / paths.MANIFEST, imageset)
            (folder / paths.QUARANTINE).write_bytes(collection.quarantine())
    if collection.bad or collection.harmless:
        print(
            f"ingest: left out {len(collection.bad):,} bad files and {len(collection.harmless):,} that are text; "
            f"{paths.REAL / paths.QUARANTINE} says why"
        )


def _inventory(source: Source) -> dict[str, Any]:
    kind = source.about["kind"]
    try:
        inventory = json.loads(paths.INVENTORY.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{paths.INVENTORY}: is not there; needed 'forgeline stage source' before") from None
    except ValueError:
        inventory = None
    if not isinstance(inventory, dict) or "kind" not in inventory:
        raise UserError(f"{paths.INVENTORY}: is not an inventory; needed 'forgeline stage source' again")
    if inventory["kind"] != kind:
        raise UserError(
            f"{paths.INVENTORY}: is of kind '{inventory['kind']}', source.kind is '{kind}'; needed 'forgeline stage "
            "source' again"
        )
    return inventory


@dataclass(frozen=True, slots=True)
class Image:
    """What stays in memory of an image; its pixels wait in a file."""

    path: str
    label: int
    split: Split | None
    content: str
    width: int
    height: int
    mode: str


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All that a source had: images in the order in which they came, and the reasons of those left out, by path."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    images: Sequence[Image]
    bad: Mapping[str, str]
    harmless: Mapping[str, str]
    resized: bool

    def quarantine(self) -> bytes:
        """The list of what was left out, as JSON: `bad` files count against the tolerance, `harmless` ones do not."""
        listed = {"images": len(self.images), "bad": self.bad, "harmless": self.harmless}
        return (json.dumps(listed, indent=1, sort_keys=True) + "\n").encode()

    def too_many_bad(self, name: str, tolerance: float) -> str | None:
        """A sentence, when more than the share `tolerance` of the files is bad."""
        total = len(self.bad) + len(self.images)
        if not self.bad or len(self.bad) <= tolerance * total:
            return None
        examples = "; ".join(f"{path} {reason}" for path, reason in sorted(self.bad.items())[:_EXAMPLES])
        return (
            f"{name}: {len(self.bad)} of {total} files ({len(self.bad) / total:.1%}) are bad, "
            f"ingest.max_bad_fraction is {tolerance}: {examples}"
        )

    def rows(self, kept: Sequence[int], splits: Sequence[Split], spool: BinaryIO) -> Iterator[Row]:
        """The images of the indices `kept`, in the order of their paths, which no container of the files changes."""
        size = prod(self.shape)
        for index in sorted(kept, key=lambda index: self.images[index].path):
            image = self.images[index]
            pixels = np.frombuffer(os.pread(spool.fileno(), size, index * size), np.uint8).reshape(self.shape)
            provenance: Provenance = {
                "content": image.content,
                "width": image.width,
                "height": image.height,
                "mode": image.mode,
            }
            yield Row(split=splits[index], label=image.label, image=pixels, path=image.path, provenance=provenance)


def collect(source: Source, inventory: Mapping[str, Any], params: Params, spool: BinaryIO) -> Collection:
    """Decode all images of `source` at the size and channels of `params`, their pixels one after another to `spool`."""
    images: list[Image] = []
    bad: dict[str, str] = {}
    harmless: dict[str, str] = {}
    resized = False

    def load(raw: RawImage) -> tuple[RawImage, Picture | str]:
        if raw.fault is not None:
            return raw, raw.fault
        try:
            return raw, load_picture(
                raw.data, image_size=params.image_size, channels=params.channels, max_pixels=params.max_pixels
            )
        except ValueError as error:
            return raw, str(error)

    with without_pillows_own_limit(), source.read(inventory) as reading:
        _check_names(source.name, reading.classes)
        labels = {name: label for label, name in enumerate(reading.classes)}
        counted = progress(reading.images, "ingest", reading.count, "images")
        for raw, picture in in_parallel(load, counted, threads=_DECODERS, ahead=4 * _DECODERS):
            if isinstance(picture, str):
                (harmless if raw.harmless else bad)[raw.path] = picture
                continue
            assert raw.label is not None
            spool.write(picture.pixels.data)
            resized = resized or picture.resized
            images.append(
                Image(
                    path=raw.path,
                    label=labels[raw.label],
                    split=raw.split,
                    content=content_hash(picture.pixels),
                    width=picture.width,
                    height=picture.height,
                    mode=picture.mode,
                )
            )
    spool.flush()
    return Collection(
        classes=reading.classes,
        shape=(params.channels, params.image_size, params.image_size),
        images=images,
        bad=bad,
        harmless=harmless,
        resized=resized,
    )


def _check_names(name: str, classes: Sequence[str]) -> None:
    """Raise UserError where an ImageSet could not hold the class names, or a figure not show them."""
    for label in classes:
        if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", label):
            raise UserError(f"{name}: the class name {label!r} has a control character; needed one without")
    try:
        check_classes(classes)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def split_by_content(
    contents: Sequence[str],
    labels: Sequence[int],
    hints: Sequence[Split | None],
    *,
    validation_fraction: float,
    test_fraction: float,
) -> list[Split]:
    """The split of each of N images, from its content (hex sha256) and the split that its source names, if any.

    Equal contents get equal splits. In a class so small that hashes alone would leave a carved split empty, the lowest
    hash goes to test, the next to validation, the highest to train, as far as they reach.
    """
    shares: dict[Split, float] = {"test": test_fraction, "validation": validation_fraction}
    shares = {split: share for split, share in shares.items() if split not in hints}
    chosen: dict[str, Split] = {}
    for split in ("validation", "test"):  # test is the stronger
        chosen |= {content: split for content, hint in zip(contents, hints, strict=True) if hint == split}
    free: dict[int, set[str]] = defaultdict(set)
    for content, label in zip(contents, labels, strict=True):
        if content not in chosen:
            free[label].add(content)
    for members in free.values():
        for content, split in _carve(sorted(members), shares).items():
            chosen[content] = max(split, chosen.get(content, "train"), key=("train", "validation", "test").index)
    return [chosen[content] for content in contents]


def _carve(members: Sequence[str], shares: Mapping[Split, float]) -> dict[str, Split]:
    """A split for each content of one class, given in ascending order; `train` for what the shares leave."""
    carved: dict[str, Split] = dict.fromkeys(members, "train")
    start = 0.0
    for split, share in shares.items():
        carved |= {content: split for content in members if start <= int(content[:16], 16) / 2**64 < start + share}
        start += share
    if len(members) <= len(shares):
        return {**dict(zip(members, shares, strict=False)), members[-1]: "train"}
    # A small class lends to `test` its lowest, so never what has trained beside it.
    for number, split in enumerate((*shares, "train")):
        if split not in carved.values():
            sizes = Counter(carved.values())
            spare = [content for content in members if sizes[carved[content]] > 1]
            lent = next((content for content in spare if carved[content] == "train"), spare[-1])
            carved[lent if number else members[0]] = split
    return carved


def check_splits(name: str, collection: Collection, splits: Sequence[Split]) -> None:
    """Raise UserError when a class has no image to train on or none to test with, or validation has none at all."""
    if not collection.images:
        raise UserError(f"{name}: has no images; needed some of each class")
    sizes = Counter(image.label for image in collection.images)
    present = set(zip((image.label for image in collection.images), splits, strict=True))
    for label, class_name in enumerate(collection.classes):
        for split in ("train", "test"):
            if (label, split) not in present:
                raise UserError(
                    f"{name}: class '{class_name}' has no image in {split}, of {sizes[label]} in all; needed at least "
                    "one to train on and another one to test with"
                )
    if "validation" not in splits:
        raise UserError(f"{name}: no image is left for validation; needed a class of at least three different ones")


def _counts_by_label(
    document: Document, params: Params, collection: Collection, splits: Sequence[Split]
) -> dict[int, int]:
    """`class_counts` by label. Raises UserError when there is no such class, or when it has fewer training images."""
    labels = {name: label for label, name in enumerate(collection.classes)}
    have = Counter(image.label for image, split in zip(collection.images, splits, strict=True) if split == "train")
    for name, count in params.class_counts.items():
        if name not in labels:
            raise document.error(f"ingest.class_counts.{name}", f"names no class; {nearest(name, labels)}")
        if count > have[labels[name]]:
            raise document.error(
                f"ingest.class_counts.{name}", f"is {count}; needed at most {have[labels[name]]}, its training images"
            )
    return {labels[name]: count for name, count in params.class_counts.items()}


def keep(
    images: Sequence[Image],
    splits: Sequence[Split],
    train_fraction: float,
    counts: Mapping[int, int] | None = None,
) -> list[int]:
    """The indices of the images that stay: all of validation and test, and of train the same fraction of each class.

    Of a label in `counts` as many instead.
    """
    train = [index for index, split in enumerate(splits) if split == "train"]
    labels = np.array([images[index].label for index in train], np.int64)
    chosen = stratified_fraction([images[index].content for index in train], labels, train_fraction, counts)
    return [train[i] for i in chosen] + [index for index, split in enumerate(splits) if split != "train"]
