"""Three digits as the channels of one picture: nothing is lost, and all is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.sources.source import RawImage
from pipeline.sources.stacked_mnist import CLASSES, Config, Source


def read(root: Path) -> list[RawImage]:
    source = Source(Config(root=str(root)))
    with source.read(source.inventory()) as reading:
        found = list(reading.images)
    assert reading.classes == CLASSES
    assert len(found) == reading.count
    return found


def test_each_channel_holds_each_digit_once_and_the_class_spells_them(
    tmp_path: Path, write_idx: Callable[..., None]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    labels = [number % 10 for number in range(50)]
    write_idx(tmp_path / "MNIST" / "raw", images, labels=labels, train=30)
    digit_of = {image.tobytes(): str(label) for image, label in zip(images, labels, strict=True)}
    found = read(tmp_path)
    assert [raw.split for raw in found] == ["train"] * 30 + ["test"] * 20
    for part, digits in ((found[:30], images[:30]), (found[30:], images[30:])):
        channels = np.stack([np.asarray(raw.data) for raw in part]).transpose(3, 0, 1, 2)
        for channel in channels:
            assert sorted(image.tobytes() for image in channel) == sorted(image.tobytes() for image in digits)
        spelled = zip(*([digit_of[image.tobytes()] for image in channel] for channel in channels), strict=True)
        assert ["".join(name) for name in spelled] == [raw.label for raw in part]
    assert len({raw.label for raw in found}) > 40  # three shuffles, not one


def test_the_same_each_time(tmp_path: Path, write_idx: Callable[..., None]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    write_idx(tmp_path / "MNIST" / "raw", images, labels=[3] * 50, train=30)
    first, again = (np.stack([np.asarray(raw.data) for raw in read(tmp_path)]) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_all_classes_are_in_both_parts(originals: Path) -> None:
    found = read(originals)
    train, test = (Counter(raw.label for raw in found if raw.split == split) for split in ("train", "test"))
    assert (train.total(), test.total()) == (60_000, 10_000)
    assert set(train) == set(test) == set(CLASSES)
