from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet, Row
from pipeline.imageset.files import sha256_file

Write = Callable[..., ImageSet]


def edit(imageset: ImageSet, change: Callable[[dict[str, Any]], None]) -> Path:
    path = imageset.root / "imageset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return imageset.root


def sign(imageset: ImageSet) -> ImageSet:
    """Make imageset.json agree with the shards' bytes again, as one who forges or re-encodes would."""

    def resign(content: dict[str, Any]) -> None:
        for shard in content["shards"]:
            path = imageset.root / shard["path"]
            shard["bytes"], shard["sha256"] = path.stat().st_size, sha256_file(path)

    return ImageSet.open(edit(imageset, resign))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    with pq.ParquetFile(path) as parquet:
        table = parquet.read()
    pq.write_table(change(table), path)


def with_pictures(table: pa.Table, change: Callable[[int, bytes], bytes | None]) -> pa.Table:
    images = [
        {"bytes": change(row, image["bytes"]), "path": image["path"]}
        for row, image in enumerate(table["image"].to_pylist())
    ]
    return table.set_column(0, table.schema.field(0), pa.array(images, table.schema.field(0).type))


class TestOpen:
    def test_gives_what_was_written(self, write: Write) -> None:
        written = write(synthetic=True, generator={"model": "m"})
        assert ImageSet.open(written.root) == written
        assert (written.channels, written.image_size, written.resize, written.synthetic) == (3, 8, "lanczos", True)
        assert list(written.counts) == ["train", "validation", "test"]
        assert sum(map(sum, written.counts.values())) == 60

    @pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None])
    def test_refuses_what_is_no_imageset(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        make(tmp_path / "other")
        with pytest.raises(UserError, match=r"other: is not an ImageSet; needed a folder with imageset\.json"):
            ImageSet.open(tmp_path / "other")

    @pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
    def test_refuses_what_is_no_json(self, write: Write, text: bytes) -> None:
        root = write().root
        (root / "imageset.json").write_bytes(text)
        with pytest.raises(UserError, match=r"imageset\.json: is not JSON"):
            ImageSet.open(root)

    @pytest.mark.parametrize("text", ["[]", "{}", "null", '{"schema_version": 2}', '{"schema_version": "1"}'])
    def test_refuses_another_schema_version(self, write: Write, text: str) -> None:
        root = write().root
        (root / "imageset.json").write_text(text)
        with pytest.raises(UserError, match=r"imageset\.json: schema_version is .*; needed 1$"):
            ImageSet.open(root)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda c: c.pop("classes"), "classes is missing"),
            (lambda c: c.update(colour="red"), "'colour' is not known"),
            (lambda c: c.update(classes="ant"), "classes is 'ant'; needed a list of names"),
            (lambda c: c.update(classes=["ant", "ant", "bee"]), "classes is .*; needed one or more different names"),
            (lambda c: c.update(channels=4), "channels is 4; needed 1 or 3"),
            (lambda c: c.update(channels=3.0), "channels is 3.0; needed 1 or 3"),
            (lambda c: c.update(image_size=0), "image_size is 0; needed 1 to 4096"),
            (lambda c: c.update(image_size=50_000), "image_size is 50000; needed 1 to 4096"),
            (lambda c: c.update(image_size=True), "image_size is True; needed a whole number"),
            (lambda c: c.update(synthetic="no"), "synthetic is 'no'; needed true or false"),
            (lambda c: c.update(source={"kind": []}), "source is .*; needed texts, numbers"),
            (lambda c: c.update(generator={"model": 1}), "generator is .*; needed texts by name, or null"),
            (lambda c: c.update(resize=3), "resize is 3; needed the name of a filter or null"),
            (lambda c: c.update(fingerprint="AB" * 32), "fingerprint is 'ABAB.*'; needed a hex sha256"),
            (lambda c: c.update(counts=[1, 2]), "counts is .*; needed a list of whole numbers for each split"),
            (lambda c: c.update(counts={}), "counts has the splits .*; needed some of train, validation, test"),
            (lambda c: c["counts"].update(dev=[1, 1, 1]), "counts has the splits .*'dev'.*; needed some of"),
            (lambda c: c["counts"].update(test=[1, 9]), "counts.test is .*; needed how many images each of 3 classes"),
            (lambda c: c["counts"]["test"].append(0), "counts.test is .*; needed how many images each of 3 classes"),
            (lambda c: c["counts"].update(test=[11, 0, -1]), "counts.test is .*; needed how many images"),
            (
                lambda c: c["counts"].update(test=[0, 0, 0]),
                r"counts.test is \[0, 0, 0\], no images at all; needed at least",
            ),
            (lambda c: c["counts"].update(test=[5, 5, 5]), "counts.test sums to 15 images; needed 10"),
            (lambda c: c["shards"].pop(), "shards has .*; needed|counts.* sums"),
            (lambda c: c["shards"].reverse(), "shards has .*; needed"),
            (lambda c: c["shards"][0].pop("rows"), "shards is .*; needed a list of path, split"),
            (lambda c: c["shards"][0].update(path="../train-00000-of-00002.parquet"), "shards has .*; needed"),
            (lambda c: c["shards"][0].update(split="test"), "shards has .*; needed"),
            (lambda c: c["shards"][0].update(sha256="0"), r"shards\[0\] is .*; needed .* a hex sha256"),
            (lambda c: c["shards"][0].update(bytes=0), r"shards\[0\] is .*; needed rows and bytes above 0"),
            (lambda c: c["shards"][0].update(rows=1), "counts.train sums to 40 images; needed"),
        ],
    )
    def test_refuses_what_does_not_fit_together(
        self, write: Write, change: Callable[[dict[str, Any]], None], sentence: str
    ) -> None:
        root = edit(write(), change)
        with pytest.raises(UserError, match=rf"set/imageset\.json: ({sentence})") as refused:
            ImageSet.open(root)
        assert "\n" not in str(refused.value)


class TestTable:
    def test_columns(self, write: Write) -> None:
        table = write().table("train")
        assert table.column_names == ["image", "label", "mode", "width", "ratio"]
        assert [str(kind) for kind in table.schema.types] == [
            "struct<bytes: binary, path: string>",
            "int64",
            "string",
            "int64",
            "double",
        ]

    def test_some_columns(self, write: Write) -> None:
        assert write().table("test", ["label", "width"]).column_names == ["label", "width"]

    def test_another_split_is_refused(self, write: Write) -> None:
        with pytest.raises(UserError, match="set: has no split 'trian'; needed one of train, validation, test"):
            write().table("trian")

    def test_a_missing_shard_is_named(self, write: Write) -> None:
        imageset = write()
        (imageset.root / "test-00000-of-00001.parquet").unlink()
        with pytest.raises(FailedError, match=r"set/test-00000-of-00001\.parquet: is missing"):
            imageset.table("test")

    def test_a_damaged_shard_is_named(self, write: Write) -> None:
        imageset = write()
        (imageset.root / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
        with pytest.raises(FailedError, match=r"set/test-00000-of-00001\.parquet: cannot be read as Parquet"):
            imageset.table("test")


def relabelled(imageset: ImageSet, labels: list[int | None]) -> ImageSet:
    """With other labels in the test shard, and an imageset.json that knows its bytes."""
    column = pa.array(labels, pa.int64())
    rewrite(imageset.root / imageset.shards[-1].path, lambda table: table.set_column(1, table.schema.field(1), column))
    return sign(imageset)


class TestArrays:
    @pytest.mark.parametrize("label", [7, 3, -1, None])
    def test_a_label_of_no_class_is_named_though_the_hashes_are_right(self, write: Write, label: int | None) -> None:
        imageset = write()
        labels = imageset.table("test")["label"].to_pylist()
        with pytest.raises(
            UserError, match=rf"^\S*set: the test split has the label {label}; needed 0 to 2, one of its 3 classes$"
        ):
            relabelled(imageset, [*labels[:-1], label]).arrays("test")

    def test_classes_of_other_numbers_than_were_counted_are_told(self, write: Write) -> None:
        with pytest.raises(UserError, match=r"imageset\.json: counts\.test is .*; its shards hold \(10, 0, 0\)$"):
            relabelled(write(), [0] * 10).arrays("test")


class TestClasses:
    def test_a_set_that_lacks_some_is_told_which(self, write: Write, rows: Callable[..., Iterator[Row]]) -> None:
        real = write()
        one = write((row for row in rows() if row.label == 1), "one")
        with pytest.raises(
            UserError, match=r"one: has no image of 2 of 3 classes \('ant', 'ćma'\); needed at least one of each, as in"
        ):
            one.check_classes_of(real)
        write(rows(seed=1), "all").check_classes_of(real)

    def test_what_real_images_lack_may_be_lacking(self, write: Write, rows: Callable[..., Iterator[Row]]) -> None:
        two = write((row for row in rows() if row.label != 1), "two")
        write((row for row in rows() if row.label != 1), "made").check_classes_of(two)


class TestVerify:
    def test_a_sound_set_is_counted_as_it_is_read(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        imageset = write()
        imageset.verify()
        images = sum(shard.rows for shard in imageset.shards)
        assert re.fullmatch(rf"verify: {images} of {images} images, [\d,]+ images a second\n", capsys.readouterr().err)

    @pytest.mark.parametrize("where", [4, 0.3, 0.6, 0.9, -5])
    def test_a_flipped_bit(self, write: Write, where: float) -> None:
        imageset = write()
        path = imageset.root / "train-00001-of-00002.parquet"
        data = bytearray(path.read_bytes())
        data[int(where * len(data)) if 0 < where < 1 else int(where)] ^= 1
        path.write_bytes(data)
        with pytest.raises(FailedError, match=r"train-00001-of-00002\.parquet: has sha256 \w{64}; needed \w{64}$"):
            imageset.verify()

    def test_a_truncated_shard(self, write: Write) -> None:
        imageset = write()
        path = imageset.root / "train-00001-of-00002.parquet"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(FailedError, match=r"train-00001-of-00002\.parquet: is \d+ bytes; needed \d+$"):
            imageset.verify()

    def test_a_deleted_shard(self, write: Write) -> None:
        imageset = write()
        (imageset.root / "train-00001-of-00002.parquet").unlink()
        with pytest.raises(FailedError, match=r"train-00001-of-00002\.parquet: is missing$"):
            imageset.verify()

    def test_swapped_shards(self, write: Write) -> None:
        imageset = write()
        one, other = (imageset.root / f"train-0000{i}-of-00002.parquet" for i in (0, 1))
        one.rename(imageset.root / "aside")
        other.rename(one)
        (imageset.root / "aside").rename(other)
        with pytest.raises(FailedError, match=r"train-00000-of-00002\.parquet: "):
            imageset.verify()

    @pytest.mark.parametrize("name", ["train-00002-of-00003.parquet", "more/test-00000-of-00001.parquet"])
    def test_an_extra_shard(self, write: Write, name: str) -> None:
        imageset = write()
        (imageset.root / name).parent.mkdir(exist_ok=True)
        shutil.copy(imageset.root / "test-00000-of-00001.parquet", imageset.root / name)
        with pytest.raises(FailedError, match=f"set/{name}: is not one of the shards"):
            imageset.verify()

    def test_documents_beside_the_shards_are_welcome(self, write: Write) -> None:
        imageset = write()
        (imageset.root / "README.md").write_text("# A card")
        imageset.verify()


class TestVerifyWhatWasSignedAgain:
    """The files' hashes are right, so only what is in them can be found wrong."""

    def test_other_encoders_change_nothing(self, write: Write) -> None:
        imageset = write()

        def slowly(_: int, data: bytes) -> bytes:
            buffer = io.BytesIO()
            with Image.open(io.BytesIO(data)) as picture:
                picture.save(buffer, format="PNG", compress_level=9, optimize=True)
            assert buffer.getvalue() != data
            return buffer.getvalue()

        for shard in imageset.shards:
            rewrite(imageset.root / shard.path, lambda table: with_pictures(table, slowly))
        again = sign(imageset)
        assert again.shards != imageset.shards
        again.verify()

    def test_one_other_pixel(self, write: Write) -> None:
        imageset = write()

        def darker(row: int, data: bytes) -> bytes:
            with Image.open(io.BytesIO(data)) as picture:
                r, g, b = picture.getpixel((3, 4))
                picture.putpixel((3, 4), (r, g, b ^ 1))
                buffer = io.BytesIO()
                picture.save(buffer, format="PNG")
            return buffer.getvalue() if row == 5 else data

        rewrite(imageset.root / imageset.shards[0].path, lambda table: with_pictures(table, darker))
        with pytest.raises(FailedError, match=r"imageset\.json: fingerprint is \w{64}; its images give \w{64}"):
            sign(imageset).verify()

    def test_rows_in_another_order(self, write: Write) -> None:
        imageset = write()
        rewrite(imageset.root / imageset.shards[0].path, lambda table: table.take(list(range(len(table)))[::-1]))
        with pytest.raises(FailedError, match=r"imageset\.json: fingerprint is"):
            sign(imageset).verify()

    def test_millions_of_labels_in_a_few_bytes(self, write: Write) -> None:
        imageset = write()
        path = imageset.root / imageset.shards[0].path

        def repeat(table: pa.Table) -> pa.Table:
            kinds = table.schema.types
            return pa.Table.from_arrays([pa.nulls(3_000_000, kind) for kind in kinds], schema=table.schema)

        rewrite(path, repeat)
        assert path.stat().st_size < 40_000
        with pytest.raises(FailedError, match=r"of-00002\.parquet: cannot be read .* unpacks from .* to 24,\d"):
            sign(imageset).verify()

    def test_a_column_whose_name_is_no_text(self, write: Write) -> None:
        imageset = write()
        path = imageset.root / imageset.shards[0].path
        path.write_bytes(path.read_bytes().replace(b"ratio", b"\xffatio"))
        with pytest.raises(FailedError, match=r"of-00002\.parquet: cannot be read as Parquet \(.*decode byte 0xff"):
            sign(imageset).verify()

    def test_another_label(self, write: Write) -> None:
        imageset = write()

        def relabel(table: pa.Table) -> pa.Table:
            labels = table["label"].to_pylist()
            return table.set_column(1, table.schema.field(1), pa.array([(labels[0] + 1) % 3, *labels[1:]]))

        rewrite(imageset.root / imageset.shards[0].path, relabel)
        with pytest.raises(FailedError, match=r"imageset\.json: counts\.train is .*; its shards hold"):
            sign(imageset).verify()

    @pytest.mark.parametrize("label", [3, -1, None])
    def test_a_label_of_no_class(self, write: Write, label: int | None) -> None:
        imageset = write()
        labels = imageset.table("test")["label"].to_pylist()
        with pytest.raises(
            FailedError, match=r"test-00000-of-00001\.parquet: has 10 rows; needed 10 with labels 0 to 2"
        ):
            relabelled(imageset, [label, *labels[1:]]).verify()

    def test_a_missing_row(self, write: Write) -> None:
        imageset = write()
        rewrite(imageset.root / imageset.shards[-1].path, lambda table: table.slice(1))
        with pytest.raises(FailedError, match=r"test-00000-of-00001\.parquet: has 9 rows; needed 10"):
            sign(imageset).verify()

    @pytest.mark.parametrize("data", [None, b"", b"not a picture"])
    def test_what_is_no_picture(self, write: Write, data: bytes | None) -> None:
        imageset = write()
        rewrite(
            imageset.root / imageset.shards[-1].path,
            lambda table: with_pictures(table, lambda row, old: data if row == 2 else old),
        )
        with pytest.raises(FailedError, match=r"test-00000-of-00001\.parquet: the image in row 2 is not a PNG image"):
            sign(imageset).verify()

    def test_a_picture_of_another_size(self, write: Write, rows: Callable[..., Iterator[Row]]) -> None:
        imageset = write()
        larger = write(rows(size=9), "larger").table("test")["image"].to_pylist()[0]["bytes"]
        rewrite(
            imageset.root / imageset.shards[-1].path,
            lambda table: with_pictures(table, lambda row, old: larger if row == 9 else old),
        )
        with pytest.raises(FailedError, match=r"the image in row 9 has .*\(3, 9, 9\); needed \(3, 8, 8\)"):
            sign(imageset).verify()

    @pytest.mark.parametrize("key", [b"huggingface", b"synthetic", b"generator"])
    def test_other_metadata(self, write: Write, key: bytes) -> None:
        imageset = write()
        rewrite(
            imageset.root / imageset.shards[0].path,
            lambda table: table.replace_schema_metadata(table.schema.metadata | {key: b"true"}),
        )
        with pytest.raises(FailedError, match=r"train-00000-of-00002\.parquet: has another schema"):
            sign(imageset).verify()

    @pytest.mark.parametrize("shard", [0, 1])
    def test_another_column(self, write: Write, shard: int) -> None:
        imageset = write()
        rewrite(
            imageset.root / imageset.shards[shard].path,
            lambda table: table.append_column("day", pa.array([None] * len(table), pa.date32())),
        )
        with pytest.raises(FailedError, match=r"train-0000\d-of-00002\.parquet: has another schema"):
            sign(imageset).verify()

    def test_what_is_no_parquet(self, write: Write) -> None:
        imageset = write()
        (imageset.root / imageset.shards[1].path).write_bytes(b"PAR1" * 10)
        with pytest.raises(FailedError, match=r"train-00001-of-00002\.parquet: cannot be read as Parquet"):
            sign(imageset).verify()


def test_the_fingerprint_can_be_computed_without_us(write: Write) -> None:
    """The recipe in words, from the files alone: what a reader of a release can hold it to."""
    root = write().root
    content = json.loads((root / "imageset.json").read_text(encoding="utf-8"))
    columns = [
        ["image", "struct<bytes: binary, path: string>"],
        ["label", "int64"],
        ["mode", "string"],
        ["width", "int64"],
        ["ratio", "double"],
    ]
    header = {"classes": content["classes"], "columns": columns, "schema_version": 1}
    digest = sha256(json.dumps(header, sort_keys=True).encode())
    for shard in content["shards"]:
        for row in pq.read_table(root / shard["path"]).to_pylist():
            with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
                pixels = np.asarray(picture).transpose(2, 0, 1)
            image = sha256(b"3x8x8\n" + pixels.tobytes()).hexdigest()
            digest.update(f"\n{shard['split']} {row['label']} {image}".encode())
    assert digest.hexdigest() == content["fingerprint"]
