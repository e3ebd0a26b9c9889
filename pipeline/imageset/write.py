"""Writing an ImageSet: whole or not at all, in bounded memory, the same bytes for the same rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.imageset import png
from pipeline.imageset.files import atomic_folder, sha256_file
from pipeline.imageset.imageset import ImageSet, Shard
from pipeline.imageset.layout import IMAGESET_JSON, SPLITS, content_hash, fingerprint, shard_name, shard_schema

ROW_GROUP_IMAGES = 100  # small enough for a stream to mix classes, large enough for one request to fetch
_BATCH_IMAGES = 256
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One image: uint8 (C, H, W) with C in {1, 3}; `provenance` has the same keys and types in every row."""

    split: str
    label: int
    image: NDArray[np.uint8]
    path: str
    provenance: Mapping[str, str | int | float]


@dataclass(frozen=True)
class _Index:
    """What stays in memory of each spooled row: its split, label and content hash."""

    splits: list[str]
    labels: list[int]
    contents: list[str]


def write_imageset(
    root: Path,
    rows: Iterable[Row],
    *,
    classes: Sequence[str],
    source: Mapping[str, str | int | float | bool],
    resize: str | None,
    synthetic: bool,
    generator: Mapping[str, str] | None = None,
    shard_images: int = 10_000,
) -> ImageSet:
    """Write `rows` as the ImageSet `root`, which appears whole at the end and takes the place of an older one.

    Within a split and class the rows keep their order; classes are interleaved in row groups of one class each.
    Raises ValueError when a row does not fit the first, UserError without rows or where `root` holds other files,
    FailedError on a full disk.
    """
    if root.is_dir() and any(root.iterdir()) and not (root / IMAGESET_JSON).is_file():
        raise UserError(f"{root}: is a folder of other files; needed a new folder or an ImageSet to replace")
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{root}: has no images to write; needed at least one")
    provenance = {name: _TYPES[type(_plain(value))] for name, value in first.provenance.items()}
    schema = shard_schema(classes, provenance, synthetic=synthetic, generator=generator)
    with atomic_folder(root) as folder:
        spool = folder / "spool.arrow"
        index = _spool(spool, chain([first], rows), schema, len(classes))
        plans = {split: _plan(index, split, shard_images) for split in SPLITS if split in index.splits}
        shards = tuple(_write_shards(folder, spool, plans, schema))
        spool.unlink()
        order = [(split, row) for split in plans for shard in plans[split] for group in shard for row in group]
        imageset = ImageSet(
            root=root,
            classes=tuple(classes),
            channels=first.image.shape[0],
            image_size=first.image.shape[1],
            resize=resize,
            source=dict(source),
            synthetic=synthetic,
            generator=dict(generator) if generator else None,
            fingerprint=fingerprint(
                schema, classes, ((split, index.labels[row], index.contents[row]) for split, row in order)
            ),
            counts={split: _counts(index, split, len(classes)) for split in plans},
            shards=shards,
        )
        (folder / IMAGESET_JSON).write_bytes(imageset.to_json())
    return imageset


def _spool(path: Path, rows: Iterator[Row], schema: pa.Schema, classes: int) -> _Index:
    """Encode all rows into one file in the order in which they come; the order in the shards needs all counts first."""
    index = _Index([], [], [])
    first: Row | None = None
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        while batch := list(islice(rows, _BATCH_IMAGES)):
            first = first or batch[0]
            for row in batch:
                _check(row, first, classes)
            images = [row.image for row in batch]
            columns: list[Any] = [
                [
                    {"bytes": data, "path": row.path}
                    for data, row in zip(pool.map(png.encode, images), batch, strict=True)
                ],
                [int(row.label) for row in batch],
                *([_plain(row.provenance[name]) for row in batch] for name in schema.names[2:]),
            ]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            index.splits.extend(row.split for row in batch)
            index.labels.extend(columns[1])
            index.contents.extend(pool.map(content_hash, images))
    return index


def _check(row: Row, first: Row, classes: int) -> None:
    """Raise ValueError that says found and needed when `row` is not as the first row and the classes ask."""
    if row.split not in SPLITS:
        raise ValueError(f"split is '{row.split}' in {row.path}; needed one of {', '.join(SPLITS)}")
    if not 0 <= row.label < classes:
        raise ValueError(f"label is {row.label} in {row.path}; needed 0 to {classes - 1}")
    channels, height, _ = first.image.shape
    if row.image.dtype != np.uint8 or row.image.shape != (channels, height, height) or channels not in (1, 3):
        raise ValueError(
            f"image is {row.image.dtype} {row.image.shape} in {row.path}; needed uint8 (C, H, W), C 1 or 3, H = W, "
            f"as the first image's {first.image.shape}"
        )
    found = {name: type(_plain(value)) for name, value in row.provenance.items()}
    needed = {name: type(_plain(value)) for name, value in first.provenance.items()}
    if found != needed:
        raise ValueError(f"provenance is {found} in {row.path}; needed {needed} as in the first row")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _plan(index: _Index, split: str, shard_images: int) -> list[list[list[int]]]:
    """The rows of `split` as shards of row groups: each group of one class, the classes spread evenly."""
    by_class: dict[int, list[int]] = {}
    for row, (found, label) in enumerate(zip(index.splits, index.labels, strict=True)):
        if found == split:
            by_class.setdefault(label, []).append(row)
    size = min(ROW_GROUP_IMAGES, shard_images)
    groups = []
    for label, members in by_class.items():
        parts = np.array_split(members, -(-len(members) // size))
        groups += [((place + 0.5) / len(parts), label, part.tolist()) for place, part in enumerate(parts)]
    shards: list[list[list[int]]] = [[]]
    for _, _, group in sorted(groups):
        if sum(map(len, shards[-1])) + len(group) > shard_images:
            shards.append([])
        shards[-1].append(group)
    return shards


def _write_shards(
    folder: Path, spool: Path, plans: Mapping[str, list[list[list[int]]]], schema: pa.Schema
) -> Iterator[Shard]:
    compact = ["image.path", *schema.names[1:]]
    with pa.memory_map(str(spool)) as source, pa.ipc.open_file(source) as reader:
        for split, plan in plans.items():
            for number, groups in enumerate(plan):
                path = folder / shard_name(split, number, len(plan))
                with pq.ParquetWriter(
                    path,
                    schema,
                    compression={"image.bytes": "none", **dict.fromkeys(compact, "zstd")},  # PNG is compressed
                    use_dictionary=compact,
                    write_statistics=compact,
                ) as writer:
                    for group in groups:
                        writer.write_table(_take(reader, group), row_group_size=len(group))
                yield Shard(
                    path=path.name,
                    split=split,
                    rows=sum(map(len, groups)),
                    bytes=path.stat().st_size,
                    sha256=sha256_file(path),
                )


def _take(reader: Any, rows: list[int]) -> pa.Table:
    """The spooled `rows`, in ascending order, copied batch by batch: taking from a whole table may copy all of it."""
    batches, places = np.divmod(rows, _BATCH_IMAGES)
    return pa.Table.from_batches(
        [reader.get_batch(int(batch)).take(pa.array(places[batches == batch])) for batch in np.unique(batches)]
    )


def _counts(index: _Index, split: str, classes: int) -> tuple[int, ...]:
    found = Counter(label for name, label in zip(index.splits, index.labels, strict=True) if name == split)
    return tuple(found[label] for label in range(classes))
