from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import FailedError, UserError
from pipeline.imageset import Row, write_imageset
from pipeline.sources.parquet import Config, Source
from pipeline.sources.source import RawImage


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), shade).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path,
    labels: list[Any],
    *,
    names: list[str] | None = None,
    images: pa.Array | None = None,
    kind: pa.DataType | None = None,
) -> Path:
    """Shards as they are found in the wild, with class names in the metadata of the hub where `names` are given."""
    if images is None:
        images = pa.array([{"bytes": picture(index), "path": f"{index}.png"} for index in range(len(labels))])
    table = pa.table({"image": images, "label": pa.array(labels, kind)})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def read(url: str | Path, **settings: str) -> tuple[tuple[str, ...], list[RawImage]]:
    source = Source(Config(url=str(url), **settings))
    with source.read(source.inventory()) as reading:
        found = list(reading.images)
    assert len(found) == reading.count
    return reading.classes, found


def test_shards_of_the_hub_give_images_class_names_and_splits(tmp_path: Path) -> None:
    names = ["cat", "dog"]
    write(tmp_path / "data/train-00000-of-00002.parquet", [0, 1], names=names)
    write(tmp_path / "data/train-00001-of-00002.parquet", [1], names=names)
    write(tmp_path / "data/test-00000-of-00001.parquet", [0], names=names)
    (tmp_path / "README.md").write_text("a card")
    classes, found = read(tmp_path)
    assert classes == ("cat", "dog")
    assert [(raw.path, raw.label, raw.split, raw.data) for raw in found] == [
        ("data/test-00000-of-00001.parquet/000000", "cat", "test", picture(0)),
        ("data/train-00000-of-00002.parquet/000000", "cat", "train", picture(0)),
        ("data/train-00000-of-00002.parquet/000001", "dog", "train", picture(1)),
        ("data/train-00001-of-00002.parquet/000000", "dog", "train", picture(0)),
    ]


def test_what_the_datasets_library_writes_is_read(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pictures = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(3)]
    made = datasets.Dataset.from_dict({"image": pictures, "label": [1, 0, 1]}, features=features)
    made.to_parquet(str(tmp_path / "validation-00000-of-00001.parquet"))
    classes, found = read(tmp_path)
    assert classes == ("cat", "dog")
    assert [(raw.label, raw.split) for raw in found] == [(name, "validation") for name in ("dog", "cat", "dog")]
    shades = [np.asarray(Image.open(io.BytesIO(bytes(raw.data))))[0, 0].tolist() for raw in found]
    assert shades == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]


def test_our_own_imageset_is_read(tmp_path: Path) -> None:
    rows = [
        Row(split=split, label=label, image=np.full((1, 4, 4), 9 * label, np.uint8), path="x", provenance={"seed": 1})
        for split in ("train", "validation", "test")
        for label in (0, 1)
    ]
    write_imageset(tmp_path / "set", rows, classes=["cat", "dog"], source={}, resize=None, synthetic=True)
    classes, found = read(tmp_path / "set")
    assert classes == ("cat", "dog")
    assert {(raw.split, raw.label) for raw in found} == {
        (split, label) for split in ("train", "validation", "test") for label in ("cat", "dog")
    }


def test_s3_and_a_single_file_are_read(s3: Any, upload: Callable[[Path, str], None], tmp_path: Path) -> None:
    write(tmp_path / "set/train.parquet", [1, 0])
    upload(tmp_path / "set", "set")
    expected = [(raw.path, raw.label, raw.split, raw.data) for raw in read(tmp_path / "set")[1]]
    for url in ("s3://raw/set", "s3://raw/set/train.parquet", tmp_path / "set/train.parquet"):
        assert [(raw.path, raw.label, raw.split, raw.data) for raw in read(url)[1]] == expected


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.parquet", "train"),
        ("val-00000-of-00001.parquet", "validation"),
        ("default/test/0000.parquet", "test"),
        ("training_data.parquet", None),
        ("part-00000.snappy.parquet", None),
    ],
)
def test_the_split_is_in_the_name(tmp_path: Path, path: str, split: str | None) -> None:
    write(tmp_path / path, [0])
    assert [raw.split for raw in read(tmp_path)[1]] == [split]


def test_names_as_labels_are_ordered(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["dog", "cat", "dog"])
    classes, found = read(tmp_path)
    assert classes == ("cat", "dog")
    assert [raw.label for raw in found] == ["dog", "cat", "dog"]


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int32(), pa.string()), pa.large_string()])
def test_names_are_read_however_they_are_stored(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "train.parquet", ["dog", "cat"], kind=kind)
    assert [raw.label for raw in read(tmp_path)[1]] == ["dog", "cat"]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int32()])
def test_numbers_without_names_stand_for_themselves(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "train.parquet", [1, 0, 2], kind=kind)
    assert read(tmp_path)[0] == ("0", "1", "2")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bare_bytes_are_images_too(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "train.parquet", [0, 0], images=pa.array([picture(5), picture(6)], kind))
    assert [raw.data for raw in read(tmp_path)[1]] == [picture(5), picture(6)]


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    table = pa.table({"img": [picture(1)], "fine_label": [0], "coarse_label": [0]})
    pq.write_table(table, tmp_path / "train.parquet")
    assert len(read(tmp_path, image_column="img", label_column="fine_label")[1]) == 1


def test_a_row_without_image_or_label_has_its_reason(tmp_path: Path) -> None:
    images = pa.array([None, {"bytes": None, "path": "far/away.png"}, {"bytes": picture(1), "path": None}])
    write(tmp_path / "train.parquet", [0, 0, None], images=images)
    found = read(tmp_path)[1]
    assert [raw.fault for raw in found] == ["has no bytes in its row", "has no bytes in its row", "has no label"]
    assert not any(raw.harmless for raw in found)


@pytest.mark.parametrize(
    ("labels", "names", "sentence"),
    [
        ([1, 2, 3], None, "train.parquet has the label 3; needed 0 to 2, as there are 3 different labels"),
        ([0, 1, 5], None, "train.parquet has the label 5; needed 0 to 2, as there are 3 different labels"),
        ([0, -1], None, "train.parquet has the label -1; needed 0 to 1, as there are 2 different labels"),
        (
            [0, 2],
            ["a", "b"],
            "train.parquet has the label 2; needed 0 to 1, as there are 2 class names in its metadata",
        ),
        ([-1, -1], ["a", "b"], "train.parquet has the label -1; needed 0 to 1, as there are 2 class names in"),
    ],
)
def test_labels_that_are_not_0_to_k_are_named(
    tmp_path: Path, labels: list[int], names: list[str] | None, sentence: str
) -> None:
    write(tmp_path / "train.parquet", labels, names=names)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: {sentence}")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            pa.table({"img": [b""], "label": [0]}),
            "no column 'image', which source.image_column names; did you mean 'img'",
        ),
        (pa.table({"image": [b""], "y": [0]}), "no column 'label', which source.label_column names; needed one of"),
        (pa.table({"image": [1], "label": [0]}), "column 'image' is int64; needed struct<bytes, path> or binary"),
        (pa.table({"image": [b""], "label": [0.5]}), "column 'label' is double; needed whole numbers or names"),
        (pa.table({"image": [b""], "label": [True]}), "column 'label' is bool; needed whole numbers or names"),
    ],
)
def test_other_columns_than_needed_are_named(tmp_path: Path, table: pa.Table, sentence: str) -> None:
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r": train\.parquet") as error:
        read(tmp_path)
    assert sentence in str(error.value)


@pytest.mark.parametrize("names", [[1, 2], "ab", {"0": "a"}])
def test_class_names_that_are_no_list_of_texts_are_refused(tmp_path: Path, names: Any) -> None:
    write(tmp_path / "train.parquet", [0, 1], names=names)
    with pytest.raises(UserError, match=r": train\.parquet has the class names .* in its metadata; needed a list of"):
        read(tmp_path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0]).rename(tmp_path / b"\xff.parquet".decode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"the name '\\udcff\.parquet' is not UTF-8; needed one that is"):
        read(tmp_path)


def test_an_inventory_that_is_not_of_this_place_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0])
    with pytest.raises(UserError, match="needed 'forgeline stage source' again"):
        Source(Config(url=str(tmp_path))).read({"kind": "parquet"}).__enter__()


def test_files_with_other_class_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0], names=["cat", "dog"])
    write(tmp_path / "test.parquet", [0], names=["dog", "cat"])
    with pytest.raises(UserError, match="its files differ in their class names"):
        read(tmp_path)


def test_names_in_some_files_and_numbers_in_others_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0])
    write(tmp_path / "test.parquet", ["cat"])
    with pytest.raises(UserError, match="has names as labels in some files, numbers in others"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"text"])
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r": train\.parquet cannot be read as Parquet \([^\n]+\)$"):
        read(tmp_path)


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [0] * 200)
    content = bytearray(path.read_bytes())
    content[4:64] = b"\xff" * 60
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r": train\.parquet cannot be read as Parquet"):
        read(tmp_path)


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r": has no Parquet files; needed shards such as train-00000-of-00001\.parquet$"
    ):
        Source(Config(url=str(tmp_path))).inventory()


def test_a_shard_that_changed_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [0])
    source = Source(Config(url=str(tmp_path)))
    inventory = source.inventory()
    write(path, [0, 0])
    with pytest.raises(FailedError, match=r"train\.parquet: changed after"), source.read(inventory):
        pass
