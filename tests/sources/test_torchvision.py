"""Through torchvision's own classes, from files in the genuine formats.

The files here are small ones, written by these tests. torchvision checks those of SVHN, CIFAR and STL-10 against the
md5 of the originals: these constants, and nothing else, are replaced by the small files' own.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision
from numpy.typing import NDArray

from pipeline.errors import FailedError, UserError
from pipeline.sources.source import RawImage
from pipeline.sources.torchvision import Config, Source

WriteIdx = Callable[..., None]
DATASETS = ["mnist", "fashion_mnist", "kmnist", "svhn", "cifar10", "cifar100", "stl10"]


def random(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def read(dataset: str, root: Path) -> tuple[tuple[str, ...], list[RawImage]]:
    source = Source(Config(dataset=dataset, root=str(root), download=False))
    with source.read(source.inventory()) as reading:
        found = list(reading.images)
    assert len(found) == reading.count
    return reading.classes, found


def check(found: list[RawImage], images: NDArray[np.uint8], labels: list[str], train: int) -> None:
    """`images` (N, H, W) or (N, H, W, 3) are found in order with `labels`; the first `train` of them to train on."""
    np.testing.assert_array_equal(np.stack([np.asarray(raw.data) for raw in found]), images)
    assert [raw.label for raw in found] == labels
    assert [raw.split for raw in found] == ["train"] * train + ["test"] * (len(found) - train)
    assert found[0].path == "train/000000"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("dataset", "folder", "first"),
    [("mnist", "MNIST", "0"), ("fashion_mnist", "FashionMNIST", "T-shirt/top"), ("kmnist", "KMNIST", "o")],
)
def test_the_mnist_family(tmp_path: Path, write_idx: WriteIdx, dataset: str, folder: str, first: str) -> None:
    images = random(5, 28, 28)
    write_idx(tmp_path / folder / "raw", images, labels=[0, 1, 2, 0, 1], train=3)
    classes, found = read(dataset, tmp_path)
    assert len(classes) == 10
    assert classes[0] == first
    check(found, images, [classes[label] for label in (0, 1, 2, 0, 1)], train=3)


def test_svhn_counts_its_zero_as_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random(5, 32, 32, 3)
    sums = {}
    for name, part, labels in (("train", slice(0, 3), [1, 10, 9]), ("test", slice(3, 5), [10, 2])):
        path = tmp_path / f"{name}_32x32.mat"
        stored = {"X": images[part].transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]}
        scipy.io.savemat(path, stored)
        sums[name] = ["", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", sums)
    classes, found = read("svhn", tmp_path)
    assert classes == tuple("0123456789")
    check(found, images, ["1", "0", "9", "0", "2"], train=3)


@pytest.mark.parametrize(
    ("dataset", "folder", "parts", "labels", "meta"),
    [
        (
            "cifar10",
            "cifar-10-batches-py",
            {"data_batch_1": slice(0, 2), "data_batch_2": slice(2, 3), "test_batch": slice(3, 5)},
            "labels",
            ("batches.meta", "label_names"),
        ),
        (
            "cifar100",
            "cifar-100-python",
            {"train": slice(0, 3), "test": slice(3, 5)},
            "fine_labels",
            ("meta", "fine_label_names"),
        ),
    ],
)
def test_the_cifar_family(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    folder: str,
    parts: dict[str, slice],
    labels: str,
    meta: tuple[str, str],
) -> None:
    root = tmp_path / folder
    root.mkdir()
    images = random(5, 32, 32, 3)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, md5(root / name)]

    sums = [
        write(name, {"data": images[part].transpose(0, 3, 1, 2).reshape(-1, 3072), labels: [2, 0, 1, 1, 2][part]})
        for name, part in parts.items()
    ]
    loader = getattr(torchvision.datasets, dataset.upper())
    monkeypatch.setattr(loader, "train_list", sums[:-1])
    monkeypatch.setattr(loader, "test_list", sums[-1:])
    name, key = meta
    described = write(name, {key: ["cat", "dog", "frog"]})
    monkeypatch.setattr(loader, "meta", {"filename": name, "key": key, "md5": described[1]})
    classes, found = read(dataset, tmp_path)
    assert classes == ("cat", "dog", "frog")
    check(found, images, ["frog", "cat", "dog", "dog", "frog"], train=3)


def test_stl10_is_its_labelled_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "stl10_binary"
    root.mkdir()
    images = random(5, 96, 96, 3)
    (root / "class_names.txt").write_text("airplane\nbird\n")
    for name, part, labels in (("train", slice(0, 3), [1, 2, 1]), ("test", slice(3, 5), [2, 1])):
        (root / f"{name}_X.bin").write_bytes(images[part].transpose(0, 3, 2, 1).tobytes())  # column by column
        (root / f"{name}_y.bin").write_bytes(bytes(labels))
    for name in ("train", "test"):
        sums = [[f"{name}_{part}.bin", md5(root / f"{name}_{part}.bin")] for part in "Xy"]
        monkeypatch.setattr(torchvision.datasets.STL10, f"{name}_list", sums)
    classes, found = read("stl10", tmp_path)
    assert classes == ("airplane", "bird")
    check(found, images, ["airplane", "bird", "airplane", "bird", "airplane"], train=3)


@pytest.mark.parametrize("dataset", DATASETS)
def test_what_is_not_there_and_may_not_be_downloaded_is_said(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError) as error:
        read(dataset, tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: has no {dataset} that torchvision.datasets.")
    assert str(error.value).endswith("; needed its files unpacked there, or source.download: true")


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_download_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    monkeypatch.setattr("urllib.request._opener", None)  # made of these proxies at its first use, then kept for all
    for name in ("http_proxy", "https_proxy"):  # nobody listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    source = Source(Config(dataset=dataset, root=str(tmp_path)))
    with pytest.raises(FailedError) as error, source.read(source.inventory()):
        pass
    sentence = str(error.value)
    assert sentence.startswith(f"{tmp_path}: has no {dataset} and torchvision cannot download it (")
    assert sentence.endswith("; needed a network, or its files in that folder")
    assert "\n" not in sentence
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("download", [False, True])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, download: bool) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(struct.pack(">iiii", 2051, 9, 28, 28) + bytes(100))
    source = Source(Config(dataset="mnist", root=str(tmp_path), download=download))
    sentence = r": its mnist cannot be read \(.*\); needed the original files$"
    with pytest.raises(UserError, match=sentence), source.read(source.inventory()):
        pass


def test_the_original_mnist_is_checked_unpacked_and_read(originals: Path) -> None:
    source = Source(Config(dataset="mnist", root=str(originals)))
    with source.read(source.inventory()) as reading:
        found = list(reading.images)
    assert Counter(raw.split for raw in found) == {"train": 60_000, "test": 10_000}
    with gzip.open(originals / "MNIST/raw/train-images-idx3-ubyte.gz") as file:
        file.seek(16)
        first = np.frombuffer(file.read(784), np.uint8).reshape(28, 28)
    np.testing.assert_array_equal(np.asarray(found[0].data), first)
    counts = Counter(raw.label for raw in found if raw.split == "test")
    assert [counts[name] for name in reading.classes] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
