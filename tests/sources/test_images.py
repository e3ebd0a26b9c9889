from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import FailedError, UserError
from pipeline.sources import images
from pipeline.sources.images import Config, Source, arrange
from pipeline.sources.source import RawImage


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for index, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png", "dog/deep/2.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(index))
    return root


def read(source: Source) -> tuple[tuple[str, ...], list[RawImage]]:
    with source.read(source.inventory()) as reading:
        found = list(reading.images)
    assert len(found) == reading.count
    return reading.classes, sorted(found, key=lambda raw: raw.path)


def described(found: list[RawImage]) -> list[tuple[str, str | None, str | None, Any]]:
    return [(raw.path, raw.label, raw.split, raw.data) for raw in found]


EXPECTED = [
    ("cat/1.png", "cat", None, picture(0)),
    ("cat/2.png", "cat", None, picture(1)),
    ("dog/1.png", "dog", None, picture(2)),
    ("dog/deep/2.png", "dog", None, picture(3)),
]


def test_class_folders_are_classes(folder: Path) -> None:
    classes, found = read(Source(Config(url=str(folder))))
    assert classes == ("cat", "dog")
    assert described(found) == EXPECTED


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "xztar"])
def test_an_archive_is_read_as_the_folder_in_it(folder: Path, tmp_path: Path, kind: str) -> None:
    archive = shutil.make_archive(str(tmp_path / "set"), kind, folder)
    classes, found = read(Source(Config(url=archive)))
    assert classes == ("cat", "dog")
    assert described(found) == EXPECTED


@pytest.mark.parametrize("url", ["s3://raw/photos", "s3://raw/photos/", "s3://raw/sets/photos.zip"])
def test_s3_is_read_as_a_folder_of_this_machine(
    s3: Any, upload: Callable[[Path, str], None], folder: Path, tmp_path: Path, url: str
) -> None:
    upload(folder, "photos")
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", folder))
    s3.put_object(Bucket="raw", Key="sets/photos.zip", Body=archive.read_bytes())
    classes, found = read(Source(Config(url=url)))
    assert classes == ("cat", "dog")
    assert described(found) == EXPECTED


def test_nothing_is_unpacked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path)
    read(Source(Config(url=archive)))
    assert [path.name for path in tmp_path.rglob("*")] == ["set.zip"]


@pytest.mark.parametrize(
    ("paths", "spots"),
    [
        pytest.param({"1.png", "2.png"}, {"1.png": ("image", None), "2.png": ("image", None)}, id="flat"),
        pytest.param(
            {"train/cat/1.png", "test/cat/1.png", "validation/cat/1.png", "train/dog/1.png"},
            {
                "train/cat/1.png": ("cat", "train"),
                "test/cat/1.png": ("cat", "test"),
                "validation/cat/1.png": ("cat", "validation"),
                "train/dog/1.png": ("dog", "train"),
            },
            id="splits",
        ),
        pytest.param(
            {"train/1.png", "val/1.png"},
            {"train/1.png": ("image", "train"), "val/1.png": ("image", "validation")},
            id="flat splits",
        ),
        pytest.param(
            {"set-1.0/LICENSE", "set-1.0/data/train/cat/1.png", "set-1.0/data/test/cat/1.png", "README.md"},
            {
                "README.md": (None, None),
                "set-1.0/LICENSE": (None, None),
                "set-1.0/data/train/cat/1.png": ("cat", "train"),
                "set-1.0/data/test/cat/1.png": ("cat", "test"),
            },
            id="wrapped",
        ),
        pytest.param({"cat/1.png", "README.md"}, {"cat/1.png": ("cat", None), "README.md": (None, None)}, id="one"),
        pytest.param(
            {"train/1.png", "car/1.png"},
            {"train/1.png": ("train", None), "car/1.png": ("car", None)},
            id="a class named train",
        ),
        pytest.param(
            {"trainA/1.jpg", "trainB/1.jpg", "testA/2.jpg", "testB/2.jpg"},
            {
                "trainA/1.jpg": ("A", "train"),
                "trainB/1.jpg": ("B", "train"),
                "testA/2.jpg": ("A", "test"),
                "testB/2.jpg": ("B", "test"),
            },
            id="unpaired",
        ),
    ],
)
def test_folders_say_class_and_split(paths: set[str], spots: dict[str, Any]) -> None:
    assert arrange("photos", paths)[1] == spots


def test_classes_are_in_the_order_of_names_or_numbers() -> None:
    assert arrange("photos", ["b/1", "a/1", "B/1", "10/1"])[0] == ["10", "B", "a", "b"]
    assert arrange("photos", ["10/1", "9/1", "0/1"])[0] == ["0", "9", "10"]


def test_splits_beside_other_folders_are_refused() -> None:
    with pytest.raises(UserError, match=r"^photos: has the folders train and test beside extra; needed splits or"):
        arrange("photos", ["train/cat/1.png", "test/cat/1.png", "extra/cat/1.png"])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"\0\0")
    with pytest.raises(UserError, match=r": is empty; needed pictures, flat or in class folders$"):
        Source(Config(url=str(tmp_path))).inventory()


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "none.zip", "w").close()
    with pytest.raises(UserError, match=r"none\.zip: is empty; needed pictures"):
        read(Source(Config(url=str(tmp_path / "none.zip"))))


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "cat" / b"caf\xe9.png".decode(errors="surrogateescape")).write_bytes(picture(9))
    with pytest.raises(UserError, match=r"the name 'cat/caf\\udce9\.png' is not UTF-8; needed one that is"):
        Source(Config(url=str(folder))).inventory()


def test_hidden_files_are_not_there(folder: Path) -> None:
    before = Source(Config(url=str(folder))).inventory()
    for name in (".DS_Store", "cat/._1.png", "cat/Thumbs.db", ".git/config", "__MACOSX/cat/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0")
    assert Source(Config(url=str(folder))).inventory() == before


def test_text_that_is_not_named_as_a_picture_does_no_harm(folder: Path) -> None:
    for name in ("README.md", "SHA256SUMS", "cat/labels.json", "_SUCCESS"):
        (folder / name).write_bytes(b"" if name == "_SUCCESS" else "Größe: 1".encode())
    for name in ("cat/text.png", "cat/movie.mp4", "stray.png"):
        (folder / name).write_bytes(b"text" if name == "cat/text.png" else b"\0\0\0\x18ftyp")
    _, found = read(Source(Config(url=str(folder))))
    assert {raw.path for raw in found if raw.harmless} == {"README.md", "SHA256SUMS", "_SUCCESS", "cat/labels.json"}
    assert {raw.path: raw.fault for raw in found if raw.fault and not raw.harmless} == {
        "stray.png": "lies outside the class folders"
    }


def test_a_huge_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    (folder / "cat" / "huge.png").write_bytes(bytes(1001))
    _, found = read(Source(Config(url=str(folder))))
    assert [(raw.path, raw.data, raw.fault) for raw in found if raw.fault] == [
        ("cat/huge.png", b"", "is 1,001 bytes; needed at most 1,000")
    ]


def test_only_what_the_inventory_lists_is_read(folder: Path) -> None:
    source = Source(Config(url=str(folder)))
    inventory = source.inventory()
    (folder / "cat" / "new.png").write_bytes(picture(9))
    with source.read(inventory) as reading:
        assert "cat/new.png" not in {raw.path for raw in reading.images}


def test_an_inventory_that_is_not_of_this_place_is_refused(folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    other = shutil.copy(archive, tmp_path / "other.zip")
    taken = {url: Source(Config(url=str(url))).inventory() for url in (folder, archive)}
    for url, inventory in (
        (archive, taken[folder]),
        (folder, taken[archive]),
        (other, taken[archive]),
        ("s3://bucket/photos", taken[folder]),
        (folder, {"kind": "images", "classes": ["cat"]}),
        (folder, {"kind": "images", "classes": ["cat"], "files": {"cat/1.png": {"bytes": 1}}}),
    ):
        with pytest.raises(UserError) as error, Source(Config(url=str(url))).read(inventory):
            pass
        assert str(error.value) == (
            "out/inventory.json: is not that of source.url; needed 'forgeline stage source' again"
        )


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
def test_a_change_after_the_inventory_is_named(folder: Path, tmp_path: Path, archive: bool) -> None:
    url = Path(shutil.make_archive(str(tmp_path / "set"), "zip", folder)) if archive else folder
    source = Source(Config(url=str(url)))
    inventory = source.inventory()
    changed = url if archive else folder / "cat" / "1.png"
    changed.write_bytes(changed.read_bytes() + b"\0")
    sentence = rf"^{changed}: changed after its inventory was taken; run again$"
    with pytest.raises(FailedError, match=sentence), source.read(inventory) as reading:
        list(reading.images)


def test_the_inventory_knows_neither_place_nor_time(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved, copy_function=shutil.copyfile)
    assert Source(Config(url=str(moved))).inventory() == Source(Config(url=str(folder))).inventory()


def test_a_tar_with_a_leading_dot_is_as_one_without(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, arcname=".")
    assert described(read(Source(Config(url=str(tmp_path / "set.tar"))))[1]) == EXPECTED


def test_pixels_come_through_whole(folder: Path) -> None:
    _, found = read(Source(Config(url=str(folder))))
    assert isinstance(found[3].data, bytes)
    assert np.asarray(Image.open(io.BytesIO(found[3].data))).mean() == 3
