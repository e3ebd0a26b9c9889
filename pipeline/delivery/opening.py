"""A release in Python: as arrays, as a dataset for a training loop, or streamed from the store while it trains."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import paths
from pipeline.delivery.fetching import Span, span_chunks
from pipeline.delivery.manifest import MANIFEST
from pipeline.delivery.pulling import pull
from pipeline.delivery.rowgroups import RowGroup, ShardGroups
from pipeline.delivery.selecting import Part, encoded_images, open_part, read_group, release_memory
from pipeline.delivery.stores import Store, open_store
from pipeline.delivery.versions import find
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet, png
from pipeline.parallel import in_parallel

_MIXED = 16  # row groups, of a class each, whose images a stream shuffles together, and twice as many before
_MIXED_BYTES = 48 << 20  # of pixels at most: a reader is to stay below 300 MB, of which Python and Arrow take 90
_AHEAD_BYTES = 32 << 20  # of groups, as fetched and as decoded, before their images are mixed


class Dataset(Protocol):
    """What a torch DataLoader, or a loop over indices, takes images from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Release:
    """One version, pinned when it was opened: a channel that moves meanwhile changes nothing.

    An item is an image, uint8 (C, H, W), and its label: a torch tensor where torch is installed, else a numpy array.
    """

    url: str
    part: Part

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self.part.images.classes

    def pulled(self) -> ImageSet:
        """The whole set, fetched once into releases/ of `paths.cache()`."""
        manifest = self.part.version.manifest
        # Two stores may have this version, each with a manifest of its own: when it was published, by which commit.
        which = f"{manifest.version}-{hashlib.sha256(self.part.version.data).hexdigest()[:16]}"
        folder = paths.cache() / "releases" / manifest.name / which
        if not (folder / MANIFEST).is_file():
            with _alone(folder):  # another rank may be fetching it
                if not (folder / MANIFEST).is_file():
                    pull(self.url, folder, yanked=True)  # it was insisted on, or is not yanked
        return ImageSet.open(folder)

    def arrays(self, split: str = "train") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images, uint8 (N, C, H, W), memory-mapped and read-only, and labels, int64 (N,)."""
        return self.pulled().arrays(split)

    def dataset(self, split: str = "train") -> Dataset:
        """Items by index, from this machine's cache; a torch Dataset where torch is installed."""
        images, labels = self.arrays(split)
        if _has_torch():
            from pipeline.delivery.tensors import TensorDataset

            return TensorDataset(images, labels)
        return Arrays(images, labels)

    def stream(self, split: str = "train", *, seed: int | None = None) -> Any:
        """Items as they come from the store, nothing kept; a torch IterableDataset where torch is installed.

        Each goes to one worker of one rank. `seed` shuffles, another way after `set_epoch`; None is the set's order.
        """
        self.part.images.shards_of(split)
        groups = [(shard, group) for shard in self.part.shards if shard.shard.split == split for group in shard.groups]
        stream = Stream(self.url, groups, self.part.images.shape, seed)
        if _has_torch():
            from pipeline.delivery.tensors import TensorStream

            return TensorStream(stream)
        return stream


class Arrays:
    """Images and labels in memory, or memory-mapped, as items."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return np.array(self.images[index]), int(self.labels[index])


class Stream:
    """The images of some row groups from the store, each checked against its sha256; a process opens the store anew."""

    def __init__(
        self, url: str, groups: list[tuple[ShardGroups, RowGroup]], shape: tuple[int, int, int], seed: int | None
    ) -> None:
        self.base, _, last = url.rpartition("/")
        self.folder = last.replace("@", "/v=")
        self.groups, self.shape, self.seed, self.epoch = groups, shape, seed, 0

    def __len__(self) -> int:
        return sum(group.rows for _, group in self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle another way from the next iteration on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], int]]:
        return self.consume(0, 1)

    def consume(self, consumer: int, consumers: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """What consumer number `consumer` of so many gets: together they get every image once."""
        mine = [self.groups[number] for number in self._shuffled(0, len(self.groups))[consumer::consumers]]
        store, footers = open_store(self.base), _Footers()
        stopped = threading.Event()
        image_bytes = prod(self.shape)

        def fetch(place: tuple[ShardGroups, RowGroup]) -> list[NDArray[np.uint8]]:
            return self._decode(store, footers, *place)

        def size(place: tuple[ShardGroups, RowGroup]) -> int:
            return max(_AHEAD_BYTES // (2 * _MIXED), place[1].span.bytes + place[1].rows * image_bytes)

        fetched = in_parallel(fetch, mine, stopped, ahead=_AHEAD_BYTES, size=size)
        room = 0  # images that wait together for their turn; none where the order is the set's
        if self.seed is not None:
            room = min(_MIXED * max(group.rows for _, group in self.groups), _MIXED_BYTES // image_bytes)
        pool: list[tuple[NDArray[np.uint8], int]] = []
        for turn, (_, group) in enumerate(mine):
            while pool and len(pool) + group.rows > room:  # before the group is asked for, which may be a large one
                yield pool.pop()
            pool += ((image, group.label) for image in next(fetched))
            order = self._shuffled(1 + consumer + consumers * turn, len(pool))
            pool = [pool[place] for place in order[::-1].tolist()]  # the last one is the next
        while pool:
            yield pool.pop()

    def _shuffled(self, what: int, count: int) -> NDArray[np.int64]:
        if self.seed is None:
            return np.arange(count)
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, what, self.epoch])).permutation(count)

    def _decode(self, store: Store, footers: _Footers, shard: ShardGroups, group: RowGroup) -> list[NDArray[np.uint8]]:
        key = f"{self.folder}/{shard.shard.path}"
        where = f"{store.url}/{key}"
        spans = {shard.footer: footers.read(store, key, shard.footer)}
        spans[group.span] = b"".join(span_chunks(store, key, group.span))
        rows = read_group(_Sparse(spans), where, group)
        spans.clear()
        encoded = encoded_images(rows)
        del rows
        release_memory(group)
        images = list[NDArray[np.uint8]]()
        while encoded:
            try:
                images.append(png.decode(encoded.pop(0), self.shape))
            except ValueError as error:
                raise FailedError(f"{where}: image {len(images)} of row group {group.index} {error}") from None
        return images


class _Footers:
    """The footers of shards, each fetched once."""

    def __init__(self) -> None:
        self._lock, self._found = threading.Lock(), dict[str, bytes]()

    def read(self, store: Store, key: str, span: Span) -> bytes:
        with self._lock:
            if key not in self._found:
                self._found[key] = b"".join(span_chunks(store, key, span))
            return self._found[key]


class _Sparse(io.RawIOBase):
    """A file of which only some spans are there, and zeros elsewhere: Parquet also reads some of what it need not."""

    def __init__(self, spans: dict[Span, bytes]) -> None:
        self._spans, self._place = spans, 0
        self._size = max(span.offset + span.bytes for span in spans)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read_buffer(self, size: int) -> pa.Buffer:
        """As `read`, which Arrow prefers, without a copy of what is in one span."""
        stop = self._place + size
        for span, data in self._spans.items():
            if span.offset <= self._place and stop <= span.offset + span.bytes:
                found = memoryview(data)[self._place - span.offset : stop - span.offset]
                self._place = stop
                return pa.py_buffer(found)
        return pa.py_buffer(self.read(size))

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._place + size, self._size)
        found = bytearray(max(0, stop - self._place))
        for span, data in self._spans.items():
            first, last = max(self._place, span.offset), min(stop, span.offset + span.bytes)
            if first < last:
                found[first - self._place : last - self._place] = data[first - span.offset : last - span.offset]
        self._place += len(found)
        return bytes(found)


class Mixture:
    """Real and synthetic items in one dataset, in an order that mixes them."""

    def __init__(self, real: Dataset, synthetic: Dataset, places: NDArray[np.int64]) -> None:
        self.real, self.synthetic, self.places = real, synthetic, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        place = int(self.places[index])
        return self.real[place] if place < len(self.real) else self.synthetic[place - len(self.real)]


def open_release(url: str, *, yanked: bool = False, key: Path | None = None) -> Release:
    """Open URL/NAME, URL/NAME@VERSION or URL/NAME@CHANNEL; only what describes it is fetched.

    Raises UserError when there is none, or it was yanked and `yanked` does not insist; FailedError when the holder of
    the public `key`, where one is given, did not sign it.
    """
    version = find(url)
    if not yanked:
        version.check_not_yanked()
    if key:
        version.check_signature(key)
    with TemporaryDirectory(prefix="forgeline-") as folder:
        part = open_part(version, Path(folder))
    return Release(url=f"{version.store.url}/{version.name}", part=part)


def mix(real: Dataset, synthetic: Dataset, ratio: float, *, seed: int = 0) -> Mixture:
    """Items of which the share `ratio` is synthetic, to within one, drawn from all of both sides as `utility` does.

    As there, it is a share of what is shown: of the side that is larger for its share every item comes once, the other
    is repeated, each time anew in an order by `seed`. 58 real and 5,000 synthetic images at 0.7 are 7,143 items, so
    compare trainings by images seen, not by epochs. Raises ValueError for a ratio outside [0, 1), UserError for a side
    without items.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio}; needed the share of synthetic images, at least 0 and below 1")
    for side, items in (("real", real), ("synthetic", synthetic)):
        if not len(items) and (side == "real" or ratio > 0):
            raise UserError(f"a share of {ratio:g} needs {side} images; found none")
    counts = [len(real), round(len(real) * ratio / (1 - ratio))]
    if ratio > 0 and counts[1] < len(synthetic):
        counts = [round(len(synthetic) * (1 - ratio) / ratio), len(synthetic)]
    random = np.random.default_rng(seed)
    first, second = (
        _repeated(len(items), count, random) for items, count in zip((real, synthetic), counts, strict=True)
    )
    return Mixture(real, synthetic, random.permutation(np.concatenate([first, len(real) + second])))


def _repeated(items: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`count` of so many items: all of them in one order after another, the last one cut short."""
    orders = [random.permutation(items) for _ in range(-(-count // max(1, items)))]
    return np.concatenate([np.arange(0), *orders])[:count]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches into `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        with suppress(OSError):  # a network disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None
