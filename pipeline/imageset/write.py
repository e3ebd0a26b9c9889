"""Writing an ImageSet: whole or not at all, in bounded memory, the same bytes for the same rows."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.imageset import png
from pipeline.imageset.files import atomic_folder, sha256_file
from pipeline.imageset.imageset import ImageSet, Shard, check_classes
from pipeline.imageset.layout import (
    CONFIDENCE,
    IMAGE_TYPE,
    IMAGESET_JSON,
    MAX_IMAGE_SIZE,
    SPLITS,
    batch_images,
    content_hash,
    fingerprint,
    largest_shard,
    row_group_images,
    shard_name,
    shard_schema,
)

_DIGEST = 32  # bytes of a content hash
_GOLDEN = (5**0.5 - 1) / 2  # the step by which any number of places on a circle are spread best
_GATHERED_BYTES = 8 << 20  # of pixels at most, of row groups whose rows are sought in the spool together
_TASKS = 16  # that a batch is encoded in: one for each small image would cost as much as the image
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One image, uint8 (C, H, W) with C in {1, 3} and H = W; `path` is a name for it.

    `provenance` has the same keys and types in every row and becomes columns. `encoded` is the PNG of the image, where
    there is one already.
    """

    split: str
    label: int
    image: NDArray[np.uint8]
    path: str
    provenance: Mapping[str, str | int | float]
    encoded: bytes | None = None


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

    The classes of a split are interleaved in row groups of one class each, and these in shards of about
    `shard_images`, fewer where images are large. Within a class the rows keep their order, but where they have a
    `confidence` a row group has rows of about one, so that whole groups can be left out by it; the middle ones come
    first, and any first groups are spread over all. Raises ValueError when a row does not fit the first or the
    classes, UserError without rows or where `root` holds other files, FailedError on a full disk.
    """
    check_classes(classes)
    occupied = any(root.iterdir()) if root.is_dir() else root.exists()
    if occupied and not (root / IMAGESET_JSON).is_file():
        raise UserError(f"{root}: holds other files; needed a new folder, or an ImageSet to replace")
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{root}: has no images to hold; needed at least one")
    kinds = _check_first(first)
    schema = shard_schema(classes, kinds, synthetic=synthetic, generator=generator)
    rows = chain(iter([first]), rows)  # an iterator lets go of what it has given, and `chain` not
    # What the others must be like, without the pixels, which may be 50 MB.
    first = replace(first, image=np.broadcast_to(np.uint8(0), first.image.shape), encoded=None)
    gathered = max(1, _GATHERED_BYTES // first.image.size)
    with atomic_folder(root) as folder:
        spool, hashes = folder / "spool.arrow", folder / "spool.hashes"
        index = _spool(spool, hashes, rows, first, schema, len(classes))
        counts = {
            split: np.bincount(index.labels[members], minlength=len(classes)) for split, members in index.by_split()
        }
        together, most = row_group_images(first.image.shape), min(shard_images, largest_shard(first.image.shape))
        plan = [
            (split, shard) for split, members in index.by_split() for shard in _plan(index, members, together, most)
        ]
        imageset = ImageSet(
            root=root,
            classes=tuple(classes),
            channels=first.image.shape[0],
            image_size=first.image.shape[1],
            resize=resize,
            source=dict(source),
            synthetic=synthetic,
            generator=None if generator is None else dict(generator),
            fingerprint=fingerprint(schema, classes, _contents(hashes, index, plan)),
            counts={split: tuple(found.tolist()) for split, found in counts.items()},
            shards=tuple(_write_shards(folder, spool, plan, schema, gathered)),
        )
        spool.unlink()
        hashes.unlink()
        (folder / IMAGESET_JSON).write_bytes(imageset.to_json())
    return imageset


@dataclass(frozen=True, kw_only=True)
class _Index:
    """What stays in memory of each spooled row: the place of its split in SPLITS, its label, its confidence if any."""

    splits: NDArray[np.uint8]
    labels: NDArray[np.int32]
    confidences: NDArray[np.float64] | None

    def by_split(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """The rows of each split that has some."""
        for place, split in enumerate(SPLITS):
            if len(rows := np.flatnonzero(self.splits == place)):
                yield split, rows


_Plan = list[tuple[str, list[NDArray[np.int64]]]]  # of each shard its split and the rows of each of its row groups


def _spool(path: Path, hashes: Path, rows: Iterator[Row], first: Row, schema: pa.Schema, classes: int) -> _Index:
    """Encode the rows into one file as they come, for their place in the shards is known only when all are counted."""
    splits, labels, confidences = array("B"), array("i"), array("d")
    sure = CONFIDENCE in schema.names and schema.field(CONFIDENCE).type == pa.float64()
    size = batch_images(first.image.shape)
    needed = _types(first)
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
        hashes.open("wb") as digests,
        png.threads() as pool,
    ):

        def spool(batch: list[Row]) -> None:
            for row in batch:
                _check(row, first, needed, classes)
            # A large image alone and in this thread, for each other thread would keep memory for another one.
            each = pool.map if size > 1 else map
            step = max(1, size // _TASKS)
            tasks = each(_encoded, [batch[start : start + step] for start in range(0, len(batch), step)])
            encoded, contents = zip(*chain.from_iterable(tasks), strict=True)
            columns: list[Sequence[Any]] = [encoded, [row.path for row in batch], [row.label for row in batch]]
            columns += ([row.provenance[name] for row in batch] for name in schema.names[2:])
            kinds = [*(field.type for field in IMAGE_TYPE), *schema.types[1:]]
            data, path, *others = map(_column, columns, kinds)
            image = pa.StructArray.from_arrays([data, path], fields=list(IMAGE_TYPE))
            writer.write_batch(pa.record_batch([image, *others], schema=schema))
            for row, content in zip(batch, contents, strict=True):
                splits.append(SPLITS.index(row.split))
                labels.append(row.label)
                if sure:
                    confidences.append(float(row.provenance[CONFIDENCE]))
                digests.write(bytes.fromhex(content))

        while batch := list(islice(rows, size)):
            spool(batch)
            batch.clear()  # or it would live until the next one is whole
    return _Index(
        splits=np.frombuffer(splits, np.uint8),
        labels=np.frombuffer(labels, np.int32),
        confidences=np.frombuffer(confidences, np.float64) if sure else None,
    )


def _column(values: Sequence[Any] | NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """The values as Arrow has them, by its buffers: `pa.array` would import pandas where that is installed, 45 MB."""
    if kind in (pa.int64(), pa.float64()):
        numbers = np.asarray(values, np.int64 if kind == pa.int64() else np.float64)
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])
    written = [value.encode() if isinstance(value, str) else value for value in values]
    offsets = np.array([*accumulate(map(len, written), initial=0)], np.int32)  # which fails where a sum would not fit
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(written))])


def _encoded(rows: Iterable[Row]) -> list[tuple[bytes, str]]:
    """PNG bytes and content hash of each."""
    return [(png.encode(row.image) if row.encoded is None else row.encoded, content_hash(row.image)) for row in rows]


def _contents(hashes: Path, index: _Index, plan: _Plan) -> Iterator[tuple[str, int, str]]:
    """Split, label and content hash of each row, in the order of the shards."""
    with hashes.open("rb") as file:
        for split, groups in plan:
            for group in groups:
                for row, label in zip(group.tolist(), index.labels[group].tolist(), strict=True):
                    yield split, label, os.pread(file.fileno(), _DIGEST, row * _DIGEST).hex()


def _check_first(row: Row) -> dict[str, pa.DataType]:
    """The types of the provenance columns. Raises ValueError when no set can be of such images and columns."""
    match row.image.shape:
        case (1 | 3, height, width) if height == width and 1 <= height <= MAX_IMAGE_SIZE:
            pass
        case shape:
            raise ValueError(f"image is {shape} in {row.path}; needed (1 or 3, size, size), size 1 to {MAX_IMAGE_SIZE}")
    types = _types(row)
    if not set(types.values()) <= set(_TYPES) or not types.keys().isdisjoint(("image", "label")):
        raise ValueError(f"provenance is {types} in {row.path}; needed str, int or float, not named image or label")
    return {name: _TYPES[kind] for name, kind in types.items()}


def _check(row: Row, first: Row, needed: Mapping[str, type], classes: int) -> None:
    """Raise ValueError when `row` does not fit the first one, the types `needed` of its provenance, or the classes."""
    if row.split not in SPLITS:
        raise ValueError(f"split is '{row.split}' in {row.path}; needed one of {', '.join(SPLITS)}")
    if not 0 <= row.label < classes:
        raise ValueError(f"label is {row.label} in {row.path}; needed 0 to {classes - 1}")
    if row.image.dtype != np.uint8 or row.image.shape != first.image.shape:
        found = f"{row.image.dtype} {row.image.shape}"
        raise ValueError(f"image is {found} in {row.path}; needed uint8 {first.image.shape} as the first image")
    if (types := _types(row)) != needed:
        raise ValueError(f"provenance is {types} in {row.path}; needed {needed} as in the first row")


def _types(row: Row) -> dict[str, type]:
    return {name: type(_plain(value)) for name, value in row.provenance.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _plan(index: _Index, rows: NDArray[np.int64], together: int, shard_images: int) -> list[list[NDArray[np.int64]]]:
    """The `rows` of a split as shards of row groups: at most `together` of one class, the classes spread evenly."""
    labels = index.labels[rows]
    groups = []
    for label in np.unique(labels).tolist():
        members = rows[labels == label]
        count = -(-len(members) // min(together, shard_images))
        if index.confidences is None:
            parts = np.array_split(members, count)
        else:
            surest = members[np.argsort(-index.confidences[members], kind="stable")]
            bands = [np.sort(band) for band in np.array_split(surest, count)]  # in a group the rows keep their order
            parts = [bands[place] for place in np.argsort(np.argsort((0.5 + _GOLDEN * np.arange(count)) % 1))]
        groups += [((place + 0.5) / len(parts), label, part) for place, part in enumerate(parts)]
    groups.sort(key=lambda group: group[:2])
    starts = accumulate((len(group) for *_, group in groups), initial=0)
    count = -(-len(rows) // shard_images)
    shards: dict[int, list[NDArray[np.int64]]] = {}
    for start, (*_, group) in zip(starts, groups, strict=False):
        shards.setdefault((2 * start + len(group)) * count // (2 * len(rows)), []).append(group)  # by its middle row
    return list(shards.values())


def _write_shards(folder: Path, spool: Path, plan: _Plan, schema: pa.Schema, gathered: int) -> Iterator[Shard]:
    splits = [split for split, _ in plan]
    others = ["image.path", *schema.names[1:]]
    with spool.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last buffer that is in it
    with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
        for number, (split, groups) in enumerate(plan):
            path = folder / shard_name(split, number - splits.index(split), splits.count(split))
            with pq.ParquetWriter(
                path,
                schema,
                compression={"image.bytes": "none"} | dict.fromkeys(others, "zstd"),  # PNG is compressed already
                use_dictionary=others,
                write_statistics=others,
            ) as writer:
                for some in _together(groups, gathered):
                    table = _take(reader, np.concatenate(some))
                    for start, group in zip(accumulate(map(len, some), initial=0), some, strict=False):
                        writer.write_table(table.slice(start, len(group)), row_group_size=len(group))
                    del table
                    mapped.madvise(mmap.MADV_DONTNEED)  # else all that was read would count as this process's memory
                    pa.default_memory_pool().release_unused()
            yield Shard(
                path=path.name,
                split=split,
                rows=sum(map(len, groups)),
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
            )


def _together(groups: Sequence[NDArray[np.int64]], most: int) -> Iterator[list[NDArray[np.int64]]]:
    """The row groups in order, several at a time: of at most so many rows in all, or one."""
    some: list[NDArray[np.int64]] = []
    for group in groups:
        if some and sum(map(len, some)) + len(group) > most:
            yield some
            some = []
        some.append(group)
    yield some


def _take(reader: Any, rows: NDArray[np.int64]) -> pa.Table:
    """The spooled `rows`, in their order. Batch by batch: taking from a table of all would read it into memory."""
    order = np.argsort(rows)
    batches, places = np.divmod(rows[order], reader.get_batch(0).num_rows)
    numbers, starts = np.unique(batches, return_index=True)
    found = []
    for number, wanted in zip(numbers.tolist(), np.split(places, starts[1:]), strict=True):
        batch = reader.get_batch(number)
        all_of_it = len(wanted) == batch.num_rows  # no copy of a batch that is one large image
        found.append(batch if all_of_it else batch.take(_column(wanted, pa.int64())))
    table = pa.Table.from_batches(found)
    return table.take(_column(np.argsort(order), pa.int64())) if len(rows) > 1 else table
