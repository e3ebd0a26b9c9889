from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.imageset import ImageSet, Row, layout, write_imageset

Rows = Callable[..., Iterator[Row]]
Write = Callable[..., ImageSet]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestLayout:
    def test_shards_are_named_as_the_hub_names_them(self, write: Write) -> None:
        assert sorted(contents(write().root)) == [
            "imageset.json",
            "test-00000-of-00001.parquet",
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet",
            "validation-00000-of-00001.parquet",
        ]

    def test_shards_are_of_about_one_size(self, write: Write, rows: Rows) -> None:
        sizes = [shard.rows for shard in write(rows(3000, size=2), shard_images=500).shards if shard.split == "train"]
        assert len(sizes) == 4
        assert sum(sizes) == 2000
        assert all(400 <= size <= 600 for size in sizes)

    def test_row_groups_hold_one_class_each_and_the_classes_mix(self, write: Write, rows: Rows) -> None:
        parquet = pq.ParquetFile(write(rows(2000), shard_images=10_000).root / "train-00000-of-00001.parquet")
        labels = []
        for group in range(parquet.num_row_groups):
            label = parquet.metadata.row_group(group).column(2)
            assert label.path_in_schema == "label"
            assert label.statistics.min == label.statistics.max
            labels.append(label.statistics.min)
        assert len(labels) == 15  # 1333 rows in groups of at most 100 of 3 classes
        assert all(set(labels[i : i + 3]) == {0, 1, 2} for i in range(0, 15, 3))

    def test_a_rare_class_stands_in_the_midst_of_the_others(self, write: Write, rows: Rows) -> None:
        many = (replace(row, split="train", label=0 if i % 250 == 249 else 1) for i, row in enumerate(rows(1000)))
        labels = write(many, shard_images=10_000).arrays("train")[1]
        assert 300 < np.flatnonzero(labels == 0).mean() < 700

    def test_row_groups_hold_one_confidence_each_and_any_first_ones_are_of_all(self, write: Write, rows: Rows) -> None:
        confidences = np.random.default_rng(0).permutation(1600) / 1600
        sure = (
            replace(row, split="train", label=0, provenance={"confidence": float(each), "index": place})
            for place, (row, each) in enumerate(zip(rows(1600, size=2), confidences, strict=True))
        )
        parquet = pq.ParquetFile(write(sure, shard_images=1600).root / "train-00000-of-00001.parquet")
        groups = [parquet.read_row_group(group).to_pydict() for group in range(parquet.num_row_groups)]
        bands = [np.array(group["confidence"]) * 16 // 1 for group in groups]
        assert all((band == band[0]).all() for band in bands)
        order = [int(band[0]) for band in bands]
        assert sorted(order) == list(range(16))
        assert order[0] in (7, 8)
        assert {band // 4 for band in order[:5]} == {0, 1, 2, 3}
        assert all(group["index"] == sorted(group["index"]) for group in groups)

    def test_shards_of_large_images_have_fewer(self, write: Write, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.imageset.layout._SHARD_BYTES", 20 * 3 * 8 * 8)
        shards = [shard for shard in write(rows(300), shard_images=10_000).shards if shard.split == "train"]
        assert len(shards) == 10
        assert max(shard.rows for shard in shards) <= 40
        monkeypatch.undo()
        assert layout.largest_shard((3, 32, 32)) > 10_000
        assert 400e6 < layout.largest_shard((3, 1024, 1024)) * 3 * 1024**2 <= 500e6

    def test_one_class_can_be_pulled_alone(self, write: Write) -> None:
        root = write().root
        bees = pq.read_table(sorted(root.glob("train-*.parquet")), filters=[("label", "=", 1)])
        assert set(bees["label"].to_pylist()) == {1}
        assert len(bees) == ImageSet.open(root).counts["train"][1]

    def test_png_bytes_are_not_compressed_twice(self, write: Write) -> None:
        group = pq.ParquetFile(write().root / "test-00000-of-00001.parquet").metadata.row_group(0)
        codecs = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
        assert codecs.pop("image.bytes") == "UNCOMPRESSED"
        assert set(codecs.values()) == {"ZSTD"}

    def test_json_says_what_the_set_is_and_nothing_of_the_machine(self, write: Write) -> None:
        imageset = write(synthetic=True, generator={"model": "ab" * 32, "family": "dcgan"})
        text = (imageset.root / "imageset.json").read_text(encoding="utf-8")
        content = json.loads(text)
        assert text == json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        assert str(imageset.root) not in text
        assert content["schema_version"] == 1
        assert content["classes"] == ["ant", "bee", "ćma"]
        assert content["generator"] == {"model": "ab" * 32, "family": "dcgan"}
        assert content["counts"]["train"] == list(imageset.counts["train"])

    def test_each_shard_says_what_made_it(self, write: Write) -> None:
        imageset = write(synthetic=True, generator={"model": "ab" * 32})
        for shard in imageset.shards:
            metadata = pq.read_schema(imageset.root / shard.path).metadata
            assert json.loads(metadata[b"synthetic"]) is True
            assert json.loads(metadata[b"generator"]) == {"model": "ab" * 32}

    def test_real_images_are_not_called_synthetic(self, write: Write) -> None:
        metadata = pq.read_schema(write().root / "test-00000-of-00001.parquet").metadata
        assert json.loads(metadata[b"synthetic"]) is False
        assert json.loads(metadata[b"generator"]) is None


WRITER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.imageset import Row, write_imageset
def rows():
    for i in range(700):
        image = np.random.default_rng(i).integers(0, 256, (3, 16, 16), dtype=np.uint8)
        split = ("train", "test")[i % 3 == 0]
        yield Row(split=split, label=i % 5, image=image, path=f"{i}", provenance={"mode": "RGB", "i": i, "x": i / 3})
write_imageset(Path(sys.argv[1]), rows(), classes=list("abcde"), source={"b": 1, "a": "x"}, resize=None,
               synthetic=True, generator={"model": "m", "family": "f"}, shard_images=150)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for name, hash_seed in (("one", "1"), ("two", "2")):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", WRITER, tmp_path / name], check=True, env=environment)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("seed", [0, 1])
def test_row_groups_that_are_gathered_together_are_as_each_alone(
    write: Write, rows: Rows, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """From several batches of the spool, in an order of confidences that mixes them."""
    confidences = np.random.default_rng(seed).random(1300)
    sure = [
        replace(row, provenance={"confidence": float(each), "index": place})
        for place, (row, each) in enumerate(zip(rows(1300), confidences, strict=True))
    ]
    together = write(sure, shard_images=400)
    together.verify()
    monkeypatch.setattr("pipeline.imageset.write._GATHERED_BYTES", 1)
    assert contents(write(sure, "alone", shard_images=400).root) == contents(together.root)


class TestFingerprint:
    def test_is_as_written_down(self, write: Write) -> None:
        """A change of this number means: releases made so far are no longer found equal to new ones."""
        image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
        rows = [
            Row(split=split, label=label, image=image + label, path="", provenance={"seed": 1})
            for split, label in [("test", 1), ("train", 0), ("train", 1)]
        ]
        fingerprint = write(rows, classes=["a", "b"]).fingerprint
        assert fingerprint == "6cc9201f764d1c10e21a5efda42f76e55b494b5b27c2e95d663ec8b38fc66a3a"

    def test_does_not_depend_on_shards_names_or_origin(self, write: Write, rows: Rows) -> None:
        renamed = (replace(row, path="x", provenance=row.provenance | {"width": 1}) for row in rows())
        other = write(renamed, "other", shard_images=1000, synthetic=True, source={}, resize=None)
        assert other.fingerprint == write().fingerprint

    @pytest.mark.parametrize("bit", [1, 128])
    def test_one_bit_of_one_pixel_alters_it(self, write: Write, rows: Rows, bit: int) -> None:
        changed = list(rows())
        changed[37].image[2, 7, 7] ^= np.uint8(bit)
        assert write(changed, "other").fingerprint != write().fingerprint

    @pytest.mark.parametrize("change", [{"label": 2}, {"split": "validation"}])
    def test_a_label_or_split_alters_it(self, write: Write, rows: Rows, change: dict[str, object]) -> None:
        before, *rest = rows()
        assert write([replace(before, **change), *rest], "other").fingerprint != write().fingerprint

    def test_a_class_name_alters_it(self, write: Write) -> None:
        assert write(name="other", classes=("ant", "bee", "moth")).fingerprint != write().fingerprint

    def test_order_within_a_class_alters_it(self, write: Write, rows: Rows) -> None:
        assert write(reversed(list(rows())), "other").fingerprint != write().fingerprint

    def test_a_provenance_column_alters_it(self, write: Write, rows: Rows) -> None:
        more = (replace(row, provenance=row.provenance | {"seed": 1}) for row in rows())
        assert write(more, "other").fingerprint != write().fingerprint

    def test_the_shape_alters_it(self, write: Write) -> None:
        def one(shape: tuple[int, ...]) -> list[Row]:
            return [Row(split="train", label=0, image=np.zeros(shape, np.uint8), path="", provenance={})]

        assert write(one((1, 3, 3))).fingerprint != write(one((3, 3, 3)), "other").fingerprint


class TestRefusals:
    def test_no_images(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="set: has no images to hold; needed at least one"):
            write([])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("classes", [[], ["a", "a"], ["a", ""], ["\udc80"]])
    def test_class_names(self, write: Write, classes: list[str]) -> None:
        with pytest.raises(ValueError, match=r"^classes is .*; needed one or more different names"):
            write(classes=classes)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"split": "dev"}, "split is 'dev' in x.png; needed one of train, validation, test"),
            ({"label": 3}, "label is 3 in x.png; needed 0 to 2"),
            ({"label": -1}, "label is -1 in x.png; needed 0 to 2"),
            ({"image": np.zeros((3, 8, 9), np.uint8)}, r"image is uint8 \(3, 8, 9\) in x.png; needed .* \(3, 8, 8\)"),
            ({"image": np.zeros((1, 8, 8), np.uint8)}, r"image is uint8 \(1, 8, 8\) in x.png; needed"),
            ({"image": np.zeros((3, 8, 8), np.float32)}, r"image is float32 \(3, 8, 8\) in x.png; needed uint8"),
            ({"provenance": {"mode": "RGB"}}, "provenance is .* in x.png; needed .*'width'.* as in the first row"),
            ({"provenance": {"mode": "RGB", "width": 1.5, "ratio": 0.5}}, "provenance is .* in x.png; needed"),
        ],
    )
    def test_a_row_that_does_not_fit(
        self, write: Write, rows: Rows, change: dict[str, object], sentence: str, tmp_path: Path
    ) -> None:
        good = list(rows())
        with pytest.raises(ValueError, match=f"^{sentence}"):
            write([*good, replace(good[0], path="x.png", **change)])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("shape", [(3, 8, 9), (2, 8, 8), (8, 8), (8, 8, 3), (1, 0, 0), (1, 4097, 4097)])
    def test_a_first_image_of_no_use(self, write: Write, rows: Rows, shape: tuple[int, ...]) -> None:
        first = replace(next(rows()), image=np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match=r"^image is \(.*\) in raw/0.jpg; needed \(1 or 3, size, size\)"):
            write([first])

    @pytest.mark.parametrize("provenance", [{"image": 1}, {"label": 1}, {"x": None}, {"x": True}, {"x": b""}])
    def test_provenance_of_no_use(self, write: Write, rows: Rows, provenance: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r"^provenance is .* in raw/0.jpg; needed str, int or float, not named"):
            write([replace(next(rows()), provenance=provenance)])

    def test_a_folder_of_something_else(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "thesis.tex").touch()
        with pytest.raises(UserError, match="set: holds other files; needed a new folder"):
            write()
        assert [path.name for path in (tmp_path / "set").iterdir()] == ["thesis.tex"]


def test_an_older_imageset_is_replaced(write: Write, rows: Rows) -> None:
    write(shard_images=2)
    new = write(rows(12))
    assert ImageSet.open(new.root) == new
    assert len(contents(new.root)) == 1 + len(new.shards)


def test_an_exception_from_the_rows_leaves_the_older_one(write: Write, rows: Rows, tmp_path: Path) -> None:
    old = contents(write().root)

    def failing() -> Iterator[Row]:
        yield from rows(1200)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        write(failing())
    assert contents(tmp_path / "set") == old
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.errors import FailedError
from pipeline.imageset import Row, write_imageset
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
def rows():
    for i in range(3000):
        image = np.random.default_rng(i).integers(0, 256, (1, 32, 32), dtype=np.uint8)
        yield Row(split="train", label=i % 2, image=image, path=f"{i}", provenance={})
try:
    write_imageset(Path(sys.argv[1]), rows(), classes=["a", "b"], source={}, resize=None, synthetic=False)
except FailedError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, tmp_path / "set", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'set'}: cannot be written ({os.strerror(27)})\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["1m", "5m"])  # in the spool; in the shards, when the spool stands already
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a disk of its own can only be mounted by root")
    try:
        command = [sys.executable, "-c", FULL, disk / "set", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{disk / 'set'}: cannot be written ({os.strerror(28)})\n"
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


BOUNDED = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.imageset import Row, write_imageset
def rows(count):
    for i in range(count):
        image = np.random.default_rng(i).integers(0, 256, (3, 64, 64), dtype=np.uint8)
        yield Row(split="train", label=i % 7, image=image, path=f"{i}", provenance={"i": i})
def write(name, count):
    write_imageset(Path(sys.argv[1]) / name, rows(count), classes=list("abcdefg"), source={}, resize=None,
                   synthetic=False, shard_images=2000)
write("warm", 600)
(used,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
limit = used * 1024 + (34 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
write("large", 4000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory that is not a mapped file")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """49 MB of pixels, and as many of PNG, with 34 MB more than a seventh of them needed."""
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    subprocess.run([sys.executable, "-c", BOUNDED, tmp_path], check=True, env=environment)
    assert sum(shard.rows for shard in ImageSet.open(tmp_path / "large").shards) == 4000


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
provenances = st.dictionaries(
    names.filter(lambda name: name not in ("image", "label")),
    st.sampled_from([names, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)]),
    max_size=3,
)


@st.composite
def imagesets(draw: st.DrawFn) -> tuple[list[str], list[Row]]:
    classes = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    shape = (draw(st.sampled_from([1, 3])), *[draw(st.integers(1, 32))] * 2)
    columns = draw(provenances)
    places = draw(
        st.lists(
            st.tuples(st.sampled_from(["train", "validation", "test"]), st.integers(0, len(classes) - 1)),
            min_size=1,
            max_size=30,
        )
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = [
        Row(
            split=split,
            label=label,
            image=random.integers(0, 256, shape, dtype=np.uint8),
            path=draw(names),
            provenance={name: draw(values) for name, values in columns.items()},
        )
        for split, label in places
    ]
    return classes, rows


@given(imagesets(), st.integers(1, 12))
@settings(max_examples=60)
def test_everything_comes_back(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[list[str], list[Row]], shard_images: int
) -> None:
    classes, rows = made
    root = tmp_path_factory.mktemp("made") / "set"
    written = write_imageset(
        root, rows, classes=classes, source={"kind": "made"}, resize=None, synthetic=False, shard_images=shard_images
    )
    imageset = ImageSet.open(root)
    assert imageset == written
    assert imageset.classes == tuple(classes)
    assert list(imageset.counts) == [
        split for split in ("train", "validation", "test") if any(r.split == split for r in rows)
    ]
    imageset.verify()
    for split in imageset.counts:
        table = imageset.table(split)
        images, labels = imageset.arrays(split)
        assert labels.tolist() == table["label"].to_pylist()
        for label in range(len(classes)):
            expected = [row for row in rows if (row.split, row.label) == (split, label)]
            assert imageset.counts[split][label] == len(expected)
            assert np.array_equal(images[labels == label], [row.image for row in expected] or images[:0])
            found = table.filter(labels == label).to_pylist()
            assert [row["image"]["path"] for row in found] == [row.path for row in expected]
            for name in rows[0].provenance:
                assert [row[name] for row in found] == [row.provenance[name] for row in expected]
