"""`forgeline evaluate`: how near one set of images is to another, whoever made them, each number with its protocol."""

from __future__ import annotations

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
from pipeline.imageset.layout import IMAGESET_JSON
from pipeline.metrics import fidelity
from pipeline.metrics.extractors import IN_DOMAIN, Extractor, InDomain, Pretrained, Settings, embed_once
from pipeline.metrics.judges import Judges
from pipeline.sources.images import Config, Source
from pipeline.sources.picture import load_picture, without_pillows_own_limit
from pipeline.sources.source import RawImage

_MAX_PIXELS = 40_000_000
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
    """Images uint8 (N, C, H, W) of one size, C 1 where all are gray; `description` says which they are."""

    images: np.ndarray
    description: str

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
    drawn. Raises UserError where the two cannot be compared, or a picture cannot be read.
    """
    ours, theirs = _open(generated, None, max_images, seed), _open(real, split, max_images, seed)
    if ours.kind != theirs.kind:
        raise UserError(f"{generated}: its images are {ours.kind}; needed {theirs.kind} as in {real}")
    extractor = _extractor(settings, theirs)
    for name, pictures in ((generated, ours), (real, theirs)):
        fidelity.check_count(len(pictures.images), extractor.dimensions, name)
    width = extractor.dimensions
    reference, found = embed_once(extractor, theirs.images), extractor.embed(ours.images)
    scores, spread = fidelity.with_spread(
        found[:, :width], reference[:, :width], seed=seed, precision=extractor.precision
    )
    if extractor.logits:
        scores["inception_score"], spread["inception_score"] = fidelity.inception_score(found[:, width:], seed=seed)
    protocol = {
        "measures": [extractor.label, f"{extractor.label}_spread"],
        "generated": ours.description,
        "real": theirs.description,
        "images": ours.kind,
        **fidelity.protocol(
            extractor.about, [(len(ours.images), len(theirs.images))], seed=seed, logits=extractor.logits
        ),
    }
    return {extractor.label: scores, f"{extractor.label}_spread": spread, "protocol": [protocol]}


def table(found: Mapping[str, Any]) -> Group:
    """What `compare` found, for a terminal."""
    (protocol,) = found["protocol"]
    label, spread = protocol["measures"]
    shown = Table(box=None, pad_edge=False)
    shown.add_column(f"in {label} features")
    shown.add_column("", justify="right")
    shown.add_column("standard error", justify="right")
    for name, title in _TITLES.items():
        if name in found[label]:
            error = found[spread].get(name)
            shown.add_row(title, f"{found[label][name]:.6g}", "" if error is None else f"{error:.2g}")
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
    read = _of_imageset if Path(url, IMAGESET_JSON).is_file() else _of_files
    images, total, what = read(url, split, most, np.random.Generator(np.random.Philox(seed)))
    if images.shape[1] == 3 and (images == images[:, :1]).all():  # what many save grayscale images as
        images = images[:, :1]
    drawn = f"{len(images)} of {total}" if len(images) < total else f"{total}"
    return Pictures(images=images, description=f"{drawn} images of {what}" + (f", split {split}" if split else ""))


def _of_imageset(url: str, split: str | None, most: int, random: np.random.Generator) -> tuple[np.ndarray, int, str]:
    """At most so many images, uint8 (N, C, H, W), the number of all, and what they are of."""
    imageset = ImageSet.open(Path(url))
    parts = [imageset.arrays(name)[0] for name in ([split] if split else imageset.counts)]
    total = sum(map(len, parts))
    rows = np.sort(random.permutation(total)[:most])
    starts = np.cumsum([0, *map(len, parts[:-1])])
    rows_of = np.split(rows, np.searchsorted(rows, starts[1:]))
    images = np.concatenate([part[its - start] for part, its, start in zip(parts, rows_of, starts, strict=True)])
    return images, total, f"{url} ({imageset.fingerprint[:12]}, resize {imageset.resize or 'none'})"


def _of_files(url: str, split: str | None, most: int, random: np.random.Generator) -> tuple[np.ndarray, int, str]:
    """The same of pictures in files, in the order of their paths; those that lie outside of class folders too."""
    try:
        source = Source(Config(url=url))
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    held: dict[int, RawImage] = {}  # a reservoir: no more than so many are in memory
    total = 0
    with source.read(source.inventory()) as reading:
        for raw in _pictures(url, reading.images):
            if split in (None, raw.split):
                place = total if total < most else int(random.integers(total + 1))
                if place < most:
                    held[place] = raw
                total += 1
    if not held:
        raise UserError(f"{url}: has no pictures{f' in a folder of the split {split}' if split else ''}; needed some")
    chosen = sorted(held.values(), key=lambda raw: raw.path)  # an archive has an order of its own
    with without_pillows_own_limit():
        images = [_decoded(url, raw) for raw in chosen]
    for image, raw in zip(images, chosen, strict=True):
        if image.shape != images[0].shape:
            sizes = " and ".join(f"{width}×{height}" for _, height, width in (images[0].shape, image.shape))
            raise UserError(f"{url}: has pictures of {sizes} pixels ({raw.path}); needed one size")
    return np.stack(images), total, f"{url} (each as it is, nothing resized)"


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
