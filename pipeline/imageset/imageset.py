"""ImageSet: open, read and verify."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import FailedError, UserError
from pipeline.imageset.decode import decode_shard, decoded
from pipeline.imageset.files import sha256_file
from pipeline.imageset.layout import (
    IMAGESET_JSON,
    SCHEMA_VERSION,
    SPLITS,
    content_hash,
    fingerprint,
    shard_name,
    shard_schema,
)

_HEX = re.compile(r"[0-9a-f]{64}")
_SHARD = {"path": str, "split": str, "rows": int, "bytes": int, "sha256": str}
_CONTENT = {
    "schema_version": int,
    "classes": [str],
    "channels": int,
    "image_size": int,
    "resize": (str, type(None)),
    "source": dict,
    "synthetic": bool,
    "generator": (dict, type(None)),
    "fingerprint": str,
    "counts": dict,
    "shards": [_SHARD],
}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of an ImageSet; `path` is its name inside the folder."""

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one size with labels, in splits, as a folder of Parquet shards and imageset.json.

    `counts` gives each split's images per class, in the order of `classes`; `image_size` is height and width.
    """

    root: Path
    classes: tuple[str, ...]
    channels: int
    image_size: int
    resize: str | None
    source: Mapping[str, str | int | float | bool]
    synthetic: bool
    generator: Mapping[str, str] | None
    fingerprint: str
    counts: Mapping[str, tuple[int, ...]]
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes) or "" in self.classes:
            raise ValueError(f"classes is {list(self.classes)}; needed one or more different names")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; needed 1 or 3")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; needed at least 1")
        if not _HEX.fullmatch(self.fingerprint):
            raise ValueError(f"fingerprint is '{self.fingerprint}'; needed a hex sha256")
        if not self.counts or not set(self.counts) <= set(SPLITS):
            raise ValueError(f"counts has the splits {list(self.counts)}; needed some of {', '.join(SPLITS)}")
        for split, counts in self.counts.items():
            if len(counts) != len(self.classes) or min(counts) < 0 or not any(counts):
                raise ValueError(
                    f"counts.{split} is {list(counts)}; needed images for each of {len(self.classes)} classes"
                )
        held = Counter(shard.split for shard in self.shards)
        needed = [(split, shard_name(split, i, held[split])) for split in self.counts for i in range(held[split])]
        if [(shard.split, shard.path) for shard in self.shards] != needed:
            raise ValueError(
                f"shards has {[shard.path for shard in self.shards]}; needed {[path for _, path in needed]}"
            )
        for i, shard in enumerate(self.shards):
            if shard.rows < 1 or shard.bytes < 1 or not _HEX.fullmatch(shard.sha256):
                raise ValueError(f"shards[{i}] is {asdict(shard)}; needed rows and bytes above 0 and a hex sha256")
        for split, counts in self.counts.items():
            rows = sum(shard.rows for shard in self.shards if shard.split == split)
            if rows != sum(counts):
                raise ValueError(f"counts.{split} sums to {sum(counts)} images; needed {rows} as in its shards")

    @classmethod
    def open(cls, root: Path) -> ImageSet:
        """Read imageset.json. Raises UserError when `root` is not an ImageSet; the shards are not looked at yet."""
        path = root / IMAGESET_JSON
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{root}: is not an ImageSet; needed a folder with {IMAGESET_JSON}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path}: is not JSON; needed what an ImageSet is written with") from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: schema_version is {version}; needed {SCHEMA_VERSION}")
        try:
            _check_types(content, _CONTENT, "")
            _check_types(content["counts"], {split: [int] for split in content["counts"]}, "counts.")
            del content["schema_version"]
            content["classes"] = tuple(content["classes"])
            counts = content["counts"]
            order = [split for split in SPLITS if split in counts] + sorted(set(counts) - set(SPLITS))
            content["counts"] = {split: tuple(counts[split]) for split in order}
            content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
            return cls(root=root, **content)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def to_json(self) -> bytes:
        """The bytes of imageset.json: sorted keys, no times, no paths of this machine."""
        content = {name: value for name, value in vars(self).items() if name != "root"}
        content |= {"schema_version": SCHEMA_VERSION, "shards": [asdict(shard) for shard in self.shards]}
        return (json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return (self.channels, self.image_size, self.image_size)

    def shards_of(self, split: str) -> list[Shard]:
        """The shards of `split`, in order. Raises UserError when there is no such split."""
        if split not in self.counts:
            raise UserError(f"{self.root}: has no split '{split}'; needed one of {', '.join(self.counts)}")
        return [shard for shard in self.shards if shard.split == split]

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of `split` as stored: image struct<bytes, path>, label int64, provenance; or some `columns`."""
        return pa.concat_tables([self._parquet(shard).read(columns) for shard in self.shards_of(split)])

    def arrays(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 (N, C, H, W), memory-mapped and read-only, and labels int64 (N,), in the order of `table`."""
        labels: NDArray[np.int64] = self.table(split, ["label"])["label"].to_numpy()
        shards = self.shards_of(split)

        def images() -> Iterator[NDArray[np.uint8]]:
            for shard in shards:
                self._check_bytes(shard)  # else damaged pixels would be kept under this set's fingerprint
                yield from decode_shard(self.root / shard.path, self.shape)

        return decoded(f"{self.fingerprint}-{split}", (len(labels), *self.shape), images), labels

    def verify(self) -> None:
        """Check every shard's bytes, schema and rows, and the fingerprint. Raises FailedError that names the shard."""
        unknown = {path.name for path in self.root.rglob("*.parquet")} - {shard.path for shard in self.shards}
        if unknown:
            raise FailedError(f"{self.root / min(unknown)}: is not among the shards in {IMAGESET_JSON}")
        for shard in self.shards:
            self._check_bytes(shard)
        schema = self._schema()

        def rows() -> Iterator[tuple[str, int, str]]:
            for split in self.counts:
                found: Counter[int] = Counter()
                for shard in self.shards_of(split):
                    labels = self._check_rows(shard, schema)
                    found.update(labels)
                    images = (image for images in decode_shard(self.root / shard.path, self.shape) for image in images)
                    for label, image in zip(labels, images, strict=True):
                        yield split, label, content_hash(image)
                if tuple(found[label] for label in range(len(self.classes))) != self.counts[split]:
                    raise FailedError(f"{self.root / IMAGESET_JSON}: counts.{split} is not what its shards hold")

        if (found := fingerprint(schema, self.classes, rows())) != self.fingerprint:
            raise FailedError(
                f"{self.root / IMAGESET_JSON}: fingerprint is {self.fingerprint}; its images give {found}"
            )

    def _schema(self) -> pa.Schema:
        """The schema that every shard must have: the first one's columns under this set's own metadata."""
        provenance = {field.name: field.type for field in self._parquet(self.shards[0]).schema_arrow}
        del provenance["image"], provenance["label"]
        return shard_schema(self.classes, provenance, synthetic=self.synthetic, generator=self.generator)

    def _parquet(self, shard: Shard) -> Any:
        try:
            return pq.ParquetFile(self.root / shard.path)
        except FileNotFoundError:
            raise FailedError(f"{self.root / shard.path}: is missing") from None
        except (pa.ArrowException, OSError) as error:
            raise FailedError(f"{self.root / shard.path}: cannot be read as Parquet ({error})") from None

    def _check_bytes(self, shard: Shard) -> None:
        path = self.root / shard.path
        if not path.is_file():
            raise FailedError(f"{path}: is missing")
        if (size := path.stat().st_size) != shard.bytes:
            raise FailedError(f"{path}: is {size} bytes; needed {shard.bytes}")
        if (found := sha256_file(path)) != shard.sha256:
            raise FailedError(f"{path}: has sha256 {found}; needed {shard.sha256}")

    def _check_rows(self, shard: Shard, schema: pa.Schema) -> list[int]:
        """The labels of a shard whose schema and rows are right."""
        path, parquet = self.root / shard.path, self._parquet(shard)
        if not parquet.schema_arrow.equals(schema, check_metadata=True):
            raise FailedError(f"{path}: has another schema than {IMAGESET_JSON} and the first shard")
        if parquet.metadata.num_rows != shard.rows:
            raise FailedError(f"{path}: has {parquet.metadata.num_rows} rows; needed {shard.rows}")
        labels: list[int] = parquet.read(["label"])["label"].to_pylist()
        if not set(labels) <= set(range(len(self.classes))):
            raise FailedError(f"{path}: has labels outside 0..{len(self.classes) - 1}")
        return labels


def _check_types(value: Any, needed: Any, key: str) -> None:
    """Raise ValueError unless `value` is built as `needed`: a type or several, [items], or {name: needed} exactly."""
    if isinstance(needed, dict):
        if not isinstance(value, dict) or set(value) != set(needed):
            raise ValueError(f"{key or 'the file'} has {sorted(value)}; needed {sorted(needed)}")
        for name, inner in needed.items():
            _check_types(value[name], inner, f"{key}{name}")
    elif isinstance(needed, list):
        if type(value) is not list:
            raise ValueError(f"{key} is {value!r}; needed a list")
        for index, item in enumerate(value):
            _check_types(item, needed[0], f"{key}[{index}]")
    elif type(value) not in (needed if isinstance(needed, tuple) else (needed,)):
        raise ValueError(f"{key} is {value!r}; needed another type")
