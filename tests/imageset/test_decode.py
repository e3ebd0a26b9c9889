from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import FailedError
from pipeline.imageset import ImageSet, Row

Rows = Callable[..., Iterator[Row]]
Write = Callable[..., ImageSet]


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[ImageSet], Path]:
    return lambda imageset: tmp_path / "cache" / "decoded" / f"{imageset.fingerprint}-train.npy"


def pixels(rows: Iterator[Row], labels: np.ndarray) -> np.ndarray:
    """The images of `rows` in the order of a set whose labels are `labels`: within a class as they came."""
    by_class: dict[int, list[np.ndarray]] = {}
    for row in rows:
        by_class.setdefault(row.label, []).append(row.image)
    return np.stack([by_class[label].pop(0) for label in labels.tolist()])


def test_images_are_mapped_and_read_only(write: Write) -> None:
    images, labels = write().arrays("train")
    assert isinstance(images, np.memmap)
    assert (images.dtype, images.shape) == (np.uint8, (40, 3, 8, 8))
    assert (labels.dtype, labels.shape) == (np.int64, (40,))
    assert not images.flags.writeable


def test_images_are_in_the_order_of_the_labels(write: Write, rows: Rows) -> None:
    images, labels = write().arrays("train")
    train = (row for row in rows() if row.split == "train")
    assert np.array_equal(images, pixels(train, labels))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shard_of_many_batches(write: Write, rows: Rows, channels: int) -> None:
    images, labels = write(rows(1800, channels=channels, size=5), shard_images=10_000).arrays("train")
    train = (row for row in rows(1800, channels=channels, size=5) if row.split == "train")
    assert np.array_equal(images, pixels(train, labels))


def test_the_second_time_no_picture_is_decoded(write: Write) -> None:
    imageset = write()
    before, _ = imageset.arrays("train")
    for path in imageset.root.glob("*.parquet"):
        path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"gone"))
    after, _ = ImageSet.open(imageset.root).arrays("train")
    assert np.array_equal(before, after)


def test_the_cache_is_a_plain_npy_file(write: Write, cached: Callable[[ImageSet], Path]) -> None:
    imageset = write()
    images, _ = imageset.arrays("train")
    assert np.array_equal(np.load(cached(imageset)), images)


def test_an_equal_set_elsewhere_shares_the_cache(write: Write, rows: Rows, cached: Callable[[ImageSet], Path]) -> None:
    one, other = write(), write(rows(), "other", shard_images=1000)
    one.arrays("train")
    written = cached(one).stat().st_ino
    other.arrays("train")
    assert cached(other).stat().st_ino == written


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:50],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: data[:20] + b"!" + data[21:],
        lambda data: bytes(len(data)),
    ],
)
def test_a_damaged_cache_is_built_again(
    write: Write, cached: Callable[[ImageSet], Path], damage: Callable[[bytes], bytes]
) -> None:
    imageset = write()
    images, _ = imageset.arrays("train")
    whole = images.copy()
    data = cached(imageset).read_bytes()
    cached(imageset).unlink()  # the map above keeps the sound file
    cached(imageset).write_bytes(damage(data))
    assert np.array_equal(imageset.arrays("train")[0], whole)
    assert cached(imageset).read_bytes() == data


def test_a_damaged_shard_is_not_cached(write: Write, cached: Callable[[ImageSet], Path]) -> None:
    imageset = write()
    path = imageset.root / "train-00001-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FailedError, match=r"train-00001-of-00002\.parquet: has sha256"):
        imageset.arrays("train")
    assert not any(cached(imageset).parent.iterdir())


def test_a_cache_that_cannot_be_written_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is needed")
    with pytest.raises(FailedError, match=r"cache/decoded/\w{64}-train\.npy: cannot be written \(Not a directory\)"):
        write().arrays("train")


def test_without_a_setting_the_cache_is_in_the_home_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORGELINE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    write().arrays("train")
    assert len(list((tmp_path / ".cache" / "forgeline" / "decoded").iterdir())) == 1


def test_what_no_process_read_in_a_month_makes_room(
    write: Write, rows: Rows, cached: Callable[[ImageSet], Path]
) -> None:
    sets = [write(rows(20 + number), str(number)) for number in range(4)]
    for each in sets[:3]:
        each.arrays("train")
    day = 24 * 3600
    for each, days in zip(sets, (31, 31, 29), strict=False):
        os.utime(cached(each), (time.time() - days * day,) * 2)
    sets[1].arrays("train")
    sets[3].arrays("train")
    assert [cached(each).exists() for each in sets] == [False, True, True, True]


READER = """
import sys
from pathlib import Path
from pipeline.imageset import ImageSet
imageset = ImageSet.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
images, labels = imageset.arrays("train")
print(int(images.sum(dtype="int64")), len(labels))
"""


def test_processes_that_build_it_at_once_all_read_it_whole(write: Write, rows: Rows, tmp_path: Path) -> None:
    imageset = write(rows(3000, size=16))
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, imageset.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        found = []
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("go\n")
            reader.stdin.flush()
        found = [reader.communicate()[0] for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    expected = sum(int(row.image.sum(dtype=np.int64)) for row in rows(3000, size=16) if row.split == "train")
    assert found == [f"{expected} 2000\n"] * 3
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 1
