from __future__ import annotations

import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import FailedError, UserError
from pipeline.imageset import ImageSet
from pipeline.imageset.layout import content_hash
from pipeline.params import Document
from pipeline.sources.source import Split
from pipeline.stages import ingest, source
from pipeline.stages.ingest import split_by_content

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
REAL = Path("out/real")


# Splits


def hashes(count: int, salt: str = "") -> list[str]:
    return [hashlib.sha256(f"{salt}{index}".encode()).hexdigest() for index in range(count)]


def split(
    contents: Sequence[str],
    labels: Sequence[int] | None = None,
    hints: Sequence[Split | None] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
) -> list[Split]:
    count = len(contents)
    return split_by_content(
        contents, labels or [0] * count, hints or [None] * count, validation_fraction=validation, test_fraction=test
    )


rows = st.lists(
    st.tuples(
        st.integers(0, 30).map(lambda index: hashes(31)[index]),
        st.integers(0, 3),
        st.sampled_from([None, "train", "validation", "test"]),
    ),
    min_size=1,
    max_size=80,
)


@given(rows)
def test_copies_never_stand_on_both_sides(found: list[tuple[str, int, Split | None]]) -> None:
    contents, labels, hints = map(list, zip(*found, strict=True))
    sides = defaultdict(set)
    for content, side in zip(contents, split(contents, labels, hints), strict=True):
        sides[content].add(side)
    assert all(len(side) == 1 for side in sides.values())


@given(rows)
def test_what_the_source_tests_with_is_never_trained_on(found: list[tuple[str, int, Split | None]]) -> None:
    contents, labels, hints = map(list, zip(*found, strict=True))
    tested = {content for content, _, hint in found if hint == "test"}
    held = tested | {content for content, _, hint in found if hint == "validation"}
    for content, side in zip(contents, split(contents, labels, hints), strict=True):
        assert side == "test" if content in tested else side == "validation" if content in held else True
        if "test" in hints and content not in tested:
            assert side != "test"
        if "validation" in hints and content not in held:
            assert side != "validation"


@given(rows, st.randoms())
def test_the_order_of_the_images_changes_nothing(found: list[tuple[str, int, Split | None]], random: Any) -> None:
    def sides(rows: list[tuple[str, int, Split | None]]) -> dict[str, Split]:
        contents, labels, hints = map(list, zip(*rows, strict=True))
        return dict(zip(contents, split(contents, labels, hints), strict=True))

    shuffled = random.sample(found, len(found))
    assert sides(shuffled) == sides(found)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.floats(0.01, 0.5), st.floats(0.01, 0.4), st.integers())
def test_every_class_of_two_or_more_is_trained_on_and_tested_with(
    sizes: list[int], test: float, validation: float, salt: int
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    sides = split(hashes(len(labels), str(salt)), labels, validation=validation, test=test)
    for label, size in enumerate(sizes):
        found = {side for side, its in zip(sides, labels, strict=True) if its == label}
        needed = {"train"} if size == 1 else {"train", "test"} if size == 2 else set(SPLITS)
        assert needed <= found


def test_shares_are_as_asked_for() -> None:
    sides = split(hashes(20_000), validation=0.1, test=0.3)
    assert sides.count("test") / 20_000 == pytest.approx(0.3, abs=0.01)
    assert sides.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)


@given(st.integers(0, 2000))
def test_images_stay_where_they_are_when_others_come(more: int) -> None:
    contents = hashes(500)
    assert split(contents + hashes(more, "more"))[:500] == split(contents)


@given(st.integers(2, 6), st.integers(0, 6), st.integers(0, 1000))
def test_what_has_trained_is_not_tested_with_when_a_small_class_grows(few: int, more: int, salt: int) -> None:
    contents = hashes(few + more, str(salt))
    before, after = split(contents[:few]), split(contents)
    of_many = split(contents + hashes(500, f"{salt} more"))  # by their hashes alone
    for early, late, by_hash in zip(before, after, of_many, strict=False):
        assert (early, late) != ("train", "test") or by_hash == "test"


def test_official_training_images_give_the_validation_images() -> None:
    hints: list[Split | None] = ["train"] * 5000 + ["test"] * 1000
    sides = split(hashes(6000), hints=hints, validation=0.1)
    assert sides[5000:] == ["test"] * 1000
    assert set(sides[:5000]) == {"train", "validation"}
    assert sides.count("validation") == pytest.approx(500, abs=60)


def test_a_source_of_training_images_only_has_its_test_images_carved() -> None:
    assert split(hashes(1000), hints=["train"] * 1000) == split(hashes(1000))


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_part_of_the_training_images_is_in_a_larger_one(one: float, other: float) -> None:
    contents = hashes(300)
    images = [
        ingest.Image(path=str(index), label=index % 7, split=None, content=content, width=1, height=1, mode="L")
        for index, content in enumerate(contents)
    ]
    sides = split(contents, [image.label for image in images])
    small, large = (set(ingest.keep(images, sides, fraction)) for fraction in sorted((one, other)))
    assert small <= large
    assert {index for index, side in enumerate(sides) if side != "train"} <= small


# The stage


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve random pictures, 12 × 10, of each of two classes."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(12):
            Image.fromarray(generator.integers(0, 256, (10, 12, 3), np.uint8)).save(root / name / f"{index}.png")
    return root


def run(url: Path | str, **settings: Any) -> ImageSet:
    document = Document(
        {"source": {"kind": "images", "url": str(url)}, "ingest": {"image_size": 8, "channels": 3} | settings}
    )
    source.run(document)
    ingest.run(document)
    return ImageSet.open(REAL / "imageset")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_becomes_an_imageset_a_manifest_and_a_list(photos: Path) -> None:
    imageset = run(photos)
    imageset.verify()
    assert imageset.classes == ("cat", "dog")
    assert (imageset.channels, imageset.image_size, imageset.resize) == (3, 8, "lanczos")
    assert dict(imageset.source) == {"kind": "images", "licence": "unknown", "description": ""}
    assert np.sum(list(imageset.counts.values())) == 24
    assert not imageset.synthetic
    manifest = pq.read_table(REAL / "manifest.parquet").to_pylist()
    assert len(manifest) == 24
    assert {(row["width"], row["height"], row["mode"]) for row in manifest} == {(12, 10, "RGB")}
    assert {row["path"] for row in manifest} == set(files(photos))
    assert all(row["path"].startswith(row["class_name"]) for row in manifest)
    assert json.loads((REAL / "quarantine.json").read_bytes()) == {"images": 24, "bad": {}, "harmless": {}}


def test_the_content_column_is_the_hash_of_the_pixels(photos: Path) -> None:
    imageset = run(photos)
    images, _ = imageset.arrays("train")
    contents = imageset.table("train", ["content"])["content"].to_pylist()
    assert contents == [content_hash(image) for image in images]


def test_pictures_of_the_right_size_are_not_resampled(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), 40 * index + len(name) + (name == "dog")).save(
                tmp_path / "set" / name / f"{index}.png"
            )
    assert run(tmp_path / "set", channels=1).resize is None


def test_a_second_time_gives_the_same_bytes(photos: Path) -> None:
    run(photos)
    before = files(REAL)
    shutil.rmtree(REAL)
    run(photos)
    assert files(REAL) == before


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_gives_the_fingerprint_of_its_folder(photos: Path, tmp_path: Path, kind: str) -> None:
    expected = run(photos).fingerprint
    assert run(shutil.make_archive(str(tmp_path / "set"), kind, photos)).fingerprint == expected


def test_parquet_gives_back_the_imageset_that_it_is(photos: Path, tmp_path: Path) -> None:
    first = run(photos)
    shutil.copytree(REAL / "imageset", tmp_path / "set")
    document = Document(
        {"source": {"kind": "parquet", "url": str(tmp_path / "set")}, "ingest": {"image_size": 8, "channels": 3}}
    )
    source.run(document)
    ingest.run(document)
    second = ImageSet.open(REAL / "imageset")
    assert (second.classes, second.counts, second.resize) == (first.classes, first.counts, None)
    for side in SPLITS:
        assert sorted(second.table(side)["content"].to_pylist()) == sorted(first.table(side)["content"].to_pylist())


def test_copies_in_a_folder_are_on_one_side(photos: Path) -> None:
    for path in list(photos.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    imageset = run(photos)
    sides = {side: set(imageset.table(side)["content"].to_pylist()) for side in imageset.counts}
    assert sum(map(len, sides.values())) == len(set.union(*sides.values())) == 24


def test_a_copy_of_a_test_image_is_not_trained_on(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("train/cat", "test/cat"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(6):
            Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "set" / name / f"{index}.png")
    # the same pixels in other bytes
    Image.open(tmp_path / "set/test/cat/0.png").save(tmp_path / "set/train/cat/leak.bmp")
    imageset = run(tmp_path / "set", channels=1)
    paths = {
        side: {row["path"] for row in imageset.table(side, ["image.path"])["image"].to_pylist()} for side in SPLITS
    }
    assert paths["test"] == {f"test/cat/{index}.png" for index in range(6)} | {"train/cat/leak.bmp"}
    assert len(paths["train"] | paths["validation"]) == 6


def test_the_part_that_is_trained_on_leaves_the_others_alone(photos: Path) -> None:
    whole = run(photos)
    part = run(photos, train_fraction=0.5)
    assert {side: counts for side, counts in part.counts.items() if side != "train"} == {
        side: counts for side, counts in whole.counts.items() if side != "train"
    }
    assert part.counts["train"] == tuple(-(-count // 2) for count in whole.counts["train"])


def test_a_rare_class_is_a_part_of_what_it_was_and_is_tested_whole(photos: Path) -> None:
    def contents(**settings: Any) -> dict[tuple[str, int], set[str]]:
        imageset, found = run(photos, **settings), defaultdict(set)
        for side in SPLITS:
            for row in imageset.table(side, ["label", "content"]).to_pylist():
                found[side, row["label"]].add(row["content"])
        return found

    whole, half = contents(), contents(train_fraction=0.5)
    rare, rarer = (contents(class_counts={"dog": count}, train_fraction=0.5) for count in (3, 2))
    assert [len(each["train", 1]) for each in (rare, rarer)] == [3, 2]
    assert rarer["train", 1] < rare["train", 1] < whole["train", 1]
    assert rare["train", 0] == half["train", 0]
    assert all(rare[key] == whole[key] for key in whole if key[0] != "train")


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"dgo": 2}, "ingest.class_counts.dgo names no class; did you mean 'dog'?"),
        ({"dog": 11}, "ingest.class_counts.dog is 11; needed at most {}, its training images"),
    ],
)
def test_counts_that_cannot_be_are_named(photos: Path, counts: dict[str, int], sentence: str) -> None:
    most = run(photos).counts["train"][1]
    with pytest.raises(UserError) as error:
        run(photos, class_counts=counts)
    assert str(error.value) == f"params.yaml: {sentence.format(most)}"


BAD: dict[str, Callable[[Path], object]] = {
    "cat/cut.jpg": lambda path: (
        Image.radial_gradient("L").save(path),
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    ),
    "cat/text.png": lambda path: path.write_text("no picture"),
    "dog/zero.png": lambda path: path.write_bytes(b""),
    "dog/bomb.png": lambda path: Image.new("1", (50_000, 1_000)).save(path),
}
REASONS = {
    "cat/cut.jpg": "is a damaged JPEG picture (image file is truncated",
    "cat/text.png": "is no picture that can be read",
    "dog/zero.png": "is 0 bytes long",
    "dog/bomb.png": "is 50,000×1,000 pixels by its header; needed at most 40,000,000 in all (of a source: "
    "ingest.max_pixels)",
}


@pytest.fixture
def spoilt(photos: Path) -> Path:
    for name, spoil in BAD.items():
        spoil(photos / name)
    (photos / "README.md").write_text("Photos")
    return photos


def test_bad_files_are_left_out_with_their_reasons(spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imageset = run(spoilt, max_bad_fraction=0.2)
    assert capsys.readouterr().out == (
        "ingest: left out 4 bad files and 1 that are text; out/real/quarantine.json says why\n"
    )
    assert sum(map(sum, imageset.counts.values())) == 24
    listed = json.loads((REAL / "quarantine.json").read_bytes())
    assert listed["images"] == 24
    assert listed["bad"].keys() == BAD.keys()
    for name, reason in REASONS.items():
        assert listed["bad"][name].startswith(reason)
    assert listed["harmless"] == {"README.md": "is a text file"}


def test_too_many_bad_files_fail_and_are_listed(spoilt: Path) -> None:
    with pytest.raises(FailedError) as error:
        run(spoilt, max_bad_fraction=0.1)
    assert re.sub(r"\d bytes", "some bytes", str(error.value)) == (
        f"{spoilt}: 4 of 28 files (14.3%) are bad, ingest.max_bad_fraction is 0.1: "
        "cat/cut.jpg is a damaged JPEG picture (image file is truncated (some bytes not processed)); "
        "cat/text.png is no picture that can be read (PNG, JPEG, GIF, BMP, TIFF, WEBP, PPM); "
        "dog/bomb.png is 50,000×1,000 pixels by its header; needed at most 40,000,000 in all (of a source: "
        "ingest.max_pixels); "
        "out/quarantine.json lists all of them"
    )
    assert json.loads(Path("out/quarantine.json").read_bytes())["bad"].keys() == BAD.keys()
    assert {path.name for path in Path("out").iterdir()} == {"inventory.json", "quarantine.json"}


def test_a_failure_leaves_what_was_there(photos: Path, spoilt: Path) -> None:
    run(spoilt, max_bad_fraction=0.2)
    before = files(REAL)
    with pytest.raises(FailedError):
        run(spoilt, max_bad_fraction=0)
    assert files(REAL) == before
    run(spoilt, max_bad_fraction=0.2)
    assert not Path("out/quarantine.json").exists()


def test_bad_files_at_the_tolerance_are_tolerated(photos: Path) -> None:
    (photos / "cat" / "zero.png").write_bytes(b"")
    run(photos, max_bad_fraction=1 / 25)
    with pytest.raises(FailedError, match=r"1 of 25 files \(4\.0%\) are bad"):
        run(photos, max_bad_fraction=1 / 26)


def test_a_class_with_one_image_is_named(photos: Path) -> None:
    (photos / "eel").mkdir()
    Image.new("L", (8, 8)).save(photos / "eel" / "1.png")
    with pytest.raises(UserError) as error:
        run(photos)
    assert str(error.value) == (
        f"{photos}: class 'eel' has no image in test, of 1 in all; needed at least one to train on and another one to "
        "test with"
    )
    assert not REAL.exists()


def test_a_class_whose_images_are_all_bad_is_named(photos: Path) -> None:
    (photos / "eel").mkdir()
    (photos / "eel" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="class 'eel' has no image in train, of 0 in all; needed"):
        run(photos, max_bad_fraction=0.5)


def test_a_set_too_small_for_validation_is_named(tmp_path: Path) -> None:
    for shade, name in enumerate(("cat/1", "cat/2", "dog/1", "dog/2")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade).save(tmp_path / "set" / f"{name}.png")
    with pytest.raises(UserError, match=r"/set: no image is left for validation; needed a class of at least three"):
        run(tmp_path / "set")


def test_a_class_missing_from_official_test_images_is_named(photos: Path) -> None:
    for name in ("cat", "dog"):
        (photos / "train").mkdir(exist_ok=True)
        (photos / name).rename(photos / "train" / name)
    (photos / "test" / "cat").mkdir(parents=True)
    (photos / "train/cat/0.png").rename(photos / "test/cat/0.png")
    with pytest.raises(UserError, match=r"class 'dog' has no image in test, of 12 in all; needed at least one"):
        run(photos)


def test_a_source_without_any_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"/set: has no images; needed some of each class"):
        run(tmp_path / "set", max_bad_fraction=1)


def test_a_file_that_changes_after_the_inventory_is_named(photos: Path) -> None:
    document = Document({"source": {"kind": "images", "url": str(photos)}, "ingest": {"image_size": 8}})
    source.run(document)
    shutil.copy(photos / "cat/1.png", photos / "cat/0.png")
    with pytest.raises(FailedError, match=r"photos/cat/0\.png: changed after its inventory was taken; run again"):
        ingest.run(document)
    assert not REAL.exists()


def test_an_inventory_of_another_source_or_none_is_named(photos: Path) -> None:
    document = Document({"source": {"kind": "images", "url": str(photos)}, "ingest": {"image_size": 8}})
    with pytest.raises(UserError, match=r"^out/inventory\.json: is not there; needed 'forgeline stage source' before$"):
        ingest.run(document)
    source.run(Document({"source": {"kind": "digits"}}))
    with pytest.raises(UserError, match=r"^out/inventory\.json: is of kind 'digits', source\.kind is 'images'; needed"):
        ingest.run(document)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_what_is_no_inventory_is_named(photos: Path, content: str) -> None:
    Path("out").mkdir()
    Path("out/inventory.json").write_text(content)
    with pytest.raises(
        UserError, match=r"^out/inventory\.json: is not an inventory; needed 'forgeline stage source' a"
    ):
        ingest.run(Document({"source": {"kind": "images", "url": str(photos)}, "ingest": {"image_size": 8}}))


def test_a_class_name_that_no_figure_can_show_is_named(photos: Path) -> None:
    (photos / "cat").rename(photos / "cat\n")
    with pytest.raises(UserError, match=r": the class name 'cat\\n' has a control character; needed one without$"):
        run(photos)


def test_an_empty_class_name_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"", b""], "label": ["", "a"]}), tmp_path / "train.parquet")
    document = Document({"source": {"kind": "parquet", "url": str(tmp_path)}, "ingest": {"image_size": 8}})
    source.run(document)
    with pytest.raises(UserError, match=r": classes is \['', 'a'\]; needed one or more different names$"):
        ingest.run(document)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image_size": 0}, "ingest.image_size is 0; needed 1 to 4096"),
        ({"image_size": 5000}, "ingest.image_size is 5000; needed 1 to 4096"),
        ({"image_size": 8, "channels": 4}, "ingest.channels is 4; needed one of 1, 3"),
        ({"image_size": 8, "channels": 1.0}, "ingest.channels is 1.0; needed one of 1, 3"),
        ({"image_size": 8, "test_fraction": 0}, "ingest.test_fraction is 0.0; needed between 0 and 1"),
        (
            {"image_size": 8, "test_fraction": 0.5, "validation_fraction": 0.5},
            "ingest.validation_fraction is 0.5; needed above 0, and with test_fraction 0.5 less than 1",
        ),
        ({"image_size": 8, "train_fraction": 0}, "ingest.train_fraction is 0.0; needed above 0 and at most 1"),
        ({"image_size": 8, "class_counts": {"8": 0}}, "ingest.class_counts.8 is 0; needed at least 1"),
        ({"image_size": 8, "max_bad_fraction": 5}, "ingest.max_bad_fraction is 5.0; needed 0 to 1"),
        ({"image_size": 8, "max_pixels": 0}, "ingest.max_pixels is 0; needed at least 1"),
        ({"image_sise": 8}, "ingest.image_sise is not a setting; did you mean 'image_size'?"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        ingest.read_params(Document({"source": {"kind": "digits"}, "ingest": settings}))
    assert str(error.value) == f"params.yaml: {sentence}"


def test_the_digits_of_the_demo_are_ingested() -> None:
    document = Document(
        {"source": {"kind": "digits"}, "ingest": {"image_size": 8, "channels": 1, "test_fraction": 0.3}}
    )
    source.run(document)
    ingest.run(document)
    imageset = ImageSet.open(REAL / "imageset")
    assert sum(map(sum, imageset.counts.values())) == 1797
    assert min(min(counts) for counts in imageset.counts.values()) >= 10
    assert imageset.resize is None


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(photos: Path) -> None:
    document = {"source": {"kind": "images", "url": str(photos)}, "ingest": {"image_size": 256}}
    source.run(Document(document))
    Path("params.yaml").write_text(json.dumps(document))
    Path("dvc.yaml").write_text("stages: {ingest: {cmd: forgeline stage ingest}}")
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "stage", "ingest"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "forgeline: out: cannot be written (File too large)"
    assert [path.name for path in Path("out").iterdir()] == ["inventory.json"]
