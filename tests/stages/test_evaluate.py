"""evaluate: sets whose faults are known get the numbers that say so; then the stage as a whole."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bars import CLASSES, bars, write_set
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import DTypeLike
from PIL import Image

from pipeline import paths
from pipeline.errors import UserError
from pipeline.gan.family import ImageSpec, load_family
from pipeline.gan.model import Model
from pipeline.imageset import ImageSet
from pipeline.imageset.files import sha256_file
from pipeline.metrics.classifier import embed
from pipeline.metrics.fidelity import fidelity, inception_score, with_spread
from pipeline.metrics.judges import Judges
from pipeline.metrics.modes import by_class
from pipeline.metrics.parzen import parzen
from pipeline.metrics.spread import of_share
from pipeline.params import Document
from pipeline.report import figures
from pipeline.stages import evaluate as stage
from pipeline.stages import features
from pipeline.stages.evaluate import Evaluation, Images, Params

PARAMS = Params(max_images=300)


def bars_of(count: int, seed: int) -> Images:
    images, labels = bars(count, seed)
    return Images(images=images, labels=labels, description="bars")


TRAIN, HELD_OUT = bars_of(240, 1), bars_of(150, 2)


def untrained_model(image_size: int = 8, classes: tuple[str, ...] = CLASSES) -> Model:
    family = load_family("conditional")
    config = family.Config(width=16)
    torch.manual_seed(0)
    generator = family.Generator(config, ImageSpec(channels=1, image_size=image_size, classes=len(classes)))
    return Model(
        family="conditional",
        config=config,
        classes=classes,
        channels=1,
        image_size=image_size,
        images_seen=0,
        data_fingerprint="",
        selection={},
        generator=generator.eval().requires_grad_(False),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace as the stages before leave it, but for the training of the model."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("FORGELINE_CACHE", str(root / "cache"))
        parts = {
            "train": (TRAIN.images, TRAIN.labels),
            "validation": bars(30, 5),
            "test": (HELD_OUT.images, HELD_OUT.labels),
        }
        write_set(paths.REAL / paths.IMAGESET, parts, synthetic=False)
        write_set(paths.SYNTHETIC / paths.IMAGESET, {"train": bars(360, 3)}, synthetic=True)
        features.run(Document({"features": {"images_seen": 2000, "width": 8}}))
        untrained_model().save(paths.MODEL)
        yield root


@pytest.fixture(scope="module")
def judges(made: Path) -> Judges:
    return Judges.load(made / paths.FEATURES)


def evaluated(*sides: Images, threads: int = 2, **settings: Any) -> Evaluation:
    with stage.side_by_side(threads) as pool:
        return stage.evaluate(*sides, pool=pool, **settings)


def measure(generated: Images, judges: Judges) -> Evaluation:
    return evaluated(generated, TRAIN, HELD_OUT, classes=CLASSES, judges=judges, params=PARAMS)


def test_the_floor_of_the_modes_is_what_as_many_rightly_judged_images_get(judges: Judges) -> None:
    metrics = measure(bars_of(3000, 4), judges).metrics
    assert metrics["modes_floor"]["classes_seen"] == 3
    assert 0 < metrics["modes_floor"]["kl_from_real"] < 5 * (3 - 1) / (2 * 3000)  # 2N KL is about χ² of two degrees
    assert "3000 of their labels" in metrics["protocol"][1]["modes_floor"]


def test_new_images_of_the_same_kind_measure_as_real_ones_do(judges: Judges) -> None:
    metrics = measure(bars_of(300, 4), judges).metrics
    assert metrics["agreement"] == {"mean": 1, "worst_class": 1}
    assert metrics["judges"]["held_out_accuracy"] == 1
    assert metrics["modes"]["classes_covered"] == 3
    assert metrics["modes"]["kl_from_real"] == pytest.approx(0)
    assert metrics["modes"]["pixel_spread"] == pytest.approx(1, abs=0.05)
    assert metrics["fidelity"]["fid"] < 5 * metrics["floor"]["fid"]
    assert metrics["fidelity"]["precision"] > 0.7
    assert metrics["memorization"]["nearer_than_median"] == pytest.approx(0.5, abs=0.15)
    assert metrics["memorization"]["copies"] == 0


def test_copies_of_the_training_images_are_all_found(judges: Judges) -> None:
    found = measure(TRAIN.draw(100, seed=0), judges)
    assert found.metrics["memorization"] == {
        "nearer_than_median": 1,
        "nearer_than_percentile_1": 1,
        "copies": 100,
        "nearest": 0,
    }
    copied = TRAIN.draw(100, seed=0).images
    np.testing.assert_array_equal(TRAIN.images[found.nearest[1]], copied)
    np.testing.assert_array_equal(TRAIN.images[found.nearest_in_features[1]], copied)


def test_of_many_training_images_the_nearest_in_features_is_one_of_those_that_are_compared(judges: Judges) -> None:
    many, params = bars_of(900, 6), Params(max_images=200)
    compared = many.draw(200, params.seed)
    found = evaluated(compared, many, HELD_OUT, classes=CLASSES, judges=judges, params=params)
    np.testing.assert_array_equal(many.images[found.nearest_in_features[1]], compared.images)


def test_a_balanced_set_is_compared_with_the_shares_that_classes_have_among_real_images(judges: Judges) -> None:
    def thinned(images: Images) -> Images:
        return images.draw_like(np.array([100, 25, 50]), PARAMS.seed)

    reals = thinned(bars_of(450, 1)), thinned(bars_of(450, 2))
    balanced, alike = (
        evaluated(generated, *reals, classes=CLASSES, judges=judges, params=PARAMS).metrics
        for generated in (bars_of(900, 4), thinned(bars_of(900, 4)))
    )
    assert balanced["protocol"][0]["generated"] == "175 of 900 bars"
    assert balanced["protocol"][0]["shares of classes"] == "those of the real images"
    assert balanced["fidelity"] == pytest.approx(alike["fidelity"], rel=1e-6)
    assert balanced["floor"] == alike["floor"]


def test_the_floor_of_classes_is_of_those_that_have_as_many_training_images(judges: Judges) -> None:
    few = TRAIN.draw_like(np.array([70, 6, 70]), 0)  # recall among six images would be the least of all
    found = evaluated(bars_of(300, 4), few, HELD_OUT, classes=CLASSES, judges=judges, params=PARAMS).metrics
    enough = [0, 2]
    of_all = by_class(
        *((embed(judges.extractor, side.images), side.labels) for side in (few, HELD_OUT)), 3, seed=PARAMS.seed
    )
    assert found["per_class_floor"]["worst_recall"] == pytest.approx(of_all["recall"][enough].min())
    assert found["per_class_floor"]["worst_diversity"] == pytest.approx(of_all["diversity"][enough].min())


def test_a_set_that_has_too_few_of_a_class_is_compared_as_it_comes(judges: Judges) -> None:
    lopsided = bars_of(900, 4).draw_like(np.array([200, 200, 2]), 0)
    protocol = measure(lopsided, judges).metrics["protocol"][0]
    assert (protocol["generated"], protocol["shares of classes"]) == ("150 of 402 bars", "as they come")


@given(st.lists(st.integers(0, 40), min_size=2, max_size=5), st.lists(st.integers(0, 40), min_size=2, max_size=5))
def test_a_draw_has_the_shares_of_the_real_ones_or_all_that_there_are(have: list[int], of_real: list[int]) -> None:
    ours, real = (
        Images(
            images=np.zeros((sum(each), 1, 1, 1), np.uint8),
            labels=np.repeat(np.arange(len(each)), each),
            description="",
        )
        for each in (have, of_real)
    )
    assume(len(ours.images) and len(real.images))
    counts = ours.counts_like(real)
    most = min(sum(have), sum(of_real))
    assert ours.have(counts)
    if len(counts) == 1:
        assert counts.tolist() == [most]
    else:
        kept = counts.sum() / sum(of_real)
        assert most / 2 - len(counts) <= counts.sum() <= most
        np.testing.assert_allclose(counts, kept * np.array(of_real)[: len(counts)], atol=len(counts))
        drawn = ours.draw_like(counts, 0)
        np.testing.assert_array_equal(np.bincount(drawn.labels, minlength=len(counts)), counts)


def test_copies_that_are_shifted_a_little_are_near_in_features(judges: Judges) -> None:
    copies = TRAIN.draw(100, seed=0)
    brighter = dataclasses.replace(copies, images=(copies.images.astype(int) + 2).clip(0, 255).astype(np.uint8))
    metrics = measure(brighter, judges).metrics
    assert metrics["memorization"]["copies"] == 0
    assert metrics["memorization_features"]["nearer_than_percentile_1"] > 0.9
    new = measure(bars_of(300, 4), judges).metrics["memorization_features"]
    assert new["nearer_than_median"] == pytest.approx(0.5, abs=0.15)


def test_each_class_has_its_precision_recall_and_diversity(judges: Judges) -> None:
    images, labels = bars(300, 4)
    images[labels == 1] = images[labels == 1][:1]  # one image, again and again
    found = measure(Images(images=images, labels=labels, description="bars"), judges)
    low, middle, high = found.per_class
    assert middle["recall"] < 0.1 < 0.5 < min(low["recall"], high["recall"])
    assert middle["diversity"] == pytest.approx(0, abs=1e-3)
    assert found.metrics["per_class"]["worst_recall"] == middle["recall"]
    assert found.metrics["per_class_floor"]["worst_recall"] > 0.5


def test_held_out_images_are_as_near_as_held_out_images_are(judges: Judges) -> None:
    metrics = measure(HELD_OUT, judges).metrics
    assert metrics["memorization"]["nearer_than_median"] == 0.5
    assert metrics["memorization"]["nearer_than_percentile_1"] == pytest.approx(0.01, abs=0.01)
    assert metrics["fidelity"]["fid"] == pytest.approx(0, abs=1e-6)


def test_training_images_themselves_measure_as_the_floor(judges: Judges) -> None:
    """The floor is what a perfect copyist would reach: no generator can seem better by leaning to its training set."""
    metrics = measure(TRAIN, judges).metrics
    scores = {name: value for name, value in metrics["fidelity"].items() if name != "fid_infinity"}
    assert scores == metrics["floor"]


def test_without_as_many_training_images_there_is_no_floor(judges: Judges) -> None:
    few = TRAIN.draw(60, seed=0)
    metrics = evaluated(bars_of(300, 4), few, HELD_OUT, classes=CLASSES, judges=judges, params=PARAMS).metrics
    assert "floor" not in metrics
    assert metrics["protocol"][0]["measures"] == ["fidelity", "fidelity_spread"]


def test_a_class_of_one_training_image_has_no_spread_to_compare_with(judges: Judges) -> None:
    one = Images(images=TRAIN.images[:3], labels=TRAIN.labels[:3], description="one bar of each")
    found = evaluated(bars_of(300, 4), one, HELD_OUT, classes=CLASSES, judges=judges, params=PARAMS)
    assert "pixel_spread" not in found.metrics["modes"]


class Pixels:
    """An extractor that the pipeline did not train: the means of 2×2 pixels."""

    label = "pixels"
    precision: DTypeLike = np.float32
    dimensions = 16
    logits = 4
    about: Mapping[str, Any] = {"extractor": "2×2 pixels", "extractor_sha256": "none"}

    def embed(self, images: np.ndarray, _: Executor | None = None, /) -> np.ndarray:
        rows = images.reshape(len(images), 4, 2, 4, 2).mean(axis=(2, 4), dtype=np.float32)
        return np.concatenate([rows.reshape(-1, 16), rows.mean(axis=2)], axis=1)


def test_another_extractor_measures_beside_the_in_domain_one(
    judges: Judges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path))
    monkeypatch.setattr(paths, "dvc_cache", lambda: None)
    generated = bars_of(300, 4)
    alone = measure(generated, judges).metrics
    metrics = evaluated(
        generated, TRAIN, HELD_OUT, classes=CLASSES, judges=judges, params=PARAMS, pretrained=Pixels(), untrained=TRAIN
    ).metrics
    counts = np.bincount(HELD_OUT.labels)
    ours, trained_on = (Pixels().embed(images.draw_like(counts, PARAMS.seed).images) for images in (generated, TRAIN))
    real = Pixels().embed(HELD_OUT.images)
    scores, spread = with_spread(ours[:, :16], real[:, :16], seed=PARAMS.seed, precision=np.float32)
    scores["inception_score"], spread["inception_score"] = inception_score(ours[:, 16:], seed=PARAMS.seed)
    assert (metrics["pixels"], metrics["pixels_spread"]) == (scores, spread)
    floor = fidelity(trained_on[:, :16], real[:, :16], seed=PARAMS.seed, precision=np.float32)
    floor["inception_score"], _ = inception_score(trained_on[:, 16:], seed=PARAMS.seed)
    assert metrics["pixels_floor"] == floor
    for name in alone.keys() - {"protocol"}:
        assert metrics[name] == alone[name]
    in_domain, pixels, *rest = metrics["protocol"]
    assert [in_domain["measures"], *rest] == [
        ["fidelity", "fidelity_spread", "floor", "untrained"],
        *alone["protocol"][1:],
    ]
    assert pixels["measures"] == ["pixels", "pixels_spread", "pixels_floor"]
    assert pixels["extractor"] == "2×2 pixels"
    assert pixels["inception_score"] == "layer logits_unbiased, 4 classes, mean of 10 parts"
    assert (pixels["generated"], pixels["real"]) == ("150 of 300 bars", "150 of 150 bars")
    kept = len(list((tmp_path / "kept").iterdir()))
    # Of real images: features of those held out and of the floor, in-domain of all known ones too; what judges see;
    # the floors of both extractors and of classes; which are nearest, in pixels and in features.
    assert kept == (2 + 3) + 1 + 3 + 2


def test_a_wrong_label_is_a_disagreement_of_its_class(judges: Judges) -> None:
    images, labels = bars(300, 4)
    labels[:30:3] = 1  # ten low bars that were asked for as middle ones
    found = measure(Images(images=images, labels=labels, description="bars"), judges)
    assert found.metrics["agreement"]["mean"] == pytest.approx(290 / 300)
    assert found.metrics["agreement"]["worst_class"] == pytest.approx(100 / 110)
    assert [row["agreement"] for row in found.per_class] == pytest.approx([1, 100 / 110, 1])
    assert [row["judged"] for row in found.per_class] == [100, 100, 100]


def test_a_collapse_to_one_class_shows(judges: Judges) -> None:
    images, labels = bars(300, 4)
    low = Images(images=images[labels == 0], labels=labels[labels == 0], description="bars")
    metrics = measure(low, judges).metrics
    assert metrics["modes"]["classes_covered"] == 1
    assert metrics["modes"]["kl_from_real"] == pytest.approx(np.log(3))
    assert metrics["fidelity"]["coverage"] < 0.6


def test_what_a_set_has_no_image_of_is_its_worst_class(judges: Judges) -> None:
    images, labels = bars(300, 4)
    low = Images(images=images[labels == 0], labels=labels[labels == 0], description="bars")
    found = measure(low, judges)
    assert found.metrics["agreement"] == {"mean": 1, "worst_class": 0}
    assert found.metrics["agreement_spread"]["worst_class"] == 0
    assert found.metrics["per_class"] == {"worst_precision": 0, "worst_recall": 0, "worst_diversity": 0}
    assert np.isnan([row["agreement"] for row in found.per_class[1:]]).all()  # which figures show as such


def test_what_is_counted_has_its_standard_error_and_held_out_images_say_what_is_reached(judges: Judges) -> None:
    images, labels = bars(300, 4)
    labels[:30:3] = 1
    metrics = measure(Images(images=images, labels=labels, description="bars"), judges).metrics
    assert metrics["agreement_spread"] == {
        "mean": of_share(290 / 300, 300),
        "worst_class": of_share(100 / 110, 110),
    }
    assert metrics["judges"] == {"held_out_accuracy": 1, "held_out_worst_class": 1}
    assert metrics["judges_spread"] == {"held_out_accuracy": of_share(1, 150), "held_out_worst_class": of_share(1, 50)}
    for name in ("fidelity", "modes", "per_class", "memorization_features"):
        assert metrics[f"{name}_spread"].keys() == metrics[name].keys(), name
    assert metrics["memorization_spread"].keys() == metrics["memorization"].keys() - {"copies", "nearest"}
    for name in ("fidelity", "per_class", "memorization", "memorization_features"):
        assert min(metrics[f"{name}_spread"].values()) > 0, name
    assert 0 < metrics["modes_spread"]["kl_from_real"] < 0.05
    assert 0 < metrics["modes_spread"]["pixel_spread"] < 0.1


def test_judges_that_take_held_out_images_of_a_class_for_others_lower_the_floor_of_the_worst(judges: Judges) -> None:
    labels = HELD_OUT.labels.copy()
    labels[:30:3] = 1  # ten low bars
    wrong = dataclasses.replace(HELD_OUT, labels=labels)
    found = evaluated(bars_of(300, 4), TRAIN, wrong, classes=CLASSES, judges=judges, params=PARAMS).metrics["judges"]
    assert found == {"held_out_accuracy": pytest.approx(140 / 150), "held_out_worst_class": pytest.approx(50 / 60)}


def test_a_draw_of_every_class_misses_no_rare_one_and_is_else_the_same() -> None:
    labels = np.zeros(1000, np.int64)
    labels[7] = 2
    rare = Images(images=np.zeros((1000, 1, 8, 8), np.uint8), labels=labels, description="a rare one")
    for seed in range(5):
        assert 7 in rare.drawn(50, seed, every_class=True)
        assert len(rare.drawn(50, seed, every_class=True)) == 50
        np.testing.assert_array_equal(TRAIN.drawn(60, seed, every_class=True), TRAIN.drawn(60, seed))


def test_a_collapse_to_one_image_in_each_class_shows(judges: Judges) -> None:
    images = np.tile(bars(3, 4)[0], (50, 1, 1, 1))
    metrics = measure(Images(images=images, labels=np.arange(150) % 3, description="bars"), judges).metrics
    assert metrics["modes"]["pixel_spread"] == 0
    assert metrics["fidelity"]["recall"] < 0.1


def test_without_asked_for_labels_there_is_no_agreement(judges: Judges) -> None:
    images, labels = bars(300, 4)
    found = measure(Images(images=images, labels=np.full(300, -1), description="bars"), judges)
    assert "agreement" not in found.metrics
    np.testing.assert_array_equal(found.labels, labels)
    assert found.metrics["modes"]["classes_covered"] == 3


def test_both_sides_of_the_floor_have_equal_counts_and_the_protocol_says_so(judges: Judges) -> None:
    protocol = {entry["measures"][0]: entry for entry in measure(bars_of(1000, 4), judges).metrics["protocol"]}
    assert protocol["fidelity"]["generated"] == "150 of 1000 bars"
    assert protocol["fidelity"]["floor"] == "150 of 240 bars"
    assert protocol["fidelity"]["real"] == "150 of 150 bars"


def test_the_parzen_log_likelihood_stands_beside_that_of_real_images(judges: Judges) -> None:
    params, validation = Params(max_images=300, parzen_samples=200), bars_of(2000, 5)
    found = evaluated(
        TRAIN, TRAIN, HELD_OUT, classes=CLASSES, judges=judges, params=params, validation=validation
    ).metrics
    assert found["parzen"] == parzen(TRAIN.images[:200], validation.draw(1000, 2).images, HELD_OUT.images)
    assert found["parzen_real"]["sigma"] == found["parzen"]["sigma"]
    assert found["parzen_real"]["log_likelihood"] == pytest.approx(found["parzen"]["log_likelihood"], abs=1)
    entry = found["protocol"][-1]
    assert entry["measures"] == ["parzen", "parzen_real"]
    assert (entry["generated"], entry["real"]) == ("200 of 240 bars", "150 bars")
    assert entry["sigma"] == "the best of 10 from logspace(-1, 0) on 1000 of 2000 bars"


def test_a_balanced_set_is_not_far_from_its_training_images_for_being_balanced(judges: Judges) -> None:
    def uneven(count: int, seed: int, far: int) -> Images:
        """Images of two classes that lie close together, and so many of one that does not."""
        (near, labels), (others, _) = bars(count, seed, noise=20), bars(count, seed + 1)
        rows, others = labels < 2, others[labels == 2][:far]
        return Images(
            images=np.concatenate([near[rows], others]),
            labels=np.concatenate([labels[rows], np.full(len(others), 2)]),
            description="bars",
        )

    real = uneven(240, 1, far=16), uneven(240, 3, far=16)
    found = evaluated(uneven(600, 5, far=200), *real, classes=CLASSES, judges=judges, params=PARAMS).metrics
    for name in ("memorization", "memorization_features"):
        assert found[name]["nearer_than_median"] == pytest.approx(0.5, abs=0.08)
    assert found["memorization_floor"]["nearer_than_percentile_1"] > 0.02  # sixteen images stand for a third


def test_fewer_images_than_dimensions_are_refused_in_one_sentence(judges: Judges) -> None:
    with pytest.raises(UserError, match=r"^the generated set has 10 images; needed more than the 16 dimensions"):
        measure(bars_of(10, 4), judges)
    with pytest.raises(UserError, match=r"^the test split has 12 images; needed more than the 16 dimensions"):
        evaluated(bars_of(300, 4), TRAIN, HELD_OUT.draw(12, seed=0), classes=CLASSES, judges=judges, params=PARAMS)
    uneven = bars_of(60, 4)
    uneven = uneven.draw_like(np.array([4, 10, 10]), seed=0)
    with pytest.raises(
        UserError, match=r"^the generated set, with the real images' shares of classes, has 12 images; ne"
    ):
        measure(uneven, judges)


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy by links: out/ is this test's own, what is in it is not written to."""
    (tmp_path / "out").mkdir()
    for path in (made / "out").iterdir():
        (tmp_path / "out" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_CACHE", str(made / "cache"))
    return tmp_path


def run(which: Any, **settings: Any) -> Path:
    stage.run(Document({"evaluate": {"max_images": 300} | settings}), which)
    return paths.EVALUATION / which


def numbers(content: Any) -> Iterator[float]:
    for value in content.values():
        if isinstance(value, dict):
            yield from numbers(value)
        elif not isinstance(value, list):
            yield value


@pytest.mark.parametrize("which", ["model", "synthetic"])
def test_every_block_of_numbers_has_its_protocol(workspace: Path, which: str) -> None:
    settings = {"parzen_samples": 200} if which == "model" else {}
    metrics = json.loads((run(which, **settings) / "metrics.json").read_text())
    protocol = {name: entry for entry in metrics.pop("protocol") for name in entry["measures"]}
    assert {name for name, value in metrics.items() if isinstance(value, dict)} == protocol.keys()
    assert all(np.isfinite(value) for value in numbers(metrics))
    about = json.loads((paths.FEATURES / "features.json").read_text())["classifiers"]
    for name, entry in protocol.items():
        assert re.search(r"\b(1\d\d|200|300|360)\b", entry["generated"]), name
        assert re.search(r"150 .*real images \(test split of \w{12}, resize none\)|nearest of 240 ", entry["real"]), (
            name
        )
        assert entry["quantization"].startswith("uint8"), name
        assert entry["seed"] == 2, name
        assert f"torch {version('torch')}" in entry["library"], name
        shown = name.removesuffix("_spread").removesuffix("_floor")
        if shown in ("fidelity", "floor", "untrained", "per_class", "memorization_features"):
            assert "pooled features, 16 dimensions" in entry["extractor"], name
            assert entry["extractor_sha256"] == about["extractor.safetensors"]["sha256"], name
        elif shown in ("agreement", "judges", "modes"):
            assert "networks" in entry["judges"], name
            assert entry["judges_sha256"] == [about[f"judge-{number}.safetensors"]["sha256"] for number in range(3)], (
                name
            )
        elif shown == "memorization":
            assert entry["distance"].startswith("root mean square over pixels"), name
            assert entry["expected"].startswith("the same of 150 real images (test split"), name
        else:
            assert shown in ("parzen", "parzen_real"), name
        if name.endswith("_spread"):
            assert "standard errors" in entry["spread"], name


def lacking(label: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = bars(count, 3)
    return images[labels != label], labels[labels != label]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            lacking(1, 360),
            r"^out/synthetic/imageset: has no image of 1 of 3 classes \('middle'\); needed at least one of each, as",
        ),
        (
            tuple(side[bars(360, 3)[1] == 2] for side in bars(360, 3)),
            r"^out/synthetic/imageset: has no image of 2 of 3 classes \('low', 'middle'\); needed at least one of each",
        ),
    ],
)
def test_a_set_without_all_classes_is_refused(
    workspace: Path, parts: tuple[np.ndarray, np.ndarray], sentence: str
) -> None:
    paths.SYNTHETIC.unlink()
    write_set(paths.SYNTHETIC / paths.IMAGESET, {"train": parts}, synthetic=True)
    with pytest.raises(UserError, match=sentence):
        run("synthetic")
    assert not paths.EVALUATION.exists()


def test_an_empty_set_and_labels_of_no_class_are_refused(workspace: Path, tmp_path: Path) -> None:
    root = paths.SYNTHETIC / paths.IMAGESET
    whole = root.resolve()
    paths.SYNTHETIC.unlink()
    shutil.copytree(whole, root)
    content = json.loads((root / "imageset.json").read_text())
    (root / "imageset.json").write_text(json.dumps(content | {"counts": {"train": [0, 0, 0]}, "shards": []}))
    with pytest.raises(
        UserError, match=r"imageset\.json: counts\.train is \[0, 0, 0\], no images at all; needed at least"
    ):
        run("synthetic")
    (shard,) = content["shards"]
    path = root / shard["path"]
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array([7, *table["label"].to_pylist()[1:]])), path)
    shard |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (root / "imageset.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"imageset: the train split has the label 7; needed 0 to 2, one of its 3 classes$"
    ):
        run("synthetic")
    assert not paths.EVALUATION.exists()


def test_fewer_samples_than_classes_are_refused(workspace: Path) -> None:
    root = paths.REAL / paths.IMAGESET
    content = json.loads((root / "imageset.json").read_text())
    content["classes"] += [f"class {number}" for number in range(98)]
    content["counts"] = {split: counts + [0] * 98 for split, counts in content["counts"].items()}
    paths.REAL.unlink()
    root.mkdir(parents=True)
    (root / "imageset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"evaluate\.max_images is 100; needed at least 101, one of each class$"):
        run("model", max_images=100)


def test_weights_that_are_not_there_stop_it_before_it_writes(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"^nowhere\.pth: is not there; needed a file of weights$"):
        run("synthetic", extractor="inception-v3-compat", weights="nowhere.pth", weights_sha256="0" * 64)
    assert not paths.EVALUATION.exists()


def test_a_models_parzen_log_likelihood_is_measured_where_it_is_asked_for(workspace: Path) -> None:
    metrics = json.loads((run("model", parzen_samples=200) / "metrics.json").read_text())
    assert metrics["parzen"]["log_likelihood"] < metrics["parzen_real"]["log_likelihood"]
    assert "200 of 300 unfiltered samples of the conditional model" in metrics["protocol"][-1]["generated"]
    assert "on 30 of 30 real images (validation split of" in metrics["protocol"][-1]["sigma"]
    assert "parzen" not in json.loads((run("synthetic", parzen_samples=200) / "metrics.json").read_text())


def test_a_model_is_measured_beside_itself_before_training(workspace: Path) -> None:
    metrics = json.loads((run("model") / "metrics.json").read_text())
    assert metrics["images"] == 300
    assert metrics["untrained"]["fid"] > 10 * metrics["floor"]["fid"]
    assert "unfiltered samples of the conditional model" in metrics["protocol"][0]["generated"]


def test_the_figures_are_pictures_and_the_tables_add_up(workspace: Path) -> None:
    folder = run("synthetic") / "figures"
    assert {path.name for path in folder.iterdir()} == {
        "agreement.png",
        "closest.png",
        "confusion.csv",
        "distances.png",
        "per_class.csv",
        "samples.png",
    }
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    with (folder / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert {row["asked"] for row in rows} == set(CLASSES)
    with (folder / "per_class.csv").open() as file:
        assert sum(int(row["images"]) for row in csv.DictReader(file)) == 300


def test_the_closest_pairs_are_shown_as_pixels_and_as_features_find_them(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(figures, "closest_pairs", lambda path, groups, training: shown.update(groups))
    run("synthetic")
    assert list(shown) == ["synthetic", "synthetic, in features", "real, held out"]
    judges = Judges.load(paths.FEATURES)
    images, distances, rows = shown["synthetic, in features"]
    ours, known = embed(judges.extractor, images), embed(judges.extractor, TRAIN.images)
    real = ImageSet.open(paths.REAL / paths.IMAGESET).arrays("train")[0]
    np.testing.assert_allclose(distances, np.linalg.norm(ours - embed(judges.extractor, real)[rows], axis=1), rtol=1e-4)
    assert distances[0] == pytest.approx(np.linalg.norm(known - ours[0], axis=1).min(), rel=1e-4)


@pytest.mark.parametrize("cache", ["same", "new"])
def test_neither_threads_nor_what_was_kept_change_a_byte(
    workspace: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {path: path.read_bytes() for path in run("synthetic").rglob("*") if path.is_file()}
    if cache == "new":
        monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "empty"))
    again = run("synthetic", threads=3)
    assert {path: path.read_bytes() for path in again.rglob("*") if path.is_file()} == first


@pytest.mark.parametrize(
    ("image_size", "classes", "sentence"),
    [
        (16, CLASSES, r"out/model: image_size is 16; needed 8 as in out/real"),
        (8, ("low", "high"), r"out/model: classes is \('low', 'high'\); needed \('low', 'middle', 'high'\)"),
    ],
)
def test_another_kind_of_images_is_refused_and_the_older_report_stays(
    workspace: Path, image_size: int, classes: tuple[str, ...], sentence: str
) -> None:
    before = (run("model") / "metrics.json").read_bytes()
    paths.MODEL.unlink()
    untrained_model(image_size, classes).save(paths.MODEL)
    with pytest.raises(UserError, match=sentence):
        run("model")
    assert (paths.EVALUATION / "model" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"seed": -1}, r"evaluate\.seed is -1; needed at least 0"),
        ({"max_images": 5}, r"evaluate\.max_images is 5; needed at least 100"),
        ({"parzen_samples": 20_000}, r"evaluate\.parzen_samples is 20000; needed 0 to 10000, the max_images"),
        ({"threads": 0}, r"evaluate\.threads is 0; needed at least 1"),
        ({"seed": 2**32}, rf"evaluate\.seed is {2**32}; needed at most {2**32 - 1}"),
        ({"threads": 3_000_000_000}, r"evaluate\.threads is 3000000000; needed at most 1024"),
        ({"max_image": 500}, r"evaluate\.max_image is not a setting; did you mean 'max_images'"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        stage.read_params(Document({"evaluate": setting}))


def test_translations_that_change_nothing_do_not_measure_as_the_domains_they_should_be_in(judges: Judges) -> None:
    train, held_out = (
        dataclasses.replace(bars, images=bars.images[bars.labels < 2], labels=bars.labels[bars.labels < 2])
        for bars in (TRAIN, HELD_OUT)
    )

    def over_floor(labels: np.ndarray) -> float:
        same = dataclasses.replace(held_out, labels=labels, translated=True)
        metrics = evaluated(same, train, held_out, classes=CLASSES, judges=judges, params=PARAMS).metrics
        return float(metrics["fidelity"]["fid"] / metrics["floor"]["fid"])

    assert over_floor(held_out.labels) == pytest.approx(0, abs=1e-4)
    assert over_floor(1 - held_out.labels) > 5
