"""What an ImageSet is made of: file names, the Parquet schema, the hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA_VERSION = 1
IMAGESET_JSON = "imageset.json"
SPLITS = ("train", "validation", "test")

_HUGGINGFACE = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}


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
    columns = [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64()),
        *(pa.field(name, kind) for name, kind in provenance.items()),
    ]
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    for name, kind in provenance.items():
        features[name] = {"dtype": _HUGGINGFACE[kind], "_type": "Value"}
    return pa.schema(
        columns,
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "synthetic": json.dumps(synthetic),
            "generator": json.dumps(dict(generator) if generator else None, sort_keys=True),
        },
    )


def content_hash(image: NDArray[np.uint8]) -> str:
    """Hex sha256 of the shape and pixels of `image`, uint8 (C, H, W)."""
    header = "x".join(map(str, image.shape)) + "\n"
    return hashlib.sha256(header.encode() + image.tobytes()).hexdigest()


def fingerprint(schema: pa.Schema, classes: Sequence[str], rows: Iterable[tuple[str, int, str]]) -> str:
    """Hex sha256 over schema, classes and each row's (split, label, content hash).

    It depends on decoded pixels and not on encoded bytes, which differ with the zlib that Pillow finds on a host.
    """
    header = {
        "schema_version": SCHEMA_VERSION,
        "columns": [[field.name, str(field.type)] for field in schema],
        "classes": list(classes),
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n")
    for split, label, content in rows:
        digest.update(f"{split} {label} {content}\n".encode())
    return digest.hexdigest()
