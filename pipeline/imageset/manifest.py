"""The manifest of an ImageSet: one row per image, for Great Expectations and for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.imageset.files import atomic_file
from pipeline.imageset.imageset import ImageSet
from pipeline.imageset.layout import content_hash


def write_manifest(path: Path, imageset: ImageSet) -> None:
    """Write split, label, class_name, path, content, mean, std and the provenance of every image as Parquet.

    `content` is the hex sha256 of shape and pixels; `mean` and `std` are of the pixels, in [0, 255].
    """
    table = pa.concat_tables([_describe(imageset, split) for split in imageset.counts])
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def _describe(imageset: ImageSet, split: str) -> pa.Table:
    images, labels = imageset.arrays(split)
    names = imageset.schema.names[2:]
    table = imageset.table(split, ["image.path", *names])
    mean, std = _moments(images)
    columns = {
        "split": pa.array([split] * len(labels)),
        "label": pa.array(labels),
        "class_name": pa.array([imageset.classes[label] for label in labels]),
        "path": table["image"].combine_chunks().field("path"),
        "content": pa.array([content_hash(image) for image in images]),
        "mean": pa.array(mean),
        "std": pa.array(std),
    }
    return pa.table(columns | {name: table[name] for name in names if name not in columns})


def _moments(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each image's pixels, through exact sums: equal on every machine."""
    pixels = images[0].size
    total = np.array([int(image.sum(dtype=np.int64)) for image in images])
    squares = np.array([int((image.astype(np.int64) ** 2).sum()) for image in images])
    return total / pixels, np.sqrt(squares * pixels - total * total) / pixels
