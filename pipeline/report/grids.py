"""Samples of a trained model as pictures: one grid, or a folder of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.gan.model import Model
from pipeline.imageset import ImageSet, png
from pipeline.imageset.files import atomic_folder, write_atomically

_CELL = 48  # pixels that a small image is enlarged to, about
_GAP = 1  # pixels between images, before enlarging
_AT_ONCE = 4096  # images in memory while a folder is written


def tile(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images (N, C, H, W) row by row as one picture (C, height, width), each small pixel enlarged to a square."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, channels, height + _GAP, width + _GAP), 255, np.uint8)
    cells[:count, :, :height, :width] = images
    picture = cells.reshape(rows, columns, channels, height + _GAP, width + _GAP)
    picture = picture.transpose(2, 0, 3, 1, 4).reshape(channels, rows * (height + _GAP), columns * (width + _GAP))
    enlarged = max(1, round(_CELL / height))
    return picture[:, :-_GAP, :-_GAP].repeat(enlarged, axis=1).repeat(enlarged, axis=2)


def sample_grid(model: Model, *, seed: int, columns: int = 10, spread: float = 1.0) -> bytes:
    """A PNG of unfiltered samples: one row for each class, or ten rows of an unconditional model.

    Of one that translates, for each domain: a row of images, of their translations, and of these translated back.
    """
    if model.translates:
        return _round_trips(model, columns, columns)
    rows = len(model.classes) if model.conditional else 10
    images, _ = model.sample(seed=seed, start=0, count=rows * columns, spread=spread)
    by_class = images.reshape(columns, rows, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)
    return png.encode(tile(by_class, columns))


def interpolation_strip(model: Model, *, seed: int, steps: int = 10) -> bytes:
    """A PNG of the way from one sample to another: a row, or one for each class, which all go the same way."""
    return png.encode(tile(model.interpolate(seed=seed, steps=steps), steps))


def _round_trips(model: Model, pairs: int, columns: int) -> bytes:
    """At most so many pairs of translations between what they were made of and what they are translated back to."""
    pairs = min(pairs, len(model.sources) // 2)
    steps = np.stack(model.round_trip(pairs), axis=1)  # (pairs, 3, 2, C, H, W)
    columns = min(columns, pairs)
    blank = np.full((-pairs % columns, *steps.shape[1:]), 255, np.uint8)
    rows = np.concatenate([steps, blank]).reshape(-1, columns, *steps.shape[1:])
    pictures = rows.transpose(3, 0, 2, 1, 4, 5, 6)[::-1]  # into domain 1 first: its images come from domain 0
    return png.encode(tile(pictures.reshape(-1, *steps.shape[3:]), columns))


def sample_to(
    model_folder: Path, out: Path, *, count: int, seed: int, spread: float = 1.0, sources: Path | None = None
) -> int:
    """Write `count` samples: as one grid where `out` ends in .png, else as a new folder of PNG files. Returns how many.

    A model that translates gives at most as many as the test split of the ImageSet `sources` has images for. Raises
    UserError when a folder cannot be read, the spread is not above 0, `out` holds something, or another kind of picture
    is asked for.
    """
    if not 0 < spread < float("inf"):
        raise UserError(f"--spread is {spread}; needed a number above 0")
    model = Model.load(model_folder)
    if model.translates != (sources is not None):
        needed = "--sources, an ImageSet whose test images it translates" if model.translates else "no --sources"
        raise UserError(f"{model_folder}: a {model.family} model; needed {needed}")
    if sources is not None:
        model = model.with_sources(*ImageSet.open(sources).arrays("test"))
    count = model.distinct(count)
    if out.suffix.lower() == ".png" and model.translates:
        write_atomically(out, _round_trips(model, -(-count // 2), 10))
        return count
    if out.suffix.lower() == ".png":
        images, _ = model.sample(seed=seed, start=0, count=count, spread=spread)
        columns = len(model.classes) if model.conditional else round(count**0.5)
        write_atomically(out, png.encode(tile(images, min(count, columns))))
        return count
    if out.suffix.lower() in (".jpg", ".jpeg", ".gif", ".webp"):
        raise UserError(f"{out}: would be a folder of that name; needed a name that ends in .png, for one grid")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty; needed a new or empty folder, or a name that ends in .png")
    with atomic_folder(out) as folder:
        for start in range(0, count, _AT_ONCE):
            images, labels = model.sample(seed=seed, start=start, count=min(_AT_ONCE, count - start), spread=spread)
            for number, (image, label) in enumerate(zip(images, labels, strict=True), start=start):
                name = "-" + re.sub(r"[^\w.-]+", "_", model.classes[label]) if model.conditional else ""
                (folder / f"{number:06d}{name}.png").write_bytes(png.encode(image))
    return count
