from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli import forgeline
from pipeline.delivery import open_store, publish, pull
from pipeline.delivery.rowgroups import ROWGROUPS, describe, describe_shard, parse
from pipeline.delivery.selecting import Selection, open_part
from pipeline.delivery.versions import find
from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet, Row, write_imageset


@pytest.fixture
def large(tmp_path: Path, make_images) -> ImageSet:
    """300 images of three classes in 30 row groups, their confidence rising from 0.5 to 0.799."""
    return make_images(tmp_path / "large", count=300)


@pytest.fixture
def release(url: str, large: ImageSet, description) -> str:
    publish(open_store(url), "digits", large.root, description=description, documents={})
    return f"{url}/digits"


def described(images: ImageSet) -> bytes:
    """The rowgroups.json of `images`."""
    return describe(describe_shard(images.root / shard.path)[0] for shard in images.shards)


def rows(images: ImageSet) -> list[dict]:
    """What a reader gets, without the encoding of the pixels."""
    pixels, _ = images.arrays("train")
    table = images.table("train").drop_columns(["image"]).to_pylist()
    return [{**row, "pixels": image.tobytes()} for row, image in zip(table, pixels, strict=True)]


def test_of_some_classes_every_row(release: str, large: ImageSet, tmp_path: Path) -> None:
    found = ImageSet.open(pull(release, tmp_path / "dest", selection=Selection(classes=("two", "zero"))))
    found.verify()
    assert found.classes == large.classes
    assert found.counts == {"train": (100, 0, 100)}
    wanted = [row for row in rows(large) if row["label"] in (0, 2)]
    assert sorted(rows(found), key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize("url", ["folder"], indirect=True)
def test_a_selection_has_the_png_bytes_that_were_published(
    url: str, tmp_path: Path, make_images, description, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another encoder has written them, which stores pixels without compressing them."""

    def stored(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, format="PNG", compress_level=0)
        return buffer.getvalue()

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.imageset.png.encode", stored)
        images = make_images(tmp_path / "set")
    publish(open_store(url), "digits", images.root, description=description, documents={})
    found = ImageSet.open(pull(f"{url}/digits", tmp_path / "dest", selection=Selection(classes=("one",))))
    found.verify()
    wanted = [row["image"] for row in images.table("train").to_pylist() if row["label"] == images.classes.index("one")]
    assert sorted(found.table("train")["image"].to_pylist(), key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize("url", ["folder"], indirect=True)
@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["--classes", "dog, big"], {0}),
        (["--classes", "dog, big", "--classes", "cat,owl"], {0, 1, 2}),
        (["--classes", "owl,cat"], {1, 2}),
    ],
)
def test_a_class_may_have_a_comma_in_its_name(
    url: str, tmp_path: Path, make_images, description, words: list[str], labels: set[int]
) -> None:
    images = make_images(tmp_path / "set", classes=("dog, big", "cat", "owl"))
    publish(open_store(url), "pets", images.root, description=description, documents={})
    said = CliRunner().invoke(forgeline, ["pull", f"{url}/pets", str(tmp_path / "dest"), *words])
    assert said.exit_code == 0, said.output
    assert set(ImageSet.open(tmp_path / "dest").arrays("train")[1].tolist()) == labels


def test_the_first_of_each_class(release: str, large: ImageSet, tmp_path: Path) -> None:
    found = ImageSet.open(pull(release, tmp_path / "dest", selection=Selection(per_class=13)))
    assert found.counts == {"train": (13, 13, 13)}
    for label in range(3):
        wanted, taken = ([row for row in rows(images) if row["label"] == label] for images in (large, found))
        assert sorted(taken, key=str) == sorted(wanted[:13], key=str)


def test_those_of_high_confidence(release: str, large: ImageSet, tmp_path: Path) -> None:
    found = ImageSet.open(pull(release, tmp_path / "dest", selection=Selection(min_confidence=0.75)))
    assert {row["index"] for row in rows(found)} == set(range(250, 300))


def test_the_first_of_high_confidence(release: str, large: ImageSet, tmp_path: Path) -> None:
    selection = Selection(classes=("one",), per_class=5, min_confidence=0.601)
    found = ImageSet.open(pull(release, tmp_path / "dest", selection=selection))
    wanted = [row["index"] for row in rows(large) if row["label"] == 1 and row["confidence"] >= 0.601]
    assert sorted(row["index"] for row in rows(found)) == sorted(wanted[:5])


@pytest.mark.parametrize(
    ("selection", "groups"),
    [
        (Selection(classes=("two",)), 10),
        (Selection(per_class=10), 3),
        (Selection(classes=("two",), per_class=25), 3),
        (Selection(min_confidence=0.75), 6),
    ],
)
def test_only_row_groups_that_may_hold_such_images_travel(
    proxy, s3_url: str, large: ImageSet, description, tmp_path: Path, selection: Selection, groups: int
) -> None:
    """Counted where the requests pass: of 30 row groups, each asked for once, and its footer."""
    publish(open_store(s3_url), "digits", large.root, description=description, documents={})
    ranges: list[tuple[int, int]] = []

    def note(number: int, method: str, path: str, headers: dict[str, str]) -> None:
        if path.endswith(".parquet"):
            start, stop = headers["range"].removeprefix("bytes=").split("-")
            ranges.append((int(start), int(stop)))

    proxy.fault = note
    pull(f"{s3_url}/digits", tmp_path / "dest", selection=selection)
    assert sum(start == 0 for start, _ in ranges) == groups
    sizes = [shard.bytes for shard in large.shards]
    assert sum(stop + 1 - start for start, stop in ranges) <= groups * max(sizes)


@pytest.mark.parametrize("least", [0.9, 0.99, 0.999])
def test_what_travels_by_confidence_is_little_more_than_what_is_asked_for(
    url: str, tmp_path: Path, description, least: float
) -> None:
    """Of confidences in the order in which samples come, most of them close to 1."""
    random = np.random.default_rng(0)
    confidences = np.maximum(0.5, 1 - random.exponential(0.02, 3000))
    images = (
        Row(
            split="train",
            label=index % 3,
            image=random.integers(0, 256, (1, 4, 4), np.uint8),
            path=f"{index}",
            provenance={"confidence": float(confidence)},
        )
        for index, confidence in enumerate(confidences)
    )
    write_imageset(tmp_path / "set", images, classes=["a", "b", "c"], source={}, resize=None, synthetic=True)
    publish(open_store(url), "sure", tmp_path / "set", description=description, documents={})
    with TemporaryDirectory(dir=tmp_path) as folder:
        part = open_part(find(f"{url}/sure"), Path(folder))
    asked = sum(group.rows for _, group in part.plan(Selection(min_confidence=least)))
    wanted = (confidences >= least).sum()
    assert wanted <= asked <= wanted + 3 * 100  # at most one more group of each class
    found = ImageSet.open(pull(f"{url}/sure", tmp_path / "dest", selection=Selection(min_confidence=least)))
    assert sum(found.counts["train"]) == wanted


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(classes=("tow",)), "'tow' is not a class of this release; did you mean 'two'"),
        (Selection(classes=("one,tow",)), "'tow' is not a class of this release; did you mean 'two'"),
        (Selection(min_confidence=0.9), r"has no image of confidence 0\.9; the surest has 0\.\d+$"),
    ],
)
def test_what_cannot_be_selected_is_said(release: str, tmp_path: Path, selection: Selection, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pull(release, tmp_path / "dest", selection=selection)
    assert not (tmp_path / "dest").exists()


def test_a_class_without_images_is_said(tmp_path: Path, make_images, description) -> None:
    images = make_images(tmp_path / "set", classes=("zero", "one", "none"), count=2)
    publish(open_store(str(tmp_path / "store")), "digits", images.root, description=description, documents={})
    with pytest.raises(UserError, match="has no image of these classes"):
        pull(f"{tmp_path}/store/digits", tmp_path / "dest", selection=Selection(classes=("none",), min_confidence=0.5))


def disk(room: int) -> Callable[[Path], SimpleNamespace]:
    """The usage of one that has `room`, less what is in the folder that is asked about."""
    return lambda folder: SimpleNamespace(free=room - sum(file.stat().st_blocks * 512 for file in folder.rglob("*.*")))


@pytest.mark.parametrize("url", ["folder"], indirect=True)
@pytest.mark.parametrize(
    ("selection", "groups"),
    [
        (Selection(min_confidence=0.5, per_class=5), 3),  # all 30 groups may hold such images, the first ones do
        (Selection(per_class=15), 6),
        (Selection(min_confidence=0.75), 6),
    ],
)
def test_a_disk_that_suffices_is_not_refused(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: Selection, groups: int
) -> None:
    """One with room for the row groups that must be fetched, and half as much again for the selected of their rows."""
    with TemporaryDirectory(dir=tmp_path) as folder:
        shards = open_part(find(release), Path(folder)).shards
    most = max(group.span.bytes for shard in shards for group in shard.groups)
    monkeypatch.setattr(shutil, "disk_usage", disk(groups * most * 3 // 2))
    assert ImageSet.open(pull(release, tmp_path / "dest", selection=selection)).counts
    monkeypatch.setattr(shutil, "disk_usage", disk(groups * most // 2))
    with pytest.raises(FailedError, match="bytes free; needed"):
        pull(release, tmp_path / "small", selection=selection)


def test_a_wrong_byte_in_a_row_group_is_noticed(release: str, url: str, large: ImageSet, tmp_path: Path) -> None:
    version, store = find(release), open_store(url)
    key = version.key(large.shards[4].path)
    data = bytearray(b"".join(store.chunks(key)))
    data[100] ^= 1
    store.delete(key)
    store.create(key, bytes(data))
    with pytest.raises(FailedError, match=f"{large.shards[4].path}: bytes 0 to .* are not as published"):
        pull(release, tmp_path / "dest", selection=Selection(classes=(large.classes[4 % 3],)))
    assert not list(tmp_path.glob("*dest*"))


def test_a_selection_goes_on_where_it_was(proxy, s3_url: str, large: ImageSet, description, tmp_path: Path) -> None:
    publish(open_store(s3_url), "digits", large.root, description=description, documents={})
    last = large.shards[-1].path
    proxy.fault = lambda number, method, path, headers: "drop" if path.endswith(last) else None
    selection = Selection(classes=large.classes)
    with pytest.raises(FailedError, match="did not answer"):
        pull(f"{s3_url}/digits", tmp_path / "dest", selection=selection)
    proxy.fault = lambda *_: None
    proxy.log.clear()
    found = ImageSet.open(pull(f"{s3_url}/digits", tmp_path / "dest", selection=selection))
    assert sorted(rows(found), key=str) == sorted(rows(large), key=str)
    asked = {path.rpartition("/")[2] for _, path in proxy.log if path.endswith(".parquet")}
    assert asked == {last}


def test_rowgroups_are_the_whole_file(images: ImageSet) -> None:
    manifest = type("Listed", (), {"files": images.shards})
    shards = parse(described(images), "x", manifest, images)
    for shard in shards:
        spans = [*(group.span for group in shard.groups), shard.footer]
        assert sum(span.bytes for span in spans) == shard.shard.bytes
        assert spans[0].offset == 0
    labels = [label for shard in shards for group in shard.groups for label in [group.label] * group.rows]
    np.testing.assert_array_equal(labels, images.table("train")["label"].to_numpy())


def change(content: dict, how: str) -> None:
    shard = content["shards"][0]
    group = shard["groups"][0]
    match how:
        case "gap":
            shard["footer"]["offset"] += 1
        case "large":
            group["bytes"] += 2 << 20
        case "elsewhere":
            group["offset"] = -1
        case "beyond":
            shard["footer"]["bytes"] += 1
        case "rows":
            group["rows"] += 1
        case "class":
            group["label"] = 3
        case "path":
            shard["path"] = "../x"
        case "confidence":
            group["confidence"] = "high"
        case "type":
            group["bytes"] = True
        case "shards":
            content["shards"] = [1]


def in_lines(content: dict) -> bytes:
    """The rowgroups.json of that content, as `describe` writes it."""
    return describe(
        json.dumps({**shard, "groups": []})[:-2] + "\n" + ",\n".join(map(json.dumps, shard["groups"])) + "\n]}"
        if isinstance(shard, dict)
        else json.dumps(shard)
        for shard in content["shards"]
    )


@pytest.mark.parametrize(
    "how", ["large", "gap", "elsewhere", "beyond", "rows", "class", "path", "confidence", "type", "shards"]
)
def test_rowgroups_that_lie_are_refused(images: ImageSet, how: str) -> None:
    content = json.loads(described(images))
    assert in_lines(content) == described(images)
    change(content, how)
    with pytest.raises(FailedError, match=r"^rowgroups\.json: "):
        parse(in_lines(content), ROWGROUPS, type("Listed", (), {"files": images.shards}), images)


def test_a_footer_that_is_larger_than_its_groups_need_is_not_read(images: ImageSet) -> None:
    content = json.loads(described(images))
    content["shards"][0]["footer"]["bytes"] = 10_000_000
    with pytest.raises(FailedError, match="footer has 10,000,000 bytes; needed at most"):
        parse(in_lines(content), ROWGROUPS, type("Listed", (), {"files": images.shards}), images)
