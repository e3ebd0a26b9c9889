"""`forgeline evaluate`: how near one set of images is to another, whoever made them, each number with its protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline import paths
from pipeline.errors import UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.imageset import named
from pipeline.imageset.layout import IMAGESET_JSON
from pipeline.metrics import fidelity
from pipeline.metrics.extractors import (
    IN_DOMAIN,
    Extractor,
    InDomain,
    Pretrained,
    Scores,
    Settings,
    embed_once,
    floor_once,
    measure,
)
from pipeline.metrics.judges import Judges
from pipeline.sources.images import UNLABELLED, Config, Source
from pipeline.sources.picture import load_picture, without_pillows_own_limit
from pipeline.sources.source import RawImage

_MAX_PIXELS = 40_000_000
_DECODED = (
    "upright by EXIF, transparency over white, 16 bits scaled to 8; torch-fidelity's own reader does none of these"
)
_TITLES = {
    "fid": "FID: lower is better",
    "fid_infinity": "FID of infinitely many images: 0 where nothing differs",
    "kid": "KID: lower is better, around 0 where nothing differs",
    "precision": "precision: the share that looks real",
    "recall": "recall: the share of real images that it covers",
    "density": "density: about 1 of real images",
    "inception_score": "Inception Score: higher is better, of many classes and certain ones",
    "coverage": "coverage: the share of real images with one near by",
}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images uint8 (N, C, H, W) of one size, C 1 where all are gray; `description` says which they are.

    `counts` are of all images that these were drawn from, by class; of pictures without classes there are none.
    `decoded` says how files became pixels, None of an ImageSet.
    """

    images: np.ndarray
    description: str
    counts: Mapping[str, int]
    decoded: str | None

    @property
    def kind(self) -> str:
        """Size and channels, in words."""
        _, channels, height, width = self.images.shape
        return f"{width}×{height} {'grayscale' if channels == 1 else 'RGB'}"


def compare(
    generated: str, real: str, *, settings: Settings, split: str | None, max_images: int, seed: int
) -> dict[str, Any]:
    """Fidelity of all images at `generated` to those at `real`, or to one `split` of it, in the form of metrics.json.

    Each a folder or an archive of pictures, here or on s3://, or an ImageSet. Of more than `max_images` so many are
    drawn. Pictures are decoded as `ingest` does it, so that transparent, turned and 16-bit ones are others than with
    torch-fidelity's command line; of all else the numbers are the same. Raises UserError where the two cannot be
    compared, or a picture cannot be read.
    """
    ours, theirs = _open(generated, None, max_images, seed), _open(real, split, max_images, seed)
    if ours.kind != theirs.kind:
        raise UserError(f"{generated}: its images are {ours.kind}; needed {theirs.kind} as in {real}")
    extractor = _extractor(settings, theirs)
    for name, pictures in ((generated, ours), (real, theirs)):
        fidelity.check_count(len(pictures.images), extractor.dimensions, name)
    reference, found = embed_once(extractor, theirs.images), extractor.embed(ours.images)
    scores, spread = measure(extractor, found, reference, seed=seed)
    floors, about_floor = _floor(extractor, found, reference, seed)
    blocks = {extractor.label: scores, f"{extractor.label}_spread": spread, **floors}
    decoded = ours.decoded or theirs.decoded
    protocol = {
        "measures": list(blocks),
        "generated": ours.description,
        "real": theirs.description,
        "images": ours.kind,
        "floor": about_floor,
        **({"decoded": decoded} if decoded else {}),
        **fidelity.protocol(
            extractor.about, [(len(ours.images), len(theirs.images))], seed=seed, logits=extractor.logits
        ),
    }
    if ours.counts.keys() & theirs.counts.keys():  # else they have other names for their classes
        total = sum(ours.counts.values())
        blocks["class_shares"] = {name: ours.counts.get(name, 0) / total for name in theirs.counts}
        lacking = [name for name in theirs.counts if name not in ours.counts]
        protocol["classes"] = (
            f"{len(theirs.counts)} of {real}; without an image in {generated}: {named(lacking) or 'none'}"
        )
        protocol["measures"] += ["class_shares"]
    return {**blocks, "protocol": [protocol]}


def _floor(extractor: Extractor, found: np.ndarray, reference: np.ndarray, seed: int) -> tuple[dict[str, Scores], str]:
    """What a random half of the real images gets to the other half, with its spread, and as many generated ones to it.

    And how that was measured. Features as `extractor` gives them. Nothing is measured where a half is too small.
    """
    half = len(reference) // 2
    count = min(half, len(found))
    if count <= extractor.dimensions:
        return (
            {},
            f"none: {count} images, half of the real ones, are not more than the {extractor.dimensions} dimensions",
        )
    random = np.random.Generator(np.random.Philox(seed))
    rows = random.permutation(len(reference))
    some, others = reference[np.sort(rows[:count])], reference[np.sort(rows[half : 2 * half])]
    drawn = found[np.sort(random.permutation(len(found))[:count])]
    floor, spread = floor_once(extractor, some, others, seed=seed, resamples=fidelity.RESAMPLES)
    at_its_size, _ = measure(extractor, drawn, others, seed=seed, resamples=0)
    label = extractor.label
    return (
        {f"{label}_at_floor": at_its_size, f"{label}_floor": floor, f"{label}_floor_spread": spread},
        f"{count} real images in the place of the generated ones, to {half} others of the same; {label}_at_floor: "
        f"{count} generated ones to these {half}",
    )


def table(found: Mapping[str, Any]) -> Group:
    """What `compare` found, for a terminal."""
    (protocol,) = found["protocol"]
    label = protocol["measures"][0]
    shown = Table(box=None, pad_edge=False)
    shown.add_column(f"in {label} features")
    for column in ("", "standard error", "at the floor's size", "floor: real images"):
        shown.add_column(column, justify="right")

    def text(block: str, name: str, form: str = ".6g") -> str:
        value = found.get(block, {}).get(name)
        return "" if value is None else f"{value:{form}}"

    for name, title in _TITLES.items():
        if name in found[label]:
            error = text(f"{label}_floor_spread", name, ".2g")
            shown.add_row(
                title,
                text(label, name),
                text(f"{label}_spread", name, ".2g"),
                text(f"{label}_at_floor", name),
                text(f"{label}_floor", name) + (f" ± {error}" if error else ""),
            )
    lines = [f"{key}: {value}" for key, value in protocol.items() if key != "measures"]
    return Group(shown, Text("\n".join(lines), style="dim"))


def _extractor(settings: Settings, pictures: Pictures) -> Extractor:
    if settings.extractor != IN_DOMAIN:
        return Pretrained(settings)
    extractor = InDomain(Judges.load(paths.FEATURES))
    config = extractor.classifier.config
    needed = (config["channels"], config["image_size"], config["image_size"])
    if pictures.images.shape[1:] != needed:
        channels, size, _ = needed
        kind = f"{size}×{size} {'grayscale' if channels == 1 else 'RGB'}"
        raise UserError(f"{paths.FEATURES}: its extractor takes images of {kind}; found {pictures.kind}")
    return extractor


def _open(url: str, split: str | None, most: int, seed: int) -> Pictures:
    is_set = Path(url, IMAGESET_JSON).is_file()
    read = _of_imageset if is_set else _of_files
    images, counts, what = read(url, split, most, np.random.Generator(np.random.Philox(seed)))
    total = sum(counts.values())
    if images.shape[1] == 3 and (images == images[:, :1]).all():  # what many save grayscale images as
        images = images[:, :1]
    drawn = f"{len(images)} of {total}" if len(images) < total else f"{total}"
    return Pictures(
        images=images,
        description=f"{drawn} images of {what}" + (f", split {split}" if split else ""),
        counts={name: count for name, count in counts.items() if name and count},
        decoded=None if is_set else _DECODED,
    )


Read = tuple[np.ndarray, Mapping[str, int], str]
"""At most so many images, uint8 (N, C, H, W), how many of each class there are ('' of none), and what they are of."""


def _of_imageset(url: str, split: str | None, most: int, random: np.random.Generator) -> Read:
    imageset = ImageSet.open(Path(url))
    splits = [split] if split else list(imageset.counts)
    parts = [imageset.arrays(name)[0] for name in splits]
    total = sum(map(len, parts))
    rows = np.sort(random.permutation(total)[:most])
    starts = np.cumsum([0, *map(len, parts[:-1])])
    rows_of = np.split(rows, np.searchsorted(rows, starts[1:]))
    images = np.concatenate([part[its - start] for part, its, start in zip(parts, rows_of, starts, strict=True)])
    counts = np.sum([imageset.counts[name] for name in splits], axis=0).tolist()
    what = f"{url} ({imageset.fingerprint[:12]}, resize {imageset.resize or 'none'})"
    return images, dict(zip(imageset.classes, counts, strict=True)), what


def _of_files(url: str, split: str | None, most: int, random: np.random.Generator) -> Read:
    """Of pictures in files, in the order of their paths; those that lie outside of class folders too."""
    try:
        source = Source(Config(url=url))
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    held: dict[int, RawImage] = {}  # a reservoir: no more than so many are in memory
    counts: Counter[str] = Counter()
    with source.read(source.inventory()) as reading:
        for raw in _pictures(url, reading.images):
            if split in (None, raw.split):
                total = counts.total()
                place = total if total < most else int(random.integers(total + 1))
                if place < most:
                    held[place] = raw
                counts["" if raw.label in (None, UNLABELLED) else str(raw.label)] += 1
    if not held:
        raise UserError(f"{url}: has no pictures{f' in a folder of the split {split}' if split else ''}; needed some")
    chosen = sorted(held.values(), key=lambda raw: raw.path)  # an archive has an order of its own
    with without_pillows_own_limit():
        images = [_decoded(url, raw) for raw in chosen]
    for image, raw in zip(images, chosen, strict=True):
        if image.shape != images[0].shape:
            sizes = " and ".join(f"{width}×{height}" for _, height, width in (images[0].shape, image.shape))
            raise UserError(f"{url}: has pictures of {sizes} pixels ({raw.path}); needed one size")
    return np.stack(images), counts, f"{url} (each as it is, nothing resized)"


def _pictures(url: str, images: Iterator[RawImage]) -> Iterator[RawImage]:
    for raw in images:
        if len(raw.data):
            yield raw
        elif not raw.harmless:
            raise UserError(f"{url}: {raw.path} {raw.fault or 'is 0 bytes long'}; needed pictures only")


def _decoded(url: str, raw: RawImage) -> np.ndarray:
    try:
        return load_picture(raw.data, image_size=None, channels=3, max_pixels=_MAX_PIXELS).pixels
    except ValueError as error:
        raise UserError(f"{url}: {raw.path} {error}; needed pictures only") from None
