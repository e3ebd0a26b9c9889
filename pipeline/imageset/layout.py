"""What an ImageSet is made of: file names, the Parquet schema, the hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA_VERSION = 1
IMAGESET_JSON = "imageset.json"
MAX_IMAGE_SIZE = 4096  # a reader allocates what imageset.json says, so it may not say anything
SPLITS = ("train", "validation", "test")
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
PROVENANCE_TYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}  # as `datasets` calls them
CONFIDENCE = "confidence"  # the column of what the filter of `augment` thought of the label
ROW_GROUP_IMAGES = 100  # small enough for a stream to mix the classes, large enough to be worth a request
_ROW_GROUP_BYTES = 10_000_000  # of pixels, since a reader holds several groups in memory
_SHARD_BYTES = 500_000_000  # of pixels: one request sends a shard, again from its start where the connection breaks


def row_group_images(shape: tuple[int, ...]) -> int:
    """How many images (C, H, W) at most are stored in a row group."""
    return max(1, min(ROW_GROUP_IMAGES, _ROW_GROUP_BYTES // prod(shape)))


def largest_shard(shape: tuple[int, ...]) -> int:
    """How many images (C, H, W) a shard should have at most."""
    return max(1, _SHARD_BYTES // prod(shape))


def shard_name(split: str, index: int, count: int) -> str:
    """The name that the Hugging Face hub gives shard `index` of `count`."""
    return f"{split}-{index:05d}-of-{count:05d}.parquet"


def shard_schema(
    classes: Sequence[str],
    provenance: Mapping[str, pa.DataType],
    *,
    synthetic: bool,
    generator: Mapping[str, str] | None,
) -> pa.Schema:
    """The schema of every shard. Its `huggingface` metadata alone gives `datasets` the images and class names."""
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    features |= {name: {"dtype": PROVENANCE_TYPES.get(kind), "_type": "Value"} for name, kind in provenance.items()}
    columns = {"image": IMAGE_TYPE, "label": pa.int64(), **provenance}
    metadata = {"huggingface": {"info": {"features": features}}, "synthetic": synthetic, "generator": generator}
    return pa.schema(columns, metadata={key: json.dumps(value, sort_keys=True) for key, value in metadata.items()})


def batch_images(shape: tuple[int, ...]) -> int:
    """How many images of `shape` are encoded or decoded at once: at most 16 MiB of pixels."""
    return max(1, min(256, (16 << 20) // prod(shape)))


def content_hash(image: NDArray[np.uint8]) -> str:
    """Hex sha256 of the shape and pixels of `image`, uint8 (C, H, W)."""
    shape = "x".join(map(str, image.shape))
    digest = hashlib.sha256(f"{shape}\n".encode())
    digest.update(np.ascontiguousarray(image).data)  # and no copy, of an image that may have 50 MB
    return digest.hexdigest()


def fingerprint(schema: pa.Schema, classes: Sequence[str], rows: Iterable[tuple[str, int, str]]) -> str:
    """Hex sha256 over the columns, the classes and each row's split, label and content hash.

    Pixels count and encoded bytes do not: these differ with the zlib that Pillow finds on a host.
    """
    columns = [[field.name, str(field.type)] for field in schema]
    header = {"schema_version": SCHEMA_VERSION, "columns": columns, "classes": list(classes)}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for split, label, content in rows:
        digest.update(f"\n{split} {label} {content}".encode())
    return digest.hexdigest()
