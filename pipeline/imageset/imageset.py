"""ImageSet: open, read and verify."""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import FailedError, UserError
from pipeline.imageset.decode import decode_shard, decoded, reading
from pipeline.imageset.files import sha256_file
from pipeline.imageset.layout import (
    IMAGESET_JSON,
    MAX_IMAGE_SIZE,
    SCHEMA_VERSION,
    SPLITS,
    content_hash,
    fingerprint,
    shard_name,
    shard_schema,
)
from pipeline.imageset.pages import check_unpacked
from pipeline.progress import progress

_NAMED = 5  # classes at most that a sentence names
_HEX = re.compile(r"[0-9a-f]{64}")
_SHARD = {"path": str, "split": str, "rows": int, "bytes": int, "sha256": str}
_JSON: dict[str, tuple[Any, str]] = {  # what each key of imageset.json holds: as _fits reads it, and in words
    "schema_version": (int, "a whole number"),
    "classes": ([str], "a list of names"),
    "channels": (int, "1 or 3"),
    "image_size": (int, "a whole number of pixels"),
    "resize": ((str, type(None)), "the name of a filter or null"),
    "source": ({...: (str, int, float, bool)}, "texts, numbers, true or false by name"),
    "synthetic": (bool, "true or false"),
    "generator": (({...: str}, type(None)), "texts by name, or null"),
    "fingerprint": (str, "a hex sha256"),
    "counts": ({...: [int]}, "a list of whole numbers for each split"),
    "shards": ([_SHARD], "a list of path, split, rows, bytes and sha256"),
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
        check_classes(self.classes)
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; needed 1 or 3")
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {self.image_size}; needed 1 to {MAX_IMAGE_SIZE}")
        if not _HEX.fullmatch(self.fingerprint):
            raise ValueError(f"fingerprint is {self.fingerprint!r:.99}; needed a hex sha256")
        if not self.counts or not set(self.counts) <= set(SPLITS):
            raise ValueError(f"counts has the splits {list(self.counts)}; needed some of {', '.join(SPLITS)}")
        for split, counts in self.counts.items():
            if len(counts) != len(self.classes) or min(counts) < 0:
                raise ValueError(
                    f"counts.{split} is {list(counts)}; needed how many images each of {len(self.classes)} classes has"
                )
            if not any(counts):
                raise ValueError(f"counts.{split} is {list(counts)}, no images at all; needed at least one")
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
            raise UserError(f"{path}: is not JSON; needed what ImageSets are written with") from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: schema_version is {version!r:.99}; needed {SCHEMA_VERSION}")
        for key in sorted(content.keys() | _JSON.keys()):
            if key not in content or key not in _JSON:
                said = f"{key} is missing" if key in _JSON else f"{key!r:.99} is not known"
                raise UserError(f"{path}: {said}; needed {sorted(_JSON)}")
            spec, words = _JSON[key]
            if not _fits(content[key], spec):
                raise UserError(f"{path}: {key} is {reprlib.repr(content[key])}; needed {words}")
        del content["schema_version"]
        content["classes"] = tuple(content["classes"])
        content["counts"] = {split: tuple(counts) for split, counts in sorted(content["counts"].items(), key=_by_split)}
        content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        try:
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

    @property
    def schema(self) -> pa.Schema:
        """The schema that every shard has: image, label, and the provenance columns of the first shard."""
        found = self._read_schema(self.shards[0])
        provenance = {field.name: field.type for field in found if field.name not in ("image", "label")}
        return shard_schema(self.classes, provenance, synthetic=self.synthetic, generator=self.generator)

    def shards_of(self, split: str) -> list[Shard]:
        """The shards of `split`, in order. Raises UserError when there is no such split."""
        if split not in self.counts:
            raise UserError(f"{self.root}: has no split '{split}'; needed one of {', '.join(self.counts)}")
        return [shard for shard in self.shards if shard.split == split]

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of `split` as stored: image struct<bytes, path>, label int64, provenance; or only some `columns`."""
        return pa.concat_tables(self._read(shard, columns) for shard in self.shards_of(split))

    def arrays(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 (N, C, H, W), memory-mapped and read-only, and labels int64 (N,), in the order of `table`.

        The images come through a cache on this machine, keyed by fingerprint and split. Raises UserError on a label
        that is none of the classes, and where the classes have other numbers of images than `counts` says.
        """
        found = self.table(split, ["label"])["label"].to_pylist()
        known = range(len(self.classes))
        if strange := [label for label in found if label not in known]:
            raise UserError(
                f"{self.root}: the {split} split has the label {strange[0]}; needed 0 to {known[-1]}, one of its "
                f"{len(known)} classes"
            )
        labels = np.array(found, np.int64)
        if (held := tuple(np.bincount(labels, minlength=len(known)).tolist())) != self.counts[split]:
            raise UserError(
                f"{self.root / IMAGESET_JSON}: counts.{split} is {self.counts[split]}; its shards hold {held}"
            )
        return decoded(f"{self.fingerprint}-{split}", (len(labels), *self.shape), self._decode(split)), labels

    def check_classes_of(self, real: ImageSet) -> None:
        """Raise UserError that names the classes of `real` training images of which this set has none.

        What such a set measures well on are the classes that it has; both have the same classes.
        """
        held = np.sum(list(self.counts.values()), axis=0)
        needed = zip(self.classes, held, real.counts["train"], strict=True)
        missing = [name for name, ours, theirs in needed if theirs and not ours]
        if missing:
            raise UserError(
                f"{self.root}: has no image of {len(missing)} of {len(self.classes)} classes "
                f"({named(missing)}); needed at least one of each, as in {real.root}"
            )

    def verify(self) -> None:
        """Check all shards' bytes, schema and rows, then counts and fingerprint. Raises FailedError naming the file."""
        files = {path.relative_to(self.root).as_posix() for path in self.root.rglob("*.parquet")}
        if extra := files - {shard.path for shard in self.shards}:
            raise FailedError(f"{self.root / min(extra)}: is not one of the shards that {IMAGESET_JSON} lists")
        for shard in self.shards:
            self._check_bytes(shard)
        schema = self.schema
        counts: Counter[tuple[str, int]] = Counter()

        def rows() -> Iterator[tuple[str, int, str]]:
            for shard in self.shards:
                for row in self._check_rows(shard, schema):
                    counts[row[:2]] += 1
                    yield row

        total = sum(shard.rows for shard in self.shards)
        pixels = fingerprint(schema, self.classes, progress(rows(), "verify", total, "images"))
        for split, needed in self.counts.items():
            if (found := tuple(counts[split, label] for label in range(len(needed)))) != needed:
                raise FailedError(f"{self.root / IMAGESET_JSON}: counts.{split} is {needed}; its shards hold {found}")
        if pixels != self.fingerprint:
            raise FailedError(
                f"{self.root / IMAGESET_JSON}: fingerprint is {self.fingerprint}; its images give {pixels}"
            )

    def _check_bytes(self, shard: Shard) -> None:
        path = self.root / shard.path
        with reading(path):
            if (size := path.stat().st_size) != shard.bytes:
                raise FailedError(f"{path}: is {size} bytes; needed {shard.bytes}")
            if (found := sha256_file(path)) != shard.sha256:
                raise FailedError(f"{path}: has sha256 {found}; needed {shard.sha256}")

    def _check_rows(self, shard: Shard, schema: pa.Schema) -> Iterator[tuple[str, int, str]]:
        """Split, label and content hash of the rows of a shard that has the schema."""
        path = self.root / shard.path
        found = self._read_schema(shard)
        if not found.equals(schema) or found.metadata != schema.metadata:
            raise FailedError(f"{path}: has another schema than {IMAGESET_JSON} and the first shard ask")
        labels: list[int] = self._read(shard, ["label"])["label"].to_pylist()
        if len(labels) != shard.rows or not set(labels) <= set(range(len(self.classes))):
            raise FailedError(
                f"{path}: has {len(labels)} rows; needed {shard.rows} with labels 0 to {len(self.classes) - 1}"
            )
        contents = chain.from_iterable(map(_contents, decode_shard(path, self.shape)))
        for label, content in zip(labels, contents, strict=True):
            yield shard.split, label, content

    def _read_schema(self, shard: Shard) -> pa.Schema:
        path = self.root / shard.path
        with reading(path):
            return pq.read_schema(path)

    def _read(self, shard: Shard, columns: Sequence[str] | None) -> pa.Table:
        path = self.root / shard.path
        with reading(path), pq.ParquetFile(path) as parquet:
            check_unpacked(path, parquet.metadata, range(parquet.num_row_groups), path.stat().st_size, columns)
            return parquet.read(columns)

    def _decode(self, split: str) -> Iterator[NDArray[np.uint8]]:
        for shard in self.shards_of(split):
            self._check_bytes(shard)  # else damaged pixels could be cached under this set's fingerprint
            yield from decode_shard(self.root / shard.path, self.shape)


def _contents(pixels: NDArray[np.uint8]) -> list[str]:
    return list(map(content_hash, pixels))


def check_classes(classes: Sequence[str]) -> None:
    """Raise ValueError unless there are one or more different names that can be written as UTF-8."""
    written = [name.encode(errors="replace").decode() for name in classes]
    if not classes or written != list(classes) or "" in classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes is {written}; needed one or more different names")


def named(names: Sequence[str]) -> str:
    """Names for a sentence, of many the first."""
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _by_split(item: tuple[str, Any]) -> int:
    return SPLITS.index(item[0]) if item[0] in SPLITS else len(SPLITS)


def _fits(value: Any, spec: Any) -> bool:
    """Whether `value` is of the type `spec`, a list [of], a dict {name: of} or {...: of}, or one (of, several)."""
    match spec:
        case tuple():
            return any(_fits(value, one) for one in spec)
        case list():
            return isinstance(value, list) and all(_fits(item, spec[0]) for item in value)
        case dict():
            if not isinstance(value, dict) or (... not in spec and value.keys() != spec.keys()):
                return False
            return all(_fits(inner, spec.get(name, spec.get(...))) for name, inner in value.items())
    return type(value) is spec
