"""rowgroups.json: where in its shards each row group of a release is, so that a part can be fetched and checked alone.

A row group holds one class. The sha256 of a whole file says nothing of a part of it, so each group and each footer has
its own; the file itself is one of those that the manifest vouches for.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.delivery.fetching import Span
from pipeline.delivery.manifest import SCHEMA_VERSION, Manifest, check_types, parse_json
from pipeline.errors import FailedError
from pipeline.imageset import ImageSet, Shard
from pipeline.imageset.decode import reading
from pipeline.imageset.layout import CONFIDENCE, ROW_GROUP_IMAGES

ROWGROUPS = "rowgroups.json"
_MAX_ROWS = 10 * ROW_GROUP_IMAGES  # a reader holds a group in memory
_MAX_PIXELS = 64_000_000  # bytes of the pixels of a group of several images, likewise
_SLACK = 1 << 20  # bytes of a group beside its pixels
_MAX_LINE = 4096  # bytes
_FOOTER, _FOOTER_OF_CLASS, _FOOTER_OF_GROUP = 1 << 16, 1 << 10, 1 << 12  # bytes at most; Arrow makes 200 of one of them
_CHUNK = 1 << 18  # bytes that are hashed twice while a core has them in its cache


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group of a shard; `confidence` is the largest in it, None where the set has no such column."""

    index: int
    span: Span
    label: int
    rows: int
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class ShardGroups:
    """The row groups of one shard, and its footer, in the order of their bytes: together they are the whole file."""

    shard: Shard
    groups: tuple[RowGroup, ...]
    footer: Span


def describe(shards: Iterable[str]) -> bytes:
    """The bytes of rowgroups.json, a row group a line, of what `describe_shard` says of each shard, in their order."""
    inner = ",\n".join(shards)
    return f'{{"schema_version": {SCHEMA_VERSION}, "shards": [\n{inner}\n]}}\n'.encode()


def describe_shard(path: Path) -> tuple[str, str]:
    """What rowgroups.json says of a shard, and the sha256 of the whole file, in one reading.

    Its footer is believed, for who publishes it holds the sha256 against imageset.json. Raises FailedError for none.
    """
    with reading(path):
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        columns = [[group.column(index) for index in range(group.num_columns)] for group in groups]
        named = [{column.path_in_schema: column for column in each} for each in columns]
    starts = [min(column.dictionary_page_offset or column.data_page_offset for column in each) for each in columns]
    end = starts[-1] + sum(column.total_compressed_size for column in columns[-1])
    bounds = [0, *starts[1:], end, path.stat().st_size]  # the first begins with the magic number
    whole, spans = hashlib.sha256(), list[dict[str, str | int]]()
    with path.open("rb") as file:
        for start, stop in pairwise(bounds):
            part = hashlib.sha256()
            while chunk := file.read(min(_CHUNK, stop - file.tell())):
                whole.update(chunk)
                part.update(chunk)
            spans.append({"offset": start, "bytes": file.tell() - start, "sha256": part.hexdigest()})
    lines = []
    for group, of, span in zip(groups, named, spans, strict=False):
        statistics = of[CONFIDENCE].statistics if CONFIDENCE in of else None
        most = statistics.max if statistics is not None and statistics.has_min_max else None
        confidence = most if isinstance(most, float) else None
        label = of["label"].statistics.min
        lines.append(json.dumps({**span, "label": label, "rows": group.num_rows, "confidence": confidence}))
    footer, inner = json.dumps(spans[-1]), ",\n".join(lines)
    return f'{{"path": {json.dumps(path.name)}, "footer": {footer}, "groups": [\n{inner}\n]}}', whole.hexdigest()


def parse(data: bytes, where: str, manifest: Manifest, images: ImageSet) -> tuple[ShardGroups, ...]:
    """What rowgroups.json in `data` says of the shards of `images`. Raises FailedError when it is not of them.

    Read line by line as `describe` writes it, for all of it at once as Python objects could take gigabytes.
    """
    lines = io.BytesIO(data)
    parse_json(lines.readline(_MAX_LINE) + b"]}", where, {"shards": list})
    sizes = {file.path: file.bytes for file in manifest.files}
    try:
        found = tuple(_parse(shard, lines, sizes.get(shard.path, -1), images) for shard in images.shards)
        if lines.read() != b"]}\n":
            raise ValueError("shards are others than imageset.json has")
    except ValueError as error:
        raise FailedError(f"{where}: {error}") from None
    return found


def _parse(shard: Shard, lines: io.BytesIO, size: int, images: ImageSet) -> ShardGroups:
    """What the next lines say of a shard of so many bytes."""
    content = _object(lines.readline(_MAX_LINE) + b"]}", shard.path)
    check_types(content, {"path": str, "footer": dict, "groups": list}, "shards.")
    if content["path"] != shard.path:
        raise ValueError("shards are others than imageset.json has")
    pixels = prod(images.shape)
    most = max(1, min(_MAX_ROWS, _MAX_PIXELS // pixels))

    def read() -> Iterator[RowGroup]:
        index = 0
        while not (line := lines.readline(_MAX_LINE)).startswith(b"]}"):
            name = f"{shard.path}: groups[{index}]"
            group = _object(line.rstrip(b",\n"), shard.path)
            check_types(group, {**_SPAN, "label": int, "rows": int}, f"{name}.")
            confidence = group.get("confidence")
            if confidence is not None and (type(confidence) is not float or not math.isfinite(confidence)):
                raise ValueError(f"{name}.confidence is not a number")
            if not 0 <= group["label"] < len(images.classes) or not 1 <= group["rows"] <= most:
                raise ValueError(f"{name} has no class of the set, or not 1 to {most} rows")
            if group["bytes"] > 1.1 * group["rows"] * pixels + _SLACK:  # PNG of noise is hardly larger than its pixels
                raise ValueError(f"{name} has {group['bytes']:,} bytes for {group['rows']} images")
            span = Span(**{key: group[key] for key in _SPAN})
            yield RowGroup(index=index, span=span, label=group["label"], rows=group["rows"], confidence=confidence)
            index += 1

    groups, footer = tuple(read()), content["footer"]
    check_types(footer, _SPAN, f"{shard.path}: footer.")
    if footer["bytes"] > (room := _FOOTER + _FOOTER_OF_CLASS * len(images.classes) + _FOOTER_OF_GROUP * len(groups)):
        raise ValueError(f"{shard.path}: footer has {footer['bytes']:,} bytes; needed at most {room:,} for its groups")
    last = Span(**{key: footer[key] for key in _SPAN})
    ends = [0]
    for span in (*(group.span for group in groups), last):
        if span.offset != ends[-1] or span.bytes < 1:
            raise ValueError(f"{shard.path}: groups do not follow each other")
        ends.append(span.offset + span.bytes)
    if ends[-1] != size or sum(group.rows for group in groups) != shard.rows:
        raise ValueError(f"{shard.path}: groups are not all of its {size:,} bytes and {shard.rows:,} rows")
    return ShardGroups(shard=shard, groups=groups, footer=last)


def _object(line: bytes, path: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: is not JSON as Forgeline writes it") from None


_SPAN = {"offset": int, "bytes": int, "sha256": str}
