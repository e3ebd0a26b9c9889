"""Decoding shards, and the cache that does it once per ImageSet and machine."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import paths
from pipeline.errors import FailedError
from pipeline.imageset import png
from pipeline.imageset.files import atomic_file, forget_unused, mark_used
from pipeline.imageset.layout import batch_images
from pipeline.imageset.pages import check_unpacked


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Parquet says of a damaged or missing shard into a FailedError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise FailedError(f"{path}: is missing") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the latter of a column's name
        raise FailedError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())})") from None


def decode_shard(path: Path, shape: tuple[int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """The images of one shard in batches, uint8 (n, C, H, W), in row order. Raises FailedError that names the row."""
    row = 0
    # Without pre_buffer, or it would keep all that was read.
    with reading(path), pq.ParquetFile(path, pre_buffer=False) as parquet, png.threads() as pool:
        for encoded in _encoded(path, parquet, batch_images(shape)):
            pixels = np.empty((len(encoded), *shape), np.uint8)
            if len(encoded) > 1:
                results = pool.map(png.decode, encoded, repeat(shape), pixels)
            else:  # a large image, in this thread, for others would keep memory for more of them
                results = (png.decode(encoded.pop(), shape, out) for out in pixels)
            for _ in range(len(pixels)):
                try:
                    next(results)
                except ValueError as error:
                    raise FailedError(f"{path}: the image in row {row} {error}") from None
                row += 1
            yield pixels
            del pixels, results  # before the next ones are there


def _encoded(path: Path, parquet: pq.ParquetFile, batch: int) -> Iterator[list[bytes]]:
    """PNG bytes of at most `batch` images at a time. Group by group: pyarrow keeps what one call has read."""
    for group in range(parquet.num_row_groups):
        check_unpacked(path, parquet.metadata, [group], path.stat().st_size, ["image.bytes"])
        batches: Iterator[list[bytes]] = map(
            _bytes, parquet.iter_batches(batch, row_groups=[group], columns=["image.bytes"])
        )
        if parquet.metadata.row_group(group).num_rows <= batch:
            batches = iter(list(batches))  # to the end, until when the page of a large image is kept too
            pa.default_memory_pool().release_unused()
        yield from batches


def _bytes(rows: pa.RecordBatch) -> list[bytes]:
    return [data or b"" for data in rows.column("image").field("bytes").to_pylist()]  # fill_null would import pandas


def decoded(key: str, shape: tuple[int, ...], batches: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One read-only memory-mapped array of `shape` from the cache; `batches` are only asked for when it lacks `key`.

    The cache is the folder decoded/ in `paths.cache()`; what was not asked for in a month is removed from it.
    """
    path = paths.cache() / "decoded" / f"{key}.npy"
    found = _read(path, shape)
    if found is None:
        _write(path, shape, batches)
        forget_unused(path.parent, "*.npy")
        found = _read(path, shape)
    if found is None:
        raise FailedError(f"{path}: was damaged while it was read")
    mark_used(path)
    return found


def _write(path: Path, shape: tuple[int, ...], batches: Iterable[NDArray[np.uint8]]) -> None:
    """A .npy file and behind it a CRC-32 of its pixels. Not written through a map: a full disk kills who does."""
    checksum = 0
    with atomic_file(path) as file:
        file.write(_header(shape))
        for pixels in batches:
            file.write(pixels.data)
            checksum = zlib.crc32(pixels.data, checksum)
        file.write(struct.pack(">I", checksum))


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array; None when there is none, or a damaged one."""
    header = _header(shape)
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header or os.fstat(file.fileno()).st_size != len(header) + prod(shape) + 4:
                return None
            pixels = np.memmap(file, np.uint8, mode="r", offset=len(header), shape=shape)
            file.seek(-4, io.SEEK_END)
            return pixels if file.read() == struct.pack(">I", zlib.crc32(pixels.data)) else None
    except OSError:
        return None


def _header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()
