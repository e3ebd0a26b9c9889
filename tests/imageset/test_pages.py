from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.imageset import ImageSet, Row
from pipeline.imageset.pages import check_unpacked

LONG = 15 << 20  # bytes: less than what any row group may have


def table(rows: int = 20, *, data: bytes = b"a PNG", path: str = "a.png", note: str = "none") -> pa.Table:
    image = pa.StructArray.from_arrays([pa.array([data] * rows), pa.array([path] * rows)], ["bytes", "path"])
    return pa.table({"image": image, "label": [1] * rows, "note": [note] * rows})


def written(table: pa.Table, **settings: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **settings)
    return file.getvalue()


def check(data: bytes, columns: list[str] | None = None) -> None:
    metadata = pq.read_metadata(pa.BufferReader(data))
    check_unpacked(io.BytesIO(data), metadata, range(metadata.num_row_groups), len(data), columns)


@pytest.mark.parametrize("column", ["data", "path", "note"])
def test_a_long_value_of_a_dictionary_in_each_row_is_refused(column: str) -> None:
    value: Any = b"x" * LONG if column == "data" else "x" * LONG
    data = written(table(**{column: value}), compression="zstd")
    assert len(data) < 2000
    assert pq.read_metadata(pa.BufferReader(data)).row_group(0).total_byte_size < LONG + 1000
    with pytest.raises(pa.ArrowInvalid, match=r"row group 0 unpacks from 1,\d\d\d bytes to 330,"):
        check(data)


def test_only_the_columns_that_are_read_count() -> None:
    data = written(table(path="x" * LONG), compression="zstd")
    check(data, ["image.bytes", "label"])
    for columns in (["image.path"], ["image"]):
        with pytest.raises(pa.ArrowInvalid, match="unpacks from"):
            check(data, columns)


def test_values_that_begin_as_those_before_them_are_refused() -> None:
    """20 of 15 MB, of which only the first is stored."""
    encoding = {"image.path": "DELTA_BYTE_ARRAY"}
    data = written(table(path="x" * LONG), compression="zstd", use_dictionary=False, column_encoding=encoding)
    assert len(data) < 2000
    with pytest.raises(pa.ArrowInvalid, match=r"image\.path has a page of .* in encoding 7"):
        check(data)


def varint(number: int, length: int) -> bytes:
    """An integer as Thrift writes it, in more bytes than it needs."""
    parts = [2 * number >> 7 * place & 127 for place in range(length)]
    return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])


def test_a_footer_that_says_less_than_the_pages_is_not_believed() -> None:
    honest = written(table(path="x" * (10 << 20)), compression="zstd", use_dictionary=False)
    group = pq.read_metadata(pa.BufferReader(honest)).row_group(0)
    lying = honest
    for size in (group.column(1).total_uncompressed_size, group.total_byte_size):
        assert varint(size, 5) in lying
        lying = lying.replace(varint(size, 5), varint(1, 5))
    assert len(lying) == len(honest) < 10_000
    assert pq.read_metadata(pa.BufferReader(lying)).row_group(0).total_byte_size == 1
    with pytest.raises(pa.ArrowInvalid, match=r"row group 0 unpacks from .* to 209,"):
        check(lying)


@pytest.mark.parametrize(
    ("honest", "lying", "sentence"),
    [
        # Labels are always there, says the schema, and then the column says how many are not.
        (b"\x25\x02\x18\x05label", b"\x25\x00\x18\x05label", "Definition level histogram size mismatch"),
        (b"\x19\x18\x04note\x15\x0c", b"\x19\x18\x04note\x15\x7e", "Unsupported compression codec"),
    ],
)
def test_a_footer_at_which_pyarrow_aborts_is_refused(honest: bytes, lying: bytes, sentence: str) -> None:
    data = written(table(), compression="zstd")
    assert data.count(honest) == 1
    with pytest.raises(OSError, match=sentence):
        check(data.replace(honest, lying))


def test_lists_are_refused() -> None:
    """A million numbers in one row."""
    data = written(pa.table({"label": [[7] * 1_000_000]}))
    assert len(data) < 2000
    with pytest.raises(pa.ArrowInvalid, match=r"label\.list\.element has 1,000,000 values; needed 1, one a row"):
        check(data)


def test_other_types_than_those_of_an_imageset_are_refused() -> None:
    with pytest.raises(pa.ArrowInvalid, match="label is INT32; needed one of BYTE_ARRAY, INT64, DOUBLE"):
        check(written(pa.table({"label": pa.array([1], pa.int32())})))


@pytest.mark.parametrize("place", range(4, 40))
def test_a_page_header_of_junk_is_refused_or_read(place: int) -> None:
    data = bytearray(written(table()))
    for byte in range(256):
        data[place] = byte
        with suppress(pa.ArrowException, OSError):  # which is what codecs raise
            check(bytes(data))


def test_what_is_written_here_is_never_refused(
    write: Callable[..., ImageSet], rows: Callable[..., Iterator[Row]]
) -> None:
    images = write(rows(600), shard_images=10_000)
    for shard in images.shards:
        path = images.root / shard.path
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            columns = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
            assert {column.has_dictionary_page for column in columns} == {True, False}
            check_unpacked(path, metadata, [group], sum(column.total_compressed_size for column in columns))


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_what_others_write_is_read(compression: str, version: str, dictionary: bool) -> None:
    """Pages of many sizes, dictionaries given up midway, statistics as long as they may be."""
    notes = [f"{row:04}" * 1000 for row in range(1000)]
    images = table(1000, path="a" * 4000).set_column(2, "note", pa.array(notes))
    settings = {"compression": compression, "data_page_version": version, "use_dictionary": dictionary}
    check(written(images, row_group_size=300, data_page_size=10_000, dictionary_pagesize_limit=100_000, **settings))
