"""Two domains without pairs through the stages: what each of them means where a model translates."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import paths
from pipeline.errors import FailedError, UserError
from pipeline.gan.model import Model
from pipeline.imageset import ImageSet
from pipeline.params import Document
from pipeline.report.grids import sample_to
from pipeline.stages import augment, evaluate, features, ingest, source, train

CYCLEGAN = {"width": 8, "blocks": 1, "discriminator_layers": 1, "learning_rate": 0.002, "ema_halflife_images": 50}
SETTINGS: dict[str, Any] = {
    "source": {"kind": "images", "url": "pictures"},
    "ingest": {"image_size": 16, "validation_fraction": 0.2},
    "features": {"images_seen": 3000, "width": 8},
    "train": {"family": "cyclegan", "images": 1600, "snapshot_images": 400, "batch_size": 8},
    "families": {"cyclegan": CYCLEGAN},
    "evaluate": {},
    "augment": {"images_per_class": 20, "spread": 1.0, "min_confidence": 0.2},
}


def _picture(domain: str, random: np.random.Generator) -> Image.Image:
    """A soft pattern, red of A and blue of B."""
    pattern = random.integers(60, 255, (4, 4), np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    low = pattern // 4
    return Image.fromarray(np.stack([pattern, low, low] if domain == "A" else [low, low, pattern], axis=2))


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all stages from ingest on."""
    root, random = tmp_path_factory.mktemp("workspace"), np.random.default_rng(0)
    for folder, count in {"trainA": 40, "trainB": 50, "testA": 25, "testB": 25}.items():
        (root / "pictures" / folder).mkdir(parents=True)
        for number in range(count):
            _picture(folder[-1], random).save(root / "pictures" / folder / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("FORGELINE_CACHE", str(root / "cache"))
        subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
        document = Document(SETTINGS)
        for stage in (source, ingest, features, train, augment):
            stage.run(document)
        evaluate.run(document, "model")
        evaluate.run(document, "synthetic")
        yield


def _with(section: str, **changes: Any) -> Document:
    return Document({**SETTINGS, section: SETTINGS[section] | changes})


def _real() -> ImageSet:
    return ImageSet.open(paths.REAL / paths.IMAGESET)


def _metrics(which: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """And the protocol by measure."""
    metrics = json.loads((paths.EVALUATION / which / "metrics.json").read_text())
    return metrics, {name: entry for entry in metrics.pop("protocol") for name in entry["measures"]}


def test_how_the_game_stood_is_said_of_each_domain() -> None:
    stands = json.loads((paths.TRAINING / "game.json").read_text())
    assert (stands["objective"], stands["held_out"], stands["images"]) == ("least_squares", "validation split", 2000)
    assert list(stands["domains"]) == ["A", "B"]
    for name in ("train_accuracy", "held_out_accuracy", "fake_accuracy", "train_over_held_out", "held_out_over_fake"):
        each = [told[name] for told in stands["domains"].values()]
        assert all(0 <= share <= 1 for share in each)
        assert stands[name] == pytest.approx(sum(each) / 2)


def test_the_folders_give_domains_and_splits() -> None:
    real = _real()
    assert real.classes == ("A", "B")
    assert real.counts["test"] == (25, 25)
    assert [sum(pair) for pair in zip(real.counts["train"], real.counts["validation"], strict=True)] == [40, 50]


def test_the_cycle_closes_while_training() -> None:
    with Path("out/training/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("cycle_loss", "identity_loss"):
        lost = [float(row[name]) for row in rows]
        assert np.mean(lost[-10:]) < np.mean(lost[:10]) / 3
    metrics, protocol = _metrics("model")
    assert metrics["cycle"]["error"] < metrics["cycle"]["change"] / 3
    assert "translations of the test split by the cyclegan model" in protocol["cycle"]["generated"]


def test_a_grid_shows_images_translations_and_what_comes_back() -> None:
    grid = np.asarray(Image.open("out/training/samples.png").convert("RGB")).transpose(2, 0, 1)[:, ::3, ::3]
    tiles = [[grid[:, y : y + 16, x : x + 16] for x in range(0, grid.shape[2], 17)] for y in range(0, 6 * 17, 17)]
    model = Model.load(paths.MODEL).with_sources(*_real().arrays("validation"))
    for row, (sources, translations, back) in enumerate([tiles[:3], tiles[3:]]):
        images, labels = model.sample(seed=0, start=0, count=2 * len(sources))
        into = 1 - row
        assert np.array_equal(translations, images[labels == into])
        shown = {image.tobytes() for image in _real().arrays("validation")[0]}
        assert {np.ascontiguousarray(image).tobytes() for image in sources} <= shown
        backwards = model.with_sources(images, labels).sample(seed=0, start=0, count=2 * len(sources))[0]
        assert np.array_equal(back, backwards[labels != into])


def test_what_is_released_is_translated_training_images_that_name_their_source() -> None:
    real, synthetic = _real(), ImageSet.open(paths.SYNTHETIC / paths.IMAGESET)
    assert synthetic.counts == {"train": (20, 20)}
    assert synthetic.generator is not None
    assert synthetic.generator["translated"] == "train split"
    images, labels = synthetic.arrays("train")
    table, pictures = synthetic.table("train").to_pydict(), real.arrays("train")
    names = [image["path"] for image in real.table("train", ["image"]).to_pydict()["image"]]
    assert len(set(table["source"])) == 40
    for row in range(0, 40, 7):
        assert table["source"][row].startswith("trainB/" if labels[row] == 0 else "trainA/")
        at = names.index(table["source"][row])
        pair = np.stack([pictures[0][at], pictures[0][pictures[1] == labels[row]][0]])
        again = Model.load(paths.MODEL).with_sources(pair, np.array([1 - labels[row], labels[row]]))
        drawn, asked = again.sample(seed=0, start=0, count=2)
        difference = np.abs(drawn[asked == labels[row]][0].astype(int) - images[row]).max()
        assert difference <= 1  # of another chunk, so the last bit of a float may differ


def test_near_copies_are_looked_for_in_the_domain_that_was_translated_into() -> None:
    table = ImageSet.open(paths.SYNTHETIC / paths.IMAGESET).table("train").to_pydict()
    images, labels = ImageSet.open(paths.SYNTHETIC / paths.IMAGESET).arrays("train")
    pictures, domains = _real().arrays("train")
    for image, label, distance in zip(images, labels, table["nearest_distance"], strict=True):
        same = pictures[domains == label].astype(np.float64)
        assert distance == pytest.approx(np.sqrt(((same - image) ** 2).mean(axis=(1, 2, 3))).min(), abs=1e-3)


@pytest.mark.parametrize("which", ["model", "synthetic"])
def test_each_domain_is_measured_by_itself_and_the_protocol_says_so(which: str) -> None:
    metrics, protocol = _metrics(which)
    assert protocol["fidelity"]["domains"] == "each by itself, then the mean of both"
    assert "of the same domain" in protocol["memorization"]["real"]
    assert metrics["agreement"]["mean"] > 0.9
    if which == "model":
        assert metrics["fidelity"]["fid"] < metrics["untrained"]["fid"]
        assert metrics["images"] == 50  # each test image once
    else:
        assert "cycle" not in metrics


def test_more_images_than_there_are_sources_are_refused_in_one_sentence() -> None:
    with pytest.raises(FailedError, match=r"fewer augment\.images_per_class: all training images are translated$"):
        augment.run(_with("augment", images_per_class=41))


def test_settings_of_noise_are_refused() -> None:
    with pytest.raises(UserError, match=r"^spread is 1\.2; the cyclegan model translates and has no latents"):
        augment.run(_with("augment", spread=1.2))
    with pytest.raises(UserError, match=r"evaluate\.parzen_samples is 5; the cyclegan model translates"):
        evaluate.run(_with("evaluate", parzen_samples=5), "model")


def test_a_batch_that_cannot_hold_both_domains_equally_is_refused() -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: train\.batch_size is 7; needed a multiple of 2, the classes"):
        train.run(_with("train", batch_size=7))


def test_the_test_images_of_a_set_can_be_translated_into_a_grid_or_a_folder(tmp_path: Path) -> None:
    real = paths.REAL / paths.IMAGESET
    assert sample_to(paths.MODEL, tmp_path / "grid.png", count=24, seed=0, sources=real) == 24
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * (10 * 17 - 1), 3 * (12 * 17 - 1))  # 12 of each domain in rows of 10, each three times
    assert sample_to(paths.MODEL, tmp_path / "images", count=1000, seed=0, sources=real) == 50
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files[:2]] == ["000000-A.png", "000001-B.png"]
    images = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    model = Model.load(paths.MODEL).with_sources(*_real().arrays("test"))
    assert np.array_equal(images, model.sample(seed=0, start=0, count=50)[0])


def test_a_model_that_translates_needs_sources_to_sample_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^out/model: a cyclegan model; needed --sources, an ImageSet"):
        sample_to(paths.MODEL, tmp_path / "grid.png", count=24, seed=0)
