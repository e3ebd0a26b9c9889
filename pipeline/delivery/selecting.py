"""A part of a release: some classes, some images of each, those of high confidence. Only their row groups travel."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.delivery.fetching import Span, Tally, fetch_file, span_chunks
from pipeline.delivery.rowgroups import ROWGROUPS, RowGroup, ShardGroups, parse
from pipeline.delivery.versions import Version
from pipeline.errors import FailedError, UserError, nearest
from pipeline.imageset import ImageSet
from pipeline.imageset.decode import reading
from pipeline.imageset.layout import CONFIDENCE, IMAGE_TYPE, IMAGESET_JSON, PROVENANCE_TYPES
from pipeline.imageset.pages import check_unpacked
from pipeline.parallel import in_parallel

_MAX_INDEX = 1 << 26  # bytes of rowgroups.json: tens of millions of images
_AHEAD = 16  # row groups that are fetched before their turn, into files
_LARGE_BYTES = 4 << 20  # of a row group whose memory Arrow should not keep for the next one

Selected = tuple[str, int, bytes, str, dict[str, Any]]  # split, label, PNG, name and provenance of an image
Plan = list[tuple[ShardGroups, RowGroup]]  # of each row group to be fetched its shard, in order


@dataclass(frozen=True, kw_only=True)
class Selection:
    """`per_class` is of each class in each split, the first ones, which are no surer than others; None is all.

    Each of `classes` is the name of one, which may have commas, or several names with commas between.
    """

    classes: tuple[str, ...] | None = None
    per_class: int | None = None
    min_confidence: float | None = None

    def labels(self, images: ImageSet) -> set[int]:
        """The labels of the classes. Raises UserError for a class that the set does not have."""
        if self.classes is None:
            return set(range(len(images.classes)))
        names = [name for text in self.classes for name in ([text] if text in images.classes else text.split(","))]
        for name in names:
            if name not in images.classes:
                raise UserError(f"'{name}' is not a class of this release; {nearest(name, images.classes)}")
        return {images.classes.index(name) for name in names}


ALL = Selection()


@dataclass(frozen=True, kw_only=True)
class Part:
    """What can be selected from of a version: its ImageSet without shards, and where each row group is."""

    version: Version
    images: ImageSet
    shards: tuple[ShardGroups, ...]

    def plan(self, selection: Selection) -> Plan:
        """The row groups that may hold selected images, in order. Raises UserError when there can be none."""
        labels, least = selection.labels(self.images), selection.min_confidence
        groups = [(shard, group) for shard in self.shards for group in shard.groups if group.label in labels]
        if not groups:
            raise UserError(f"{self.version.name}: has no image of these classes")
        if least is not None:
            if any(group.confidence is None for _, group in groups):
                raise UserError(f"{self.version.name}: has no column '{CONFIDENCE}', which --min-confidence asks for")
            most = max(group.confidence or 0.0 for _, group in groups)
            if most < least:
                raise UserError(f"{self.version.name}: has no image of confidence {least:g}; the surest has {most:.4g}")
            groups = [(shard, group) for shard, group in groups if (group.confidence or 0.0) >= least]
        elif selection.per_class is not None:
            groups = _first(groups, selection.per_class)
        return groups


def least_bytes(plan: Plan, selection: Selection) -> int:
    """What the selection takes of a disk at least, as fetched and, where whole row groups are, as written."""
    groups = plan if selection.per_class is None else _first(plan, selection.per_class)  # enough, if all are sure
    whole = selection.per_class is None and selection.min_confidence is None
    return (2 if whole else 1) * sum(group.span.bytes for _, group in groups)


def _first(groups: Plan, per_class: int) -> Plan:
    counts: Counter[tuple[str, int]] = Counter()
    found = []
    for shard, group in groups:
        key = (shard.shard.split, group.label)
        if counts[key] < per_class:
            found.append((shard, group))
        counts[key] += group.rows
    return found


def open_part(version: Version, work: Path) -> Part:
    """Fetch what describes a version into the folder `work`. Raises UserError where it was published without."""
    files = {file.path: file for file in version.manifest.files}
    for path in (ROWGROUPS, IMAGESET_JSON):
        if path not in files:
            raise UserError(f"{version.name}: was published without {path}; needed to be pulled whole, as it is")
        if files[path].bytes > _MAX_INDEX:
            raise FailedError(
                f"{version.name}: has {files[path].bytes:,} bytes of {path}; needed {_MAX_INDEX:,} at most"
            )
        tally = Tally(f"looking into {version.name}", files[path].bytes, quiet=True)
        fetch_file(version.store, version.key(path), files[path], work / path, tally)
    images = ImageSet.open(work)
    if (images.fingerprint, images.classes) != (version.manifest.fingerprint, version.manifest.classes):
        raise FailedError(f"{version.name}: {IMAGESET_JSON} is of another set than the manifest")
    where = f"{version.store.url}/{version.key(ROWGROUPS)}"
    shards = parse((work / ROWGROUPS).read_bytes(), where, version.manifest, images)
    return Part(version=version, images=images, shards=shards)


def fetch_selected(part: Part, plan: Plan, selection: Selection, work: Path, tally: Tally) -> Iterator[Selected]:
    """The selected images, in order, of the row groups of the plan, which may hold some.

    The shards become files in `work` with holes where nothing was asked for; what is in them from before is used.
    """
    counts: Counter[tuple[str, int]] = Counter()

    def wanted() -> Iterator[tuple[ShardGroups, RowGroup]]:
        for shard, group in plan:
            if selection.per_class is None or counts[shard.shard.split, group.label] < selection.per_class:
                yield shard, group

    def fetch(item: tuple[ShardGroups, RowGroup]) -> tuple[ShardGroups, RowGroup]:
        shard, group = item
        path, key = work / shard.shard.path, part.version.key(shard.shard.path)
        _fetch_span(part, key, shard.footer, path, None)
        _fetch_span(part, key, group.span, path, tally)
        return item

    for shard, group in in_parallel(fetch, wanted(), tally.stopped, ahead=_AHEAD):
        path = work / shard.shard.path
        place = (shard.shard.split, group.label)
        rows = read_group(path, str(path), group)
        encoded, paths = encoded_images(rows), _of_images(rows, "path")
        others = rows.drop_columns(["image", "label"]).to_pylist()
        del rows
        release_memory(group)
        chosen = list(range(group.rows))
        if (least := selection.min_confidence) is not None:
            chosen = [row for row in chosen if (others[row][CONFIDENCE] or 0.0) >= least]
        if selection.per_class is not None:
            chosen = chosen[: selection.per_class - counts[place]]
        counts[place] += len(chosen)
        encoded = [encoded[row] for row in chosen]
        for row in chosen:
            yield shard.shard.split, group.label, encoded.pop(0), paths[row] or "", others[row]


def read_group(source: io.RawIOBase | Path, where: str, group: RowGroup) -> pa.Table:
    """The rows of a row group. Raises FailedError when they are not as published."""
    with reading(Path(where)), pq.ParquetFile(source, pre_buffer=False) as parquet:  # which would keep all it read
        if group.index >= parquet.num_row_groups:
            raise FailedError(f"{where}: has no row group {group.index}")
        check_unpacked(source, parquet.metadata, [group.index], group.span.bytes)
        if parquet.metadata.row_group(group.index).num_rows != group.rows:  # before there is room made for them
            raise _other_rows(where, group)
        rows = parquet.read_row_group(group.index, use_threads=False)
        rows.validate(full=True)  # text may be no UTF-8
    release_memory(group)
    if not _has_columns(rows, group):
        raise FailedError(f"{where}: row group {group.index} has other columns than an ImageSet")
    if rows.num_rows != group.rows or set(rows["label"].to_pylist()) != {group.label}:
        raise _other_rows(where, group)
    return rows


def encoded_images(rows: pa.Table) -> list[bytes]:
    """What should be PNG, of each row."""
    return [data or b"" for data in _of_images(rows, "bytes")]


def _of_images(rows: pa.Table, field: str) -> list[Any]:
    """By no function of pyarrow's that imports pandas where that is installed: 40 MB, and half a second."""
    return [value for chunk in rows["image"].chunks for value in chunk.field(field).to_pylist()]


def release_memory(group: RowGroup) -> None:
    """Give back what Arrow took for a large row group and freed; of a single image that may be 50 MB in each form."""
    if group.span.bytes > _LARGE_BYTES:
        pa.default_memory_pool().release_unused()


def _other_rows(where: str, group: RowGroup) -> FailedError:
    return FailedError(f"{where}: row group {group.index} is not {group.rows} images of class {group.label}")


def _has_columns(rows: pa.Table, group: RowGroup) -> bool:
    names, types = rows.schema.names, rows.schema.types
    return (
        names[:2] == ["image", "label"]
        and types[:2] == [IMAGE_TYPE, pa.int64()]
        and len(set(names)) == len(names)
        and set(types[2:]) <= PROVENANCE_TYPES.keys()
        and rows["image"].null_count == 0
        and (group.confidence is None or dict(zip(names, types, strict=True)).get(CONFIDENCE) == pa.float64())
    )


def _fetch_span(part: Part, key: str, span: Span, path: Path, tally: Tally | None) -> None:
    """Write a span of an object at its place in the file `path`, unless it is there."""
    with open(path, "r+b", opener=_made) as file:  # which writes all or fails, where os.pwrite may write a part
        if not _is_there(file, span):
            file.seek(span.offset)
            for chunk in span_chunks(part.version.store, key, span):
                file.write(chunk)
        if tally:
            tally.add(span.bytes)


def _made(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _is_there(file: BinaryIO, span: Span) -> bool:
    if os.fstat(file.fileno()).st_size < span.offset + span.bytes:
        return False
    file.seek(span.offset)
    digest, left = hashlib.sha256(), span.bytes
    while chunk := file.read(min(1 << 20, left)):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest() == span.sha256
