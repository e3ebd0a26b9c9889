"""`forgeline evaluate`: as torch-fidelity's own command line, of any two sets; what does not fit is told."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import paths
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.imageset import Row, write_imageset
from pipeline.imageset.files import sha256_file
from pipeline.metrics.classifier import Classifier, embed, save
from pipeline.metrics.extractors import Settings
from pipeline.metrics.fidelity import fidelity, with_spread
from pipeline.metrics.judges import EXTRACTOR, FILTER, INDEX, JUDGES, Judges
from pipeline.report.against import compare

IN_DOMAIN = Settings()
MEASURES = ["in_domain", "in_domain_spread", "in_domain_at_floor", "in_domain_floor", "in_domain_floor_spread"]


def blobs(count: int, seed: int, *, channels: int = 3, size: int = 8) -> np.ndarray:
    """Noise around one level for each image and channel."""
    random = np.random.default_rng(seed)
    level = random.integers(20, 200, (count, channels, 1, 1))
    return (level + random.integers(0, 50, (count, channels, size, size))).astype(np.uint8)


def write(folder: Path, images: np.ndarray) -> str:
    """A PNG of each."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return str(folder)


def write_set(root: Path, **splits: np.ndarray) -> str:
    rows = [
        Row(split=split, label=0, image=image, path=f"{split}-{number}.png", provenance={})
        for split, images in splits.items()
        for number, image in enumerate(images)
    ]
    write_imageset(root, rows, classes=("blob",), source={"kind": "made up"}, resize=None, synthetic=False)
    return str(root)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Outside of a DVC repository, with the judges of 8×8 RGB images in out/features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "dvc_cache", lambda: None)
    paths.FEATURES.mkdir(parents=True)
    torch.manual_seed(0)
    one = Classifier(channels=3, image_size=8, classes=3, width=8).eval()
    about = {file: {"sha256": save(one, paths.FEATURES / file)} for file in (EXTRACTOR, FILTER, *JUDGES)}
    (paths.FEATURES / INDEX).write_text(json.dumps({"classifiers": about}))
    return tmp_path


def measure(generated: str, real: str, **settings: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"settings": IN_DOMAIN, "split": None, "max_images": 1000, "seed": 2}
    return compare(generated, real, **given | settings)


def embedded(images: np.ndarray) -> np.ndarray:
    return embed(Judges.load(paths.FEATURES).extractor, images)


@pytest.fixture
def sides(workspace: Path) -> tuple[str, str]:
    return write(workspace / "made", blobs(90, 1)), write(workspace / "real", blobs(80, 2))


def test_equals_the_command_line_of_torch_fidelity(
    sides: tuple[str, str],
    inception_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of the same files, in features of Inception's first layer, which are few."""
    from torch_fidelity import fidelity as theirs

    weights = str(inception_weights)
    words = "--cpu --json --silent --fid --kid --prc --no-cache --rng-seed 2 --kid-subset-size 40 --save-cpu-ram"
    words += f" --input1 {sides[0]} --input2 {sides[1]} --feature-extractor inception-v3-compat"
    words += "".join(f" --feature-layer-{metric} 64" for metric in ("fid", "kid", "prc"))
    command = ["fidelity", *words.split(), "--feature-extractor-weights-path", weights]
    monkeypatch.setattr(sys, "argv", command)
    theirs.main()
    needed = json.loads(capfd.readouterr().out)
    settings = Settings(
        extractor="inception-v3-compat", layer=64, weights=weights, weights_sha256=sha256_file(Path(weights))
    )
    found = measure(*sides, settings=settings)
    ours = found["inception_64"]
    assert ours["fid"] == pytest.approx(needed["frechet_inception_distance"], rel=1e-6, abs=1e-6)
    assert ours["kid"] == pytest.approx(needed["kernel_inception_distance_mean"], rel=1e-6, abs=1e-6)
    assert ours["precision"] == pytest.approx(needed["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(needed["recall"], abs=1e-6)
    assert 0 < ours["recall"] < 1
    assert min(ours["fid"], ours["kid"]) > 1e-4  # so that what agrees is not nothing
    (protocol,) = found["protocol"]
    assert protocol["extractor_sha256"] == settings.weights_sha256
    assert "layer 64" in protocol["extractor"]


def test_folder_archive_and_imageset_of_the_same_images_give_the_same_numbers(
    sides: tuple[str, str], workspace: Path
) -> None:
    expected, _ = with_spread(embedded(blobs(90, 1)), embedded(blobs(80, 2)), seed=2)
    archive = shutil.make_archive(str(workspace / "packed"), "zip", sides[0])
    imageset = write_set(workspace / "set", train=blobs(90, 1))
    splits = write_set(workspace / "splits", train=blobs(40, 9), test=blobs(80, 2))
    assert measure(archive, sides[1])["in_domain"] == measure(*sides)["in_domain"]
    for generated, real, split in (
        (*sides, None),
        (imageset, sides[1], None),
        (sides[0], splits, "test"),
    ):
        found = measure(generated, real, split=split)["in_domain"]
        del found["kid"]  # its subsets are drawn by place, and files and ImageSets have an order of their own
        assert found == pytest.approx({name: value for name, value in expected.items() if name != "kid"}, rel=1e-9)
    (protocol,) = measure(imageset, splits, split="test")["protocol"]
    assert protocol["measures"] == [*MEASURES, "class_shares"]
    assert "decoded" not in protocol
    assert protocol["generated"].startswith(f"90 images of {imageset} (")
    assert protocol["real"].startswith(f"80 images of {splits} (")
    assert protocol["real"].endswith(", resize none), split test")
    assert protocol["images"] == "8×8 RGB"


def test_the_floor_is_one_half_of_the_real_images_to_the_other(sides: tuple[str, str], workspace: Path) -> None:
    found = measure(*sides)
    real, made = embedded(blobs(80, 2)), embedded(blobs(90, 1))
    random = np.random.Generator(np.random.Philox(2))
    rows = random.permutation(80)
    some, others = real[np.sort(rows[:40])], real[np.sort(rows[40:])]
    floor, spread = with_spread(some, others, seed=2)
    assert found["in_domain_floor"] == pytest.approx(floor, rel=1e-9)
    assert found["in_domain_floor_spread"] == pytest.approx(spread, rel=1e-9)
    drawn = made[np.sort(random.permutation(90)[:40])]
    assert found["in_domain_at_floor"] == pytest.approx(fidelity(drawn, others, seed=2), rel=1e-9)
    assert found["protocol"][0]["floor"] == (
        "40 real images in the place of the generated ones, to 40 others of the same; in_domain_at_floor: 40 generated "
        "ones to these 40"
    )
    assert measure(*sides) == found  # the floor as it was kept


def test_images_of_the_same_kind_reach_the_floor_and_others_do_not(workspace: Path) -> None:
    real = write(workspace / "real", blobs(400, 2))
    same, darker = write(workspace / "same", blobs(400, 1)), write(workspace / "darker", blobs(400, 1) // 2)
    found = {name: measure(path, real) for name, path in (("same", same), ("darker", darker))}
    floor, error = (found["same"][f"in_domain_{name}"]["fid"] for name in ("floor", "floor_spread"))
    assert found["same"]["in_domain_at_floor"]["fid"] == pytest.approx(floor, abs=5 * error)
    assert found["darker"]["in_domain_at_floor"]["fid"] > floor + 10 * error


def test_where_half_of_the_real_images_is_too_few_there_is_no_floor(sides: tuple[str, str], workspace: Path) -> None:
    few = write(workspace / "few", blobs(30, 2))
    found = measure(sides[0], few)
    assert found["protocol"][0]["measures"] == MEASURES[:2]
    assert (
        found["protocol"][0]["floor"] == "none: 15 images, half of the real ones, are not more than the 16 dimensions"
    )


def test_a_partial_set_has_nothing_of_the_classes_that_it_lacks(workspace: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        write(workspace / "real" / name, blobs(30, seed))
    write(workspace / "made" / "b", blobs(40, 4))
    found = measure("made", "real")
    assert found["class_shares"] == {"a": 0, "b": 1, "c": 0}
    assert found["protocol"][0]["classes"] == "3 of real; without an image in made: 'a', 'c'"
    assert "class_shares" in found["protocol"][0]["measures"]
    assert measure("real", "real")["class_shares"] == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    flat = write(workspace / "flat", blobs(40, 5))
    assert "class_shares" not in measure(flat, "real")  # which names no classes


def test_transparent_pictures_lie_on_white_and_the_protocol_says_that_torch_fidelity_has_them_otherwise(
    sides: tuple[str, str], workspace: Path
) -> None:
    random = np.random.default_rng(0)
    for folder in ("clear", "white"):
        (workspace / folder).mkdir()
    for number, image in enumerate(blobs(40, 3)):
        alpha = random.choice([0, 255], (8, 8, 1)).astype(np.uint8)
        pixels = image.transpose(1, 2, 0)
        Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(workspace / "clear" / f"{number}.png")
        Image.fromarray(np.where(alpha == 0, 255, pixels).astype(np.uint8)).save(workspace / "white" / f"{number}.png")
    found = measure("clear", sides[1])
    assert found["in_domain"] == measure("white", sides[1])["in_domain"]
    assert found["protocol"][0]["decoded"] == (
        "upright by EXIF, transparency over white, 16 bits scaled to 8; torch-fidelity's own reader does none of these"
    )


def test_of_many_images_some_are_drawn_whatever_holds_them(workspace: Path) -> None:
    images = blobs(300, 3)
    for path in (write(workspace / "all", images), write_set(workspace / "set", train=images[:100], test=images[100:])):
        found = measure(path, path, max_images=50)
        assert found["in_domain"]["fid"] == pytest.approx(0, abs=1e-6)
        assert found["protocol"][0]["real"].startswith(f"50 of 300 images of {path}")


def test_folders_of_splits_and_classes_and_what_lies_beside_pictures(workspace: Path) -> None:
    for name, seed in (("train/a", 1), ("train/b", 2), ("test/a", 3), ("test/b", 4)):
        write(workspace / "data" / name, blobs(30, seed))
    (workspace / "data" / "README.md").write_text("of blobs")
    whole = measure("data", "data")["protocol"][0]
    assert whole["real"] == "120 images of data (each as it is, nothing resized)"
    assert measure("data", "data", split="test")["protocol"][0]["real"].startswith("60 images of data (")


def test_grayscale_saved_as_rgb_is_grayscale(workspace: Path) -> None:
    gray = blobs(30, 1, channels=1)
    write(workspace / "gray", gray)
    write(workspace / "colours", np.repeat(gray, 3, axis=1))
    with pytest.raises(UserError, match=r"^out/features: its extractor takes images of 8×8 RGB; found 8×8 grayscale$"):
        measure("colours", "gray")


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (
            lambda: write(Path("other"), blobs(30, 1, size=16)),
            r"^other: its images are 16×16 RGB; needed 8×8 RGB as in r",
        ),
        (
            lambda: write(Path("other"), blobs(30, 1, channels=1)),
            r"^other: its images are 8×8 grayscale; needed 8×8 RGB",
        ),
        (
            lambda: write(Path("other"), blobs(16, 1)),
            r"^other has 16 images; needed more than the 16 dimensions of the",
        ),
        (lambda: Path("other").mkdir(), r"^other: is empty; needed pictures"),
        (lambda: None, r"^other: is not there; needed a folder"),
        (lambda: Path("other").write_text("x"), r"^other: is a file; needed a folder"),
        (lambda: two_sizes("other"), r"^other: has pictures of 8×8 and 9×9 pixels \(z/000\.png\); needed one size$"),
        (lambda: broken("other"), r"^other: zz\.png is a damaged PNG picture \([^\n]*\); needed pictures only$"),
        (lambda: nothing("other"), r"^other: zz\.png is 0 bytes long; needed pictures only$"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    sides: tuple[str, str], prepare: Callable[[], Any], sentence: str
) -> None:
    prepare()
    with pytest.raises(UserError, match=sentence):
        measure("other", "real")


def two_sizes(name: str) -> None:
    write(Path(name), blobs(30, 1))
    write(Path(name) / "z", blobs(1, 1, size=9))


def broken(name: str) -> None:
    write(Path(name), blobs(30, 1))
    whole = Path(name, "000.png").read_bytes()
    Path(name, "zz.png").write_bytes(whole[:-60])


def nothing(name: str) -> None:
    write(Path(name), blobs(30, 1))
    Path(name, "zz.png").write_bytes(b"")


def test_an_unknown_split_is_told(sides: tuple[str, str], workspace: Path) -> None:
    with pytest.raises(UserError, match=r"real: has no pictures in a folder of the split test; needed some$"):
        measure(*sides, split="test")
    imageset = write_set(workspace / "set", train=blobs(30, 1))
    with pytest.raises(UserError, match=r"set: has no split 'test'; needed one of train$"):
        measure(sides[0], imageset, split="test")


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["forgeline", "evaluate", *words])
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_the_command_prints_a_table_or_json(
    sides: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("made", "--against", "real", "--extractor", "in-domain")
    assert run(*words, "--json", monkeypatch=monkeypatch) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == measure("made", "real")
    assert run(*words, monkeypatch=monkeypatch) == 0
    shown = capfd.readouterr().out
    for name in ("in_domain", "in_domain_at_floor", "in_domain_floor"):
        assert f"{found[name]['fid']:.6g}" in shown
    assert f" ± {found['in_domain_floor_spread']['fid']:.2g}" in shown
    for key, value in found["protocol"][0].items():
        assert key == "measures" or f"{key}: {value}" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("made", "Missing option '--against'."),
        ("made --against real --layer 5", "options: evaluate.layer is 5; needed one of 192, 2048, 64, 768"),
        ("made --against real --weights w", "options: evaluate.weights_sha256 is missing; needed the hex sha256"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*words.split(), monkeypatch=monkeypatch) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"forgeline: {sentence}")
    assert said.count("\n") == 1
