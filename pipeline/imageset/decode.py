"""Decoding shards, and the cache that makes it once per ImageSet and machine."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import FailedError
from pipeline.imageset import png
from pipeline.imageset.files import atomic_file

_BATCH_BYTES = 1 << 25


def decode_shard(path: Path, shape: tuple[int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """The images of one shard as batches, uint8 (n, C, H, W), in row order. Raises FailedError that names the row."""
    done = 0
    rows = max(1, min(1024, _BATCH_BYTES // prod(shape)))
    with pq.ParquetFile(path) as parquet, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for batch in parquet.iter_batches(batch_size=rows, columns=["image.bytes"]):
            encoded: list[bytes] = batch.column("image").field("bytes").to_pylist()
            images = np.empty((len(encoded), *shape), np.uint8)

            def decode(index: int, encoded: list[bytes] = encoded, images: NDArray[np.uint8] = images) -> str | None:
                try:
                    images[index] = png.decode(encoded[index], shape)
                except ValueError as error:
                    return str(error)
                return None

            for index, problem in enumerate(pool.map(decode, range(len(encoded)))):
                if problem is not None:
                    raise FailedError(f"{path}: the image in row {done + index} {problem}")
            done += len(encoded)
            yield images


def decoded(key: str, shape: tuple[int, ...], images: Callable[[], Iterable[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """The batches of `images()` as one read-only memory-mapped array of `shape`, from the cache where it has `key`."""
    path = _cache() / f"{key}.npy"
    found = _read(path, shape)
    if found is None:
        try:
            _write(path, shape, images())
        except PermissionError as error:
            raise FailedError(
                f"{error.filename}: cannot be written; needed a folder that can as FORGELINE_CACHE"
            ) from None
        found = _read(path, shape)
    if found is None:
        raise FailedError(f"{path}: changed while it was read")
    return found


def _cache() -> Path:
    return Path(os.environ.get("FORGELINE_CACHE") or Path.home() / ".cache" / "forgeline") / "decoded"


def _header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _write(path: Path, shape: tuple[int, ...], images: Iterable[NDArray[np.uint8]]) -> None:
    """A .npy file, and behind it a CRC-32 of the pixels. Written, not mapped: a full disk kills who writes to a map."""
    checksum = 0
    with atomic_file(path) as file:
        file.write(_header(shape))
        for batch in images:
            file.write(batch.data)
            checksum = zlib.crc32(batch.data, checksum)
        file.write(struct.pack(">I", checksum))


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array, or None when there is none or a damaged one."""
    header = _header(shape)
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header or path.stat().st_size != len(header) + prod(shape) + 4:
                return None
            images = np.memmap(file, np.uint8, mode="r", offset=len(header), shape=shape)
            file.seek(-4, io.SEEK_END)
            return images if struct.pack(">I", zlib.crc32(images.data)) == file.read(4) else None
    except FileNotFoundError:
        return None
