"""What row groups of a Parquet file unpack to, by the headers of their pages: the footer may promise anything.

Of https://parquet.apache.org/docs/file-format/data-pages: a column chunk is pages one after another, each behind a
header in Thrift's compact protocol, a dictionary's first.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SLACK = 16 << 20  # bytes: names and numbers of many rows pack well
_WIDTHS = {"BYTE_ARRAY": 0, "INT64": 8, "DOUBLE": 8}  # bytes of a value beside those that its length says
_HEADER = 1 << 15  # bytes: statistics in it have the least and the greatest value, twice, each of 4096 at most
_DICTIONARY = 2  # a type of page
_DATA = {0: (5, 2), 3: (8, 4)}  # the types of others: the field that describes one, and in that the encoding
_BOOLEANS, _INTEGERS, _BINARY, _STRUCT = (1, 2), (4, 5, 6), 8, 12  # kinds of Thrift fields
_ENCODINGS = {0, 2, 8}  # plain and of a dictionary; with others a value may be as long as all before it together


def check_unpacked(
    source: io.RawIOBase | Path,
    metadata: pq.FileMetaData,
    groups: Iterable[int],
    size: int,
    columns: Collection[str] | None = None,
) -> None:
    """Raise ArrowInvalid where row groups, or some `columns` of them, unpack from `size` bytes to much more.

    PNG is compressed already. So do groups that have other pages than the footer says, or values of other types than
    those of an ImageSet.
    """
    most, unpacked = 4 * size + _SLACK, 0
    paths = [f"{metadata.schema.column(index).path}." for index in range(metadata.num_columns)]
    wanted = [
        index
        for index, path in enumerate(paths)
        if columns is None or any(path.startswith(f"{name}.") for name in columns)
    ]
    with source.open("rb", buffering=0) if isinstance(source, Path) else nullcontext(source) as file:
        for number in groups:
            group, spans = metadata.row_group(number), _spans(metadata, number, columns, most)
            if len(spans) != len(wanted) or group.num_columns != len(paths):
                raise pa.ArrowInvalid(f"row group {number} has {group.num_columns} columns; needed {len(paths)}")
            for span, chunk in zip(spans, map(group.column, wanted), strict=True):
                for more in _unpacked(file, span, chunk, group.num_rows):
                    unpacked += more
                    if unpacked > most:
                        raise pa.ArrowInvalid(f"row group {number} unpacks from {size:,} bytes to {unpacked:,}")


class _Zeros(io.RawIOBase):
    """A file of zeros that keeps which spans of it are read, none of more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self.spans, self._most, self._place = list[tuple[int, int]](), most, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: sys.maxsize}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._most:
            raise pa.ArrowInvalid(f"a column at {self._place} has {size} bytes")
        self.spans.append((self._place, size))
        return bytes(size)


def _spans(metadata: pq.FileMetaData, group: int, columns: Collection[str] | None, most: int) -> list[tuple[int, int]]:
    """Offset and bytes of each column chunk, as Arrow finds them in the footer.

    Some faults of a footer Arrow finds when it looks for a column. Reading raises an error then, and the `column` of
    pyarrow's metadata aborts the process. So Arrow is made to read zeros first: it looks for all columns, and then
    there are no pages.
    """
    zeros = _Zeros(most)
    with pq.ParquetFile(zeros, metadata=metadata, pre_buffer=False) as parquet:
        try:
            parquet.read_row_group(group, columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            if "page header" not in str(error):
                raise
    return zeros.spans


def _unpacked(file: io.RawIOBase, span: tuple[int, int], chunk: pq.ColumnChunkMetaData, rows: int) -> Iterator[int]:
    """Bytes that are needed for each page, before it is unpacked, and for as many values as there are rows."""
    name = chunk.path_in_schema
    if chunk.physical_type not in _WIDTHS:
        raise pa.ArrowInvalid(f"{name} is {chunk.physical_type}; needed one of {', '.join(_WIDTHS)}")
    if chunk.num_values != rows or min(rows, *span) < 0:
        raise pa.ArrowInvalid(f"{name} has {chunk.num_values:,} values; needed {rows:,}, one a row")
    place, end, values = span[0], sum(span), 0
    yield rows * _WIDTHS[chunk.physical_type]
    while place < end:
        file.seek(place)
        try:
            page, header = _struct(file.read(_HEADER) or b"", 0)
            kind, unpacked, packed = page[1], page[2], page[3]
            about = page[_DATA[kind][0]] if kind != _DICTIONARY else {}
            held, encoding = (about[1], about[_DATA[kind][1]]) if about else (0, 0)
            place += header
            fits = min(unpacked, packed, held, end - place - packed) >= 0 and encoding in _ENCODINGS
        except (LookupError, TypeError, ValueError):
            raise pa.ArrowInvalid(f"{name} has something else than pages") from None
        if not fits:
            raise pa.ArrowInvalid(f"{name} has a page of {packed:,} bytes and {held:,} values in encoding {encoding}")
        yield max(unpacked, packed)
        if kind == _DICTIONARY and chunk.physical_type == "BYTE_ARRAY":
            file.seek(place)
            yield rows * _longest(file.read(packed) or b"", unpacked, chunk.compression)
        place, values = place + packed, values + held
    if values != rows:
        raise pa.ArrowInvalid(f"{name} has {values:,} values in its pages; needed {rows:,}, one a row")


def _longest(data: bytes, unpacked: int, compression: str) -> int:
    """The bytes of the longest value of a dictionary, in which each is behind its length."""
    if compression != "UNCOMPRESSED":
        data = pa.decompress(data, unpacked, compression.lower(), asbytes=True)
    place = longest = 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        longest = max(longest, length)
        place += 4 + length
    return longest


def _struct(data: bytes, place: int, depth: int = 2) -> tuple[dict[int, Any], int]:
    """The fields, by number, of the Thrift struct at a place of `data`, and where it ends.

    Raises IndexError or ValueError where none is, or one that page headers do not have, which Arrow may read otherwise.
    """
    fields, field = dict[int, Any](), 0
    while head := data[place]:
        step, kind, place = head >> 4, head & 15, place + 1
        field += step
        if not step or field > 15:
            raise ValueError(f"field {field}")
        if kind in _INTEGERS:
            number, place = _varint(data, place)
            fields[field] = number >> 1 ^ -(number & 1)
        elif kind == _BINARY:
            length, place = _varint(data, place)
            place += length
        elif kind == _STRUCT and depth:
            fields[field], place = _struct(data, place, depth - 1)
        elif kind not in _BOOLEANS:
            raise ValueError(f"kind {kind}")
    return fields, place + 1


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[place]) > 127:
        number |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
    return number | byte << shift, place + 1
