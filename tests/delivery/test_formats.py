from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.delivery import open_store, publish, pull
from pipeline.delivery.formats import class_folders
from pipeline.imageset import ImageSet


@pytest.fixture
def release(tmp_path: Path, images, description) -> str:
    publish(open_store(str(tmp_path / "releases")), "digits", images.root, description=description, documents={})
    return str(tmp_path / "releases" / "digits")


def pixels(images: ImageSet, label: int) -> np.ndarray:
    found, labels = images.arrays("train")
    return found[labels == label][:, 0]


def test_an_image_folder_is_read_by_torchvision(release: str, images: ImageSet, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    found = pull(release, tmp_path / "dest", layout="imagefolder")
    read = ImageFolder(str(found / "train"))
    assert sorted(read.classes) == sorted(images.classes)
    for label, name in enumerate(images.classes):
        shown = [np.asarray(picture.convert("L")) for picture, target in read if read.classes[target] == name]
        np.testing.assert_array_equal(shown, pixels(images, label))
    assert json.loads((found / "classes.json").read_text()) == list(images.classes)
    assert "dataset_info" in (found / "RELEASE.md").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of datasets' own making
def test_tars_are_read_by_datasets(release: str, images: ImageSet, tmp_path: Path) -> None:
    import datasets

    found = pull(release, tmp_path / "dest", layout="webdataset")
    (tar,) = found.glob("*.tar")
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": str(tar)}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["cls"] == images.table("train")["label"].to_pylist()
    np.testing.assert_array_equal([np.asarray(each) for each in loaded["png"]], images.arrays("train")[0][:, 0])
    assert loaded[3]["json"]["note"] == "drawn"


def test_tars_are_the_same_bytes_every_time(release: str, tmp_path: Path) -> None:
    first, second = (pull(release, tmp_path / name, layout="webdataset") / "train-000000.tar" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert tar.getnames()[:3] == ["00000000.png", "00000000.cls", "00000000.json"]


@pytest.mark.parametrize(
    "classes", [("ok", "../up"), ("ok", "/etc"), ("ok", "con"), ("One", "one"), ("class-00000", "."), ("ok", "a b")]
)
def test_a_class_cannot_name_a_folder_elsewhere(
    tmp_path: Path, make_images, description, classes: tuple[str, ...]
) -> None:
    images = make_images(tmp_path / "odd", classes=classes, count=len(classes))
    publish(open_store(str(tmp_path / "r")), "odd", images.root, description=description, documents={})
    found = pull(f"{tmp_path}/r/odd", tmp_path / "dest", layout="imagefolder")
    assert sorted(path.name for path in (found / "train").iterdir()) == ["class-00000", "class-00001"]
    for label, folder in enumerate(class_folders(classes)):
        (path,) = (found / "train" / folder).iterdir()
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels(images, label)[0])
