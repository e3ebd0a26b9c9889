"""utility on the real digits: noise is not said to help, more real images are, and the test split is read last."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits

from pipeline import paths
from pipeline.errors import UserError
from pipeline.imageset import ImageSet, Row, write_imageset
from pipeline.imageset.layout import content_hash
from pipeline.metrics.classifier import load, predict
from pipeline.metrics.utility import ARMS, RARE_ARMS, Arm
from pipeline.params import Document
from pipeline.report.utility import draw, draw_choices
from pipeline.stages import utility
from pipeline.stages.utility import Kept, Outcome, Params

CLASSES = tuple("0123456789")
DIGITS = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]
LABELS = load_digits().target.astype(np.int64)
TRAIN, VALIDATION, TEST, REST = slice(0, 400), slice(400, 500), slice(500, 900), slice(900, 1797)


def rows(images: np.ndarray, labels: np.ndarray, split: str) -> Iterator[Row]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        provenance = {"content": content_hash(image)}
        yield Row(split=split, label=int(label), image=image, path=f"{i}.png", provenance=provenance)


def write_real(
    test: tuple[np.ndarray, np.ndarray] = (DIGITS[TEST], LABELS[TEST]),
    train: tuple[np.ndarray, np.ndarray] = (DIGITS[TRAIN], LABELS[TRAIN]),
) -> ImageSet:
    splits = {
        "train": train,
        "validation": (DIGITS[VALIDATION], LABELS[VALIDATION]),
        "test": test,
    }
    return write_imageset(
        paths.REAL / paths.IMAGESET,
        [row for split, arrays in splits.items() for row in rows(*arrays, split)],
        classes=CLASSES,
        source={"kind": "digits"},
        resize=None,
        synthetic=False,
    )


def write_synthetic(images: np.ndarray, labels: np.ndarray, **generator: str) -> ImageSet:
    return write_imageset(
        paths.SYNTHETIC / paths.IMAGESET,
        rows(images, labels, "train"),
        classes=CLASSES,
        source={"kind": "generator"},
        resize=None,
        synthetic=True,
        generator={"family": "none", **generator},
    )


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Outcome]:
    """What a worker does, in this process."""

    def measure(params: Params, *, imbalanced: bool = False) -> Outcome:
        sets = ImageSet.open(paths.REAL / paths.IMAGESET), ImageSet.open(paths.SYNTHETIC / paths.IMAGESET)
        monkeypatch.setattr(utility, "_sets", sets, raising=False)
        with ThreadPoolExecutor(1) as pool:
            return utility.measure(params, pool, tmp_path, imbalanced=imbalanced)

    return measure


SMALL = Params(fractions=(0.1,), seeds=3, images_seen=4000, learning_rates=(0.01,), synthetic_shares=(0.5,))
TINY = Params(fractions=(0.2, 1.0), seeds=2, images_seen=1000, learning_rates=(0.005, 0.01), width=8)


def described(outcome: Outcome, params: Params, kept: Kept | None = None) -> dict[str, Any]:
    sets = ImageSet.open(paths.REAL / paths.IMAGESET), ImageSet.open(paths.SYNTHETIC / paths.IMAGESET)
    return utility.describe(outcome, params, *sets, kept or Kept())


def only_row(outcome: Outcome, params: Params) -> dict[str, Any]:
    (row,) = described(outcome, params)["rows"]
    return dict(row)


def guessed(params: Params, test_labels: np.ndarray) -> Outcome:
    """What was found where nothing was trained: by chance."""
    random = np.random.default_rng(0)
    outcome = Outcome(choosing_seeds=params.choosing_seeds, test_labels=test_labels)
    keys = [(fraction, arm) for fraction in params.fractions for arm in (ARMS | RARE_ARMS) if arm != "synthetic"]
    for fraction, arm in (*keys, (0.0, "synthetic")):
        shares = params.synthetic_shares if arm in ("mixed", "filled") else (float(arm == "synthetic"),)
        settings = [
            tuple(params.training(arm, fraction, seed, 0.01, share) for seed in range(params.seeds)) for share in shares
        ]
        outcome.candidates[fraction, arm] = settings
        outcome.validation |= {training: random.uniform(80, 90) for setting in settings for training in setting}
        outcome.chosen[fraction, arm] = max(settings, key=outcome.validated)
        outcome.test_right |= {
            training: random.random(len(test_labels)) < 0.8 for training in outcome.chosen[fraction, arm]
        }
    return outcome


def same_interval(found: Mapping[str, float], one: Sequence[float], other: Sequence[float], step: float) -> bool:
    """Whether `found` is scipy's paired interval of the two by seed, ± `step` at least."""
    low, high = ttest_rel(one, other).confidence_interval(0.95)
    mean = np.subtract(one, other).mean()
    needed = mean, min(low, mean - step), max(high, mean + step)
    return tuple(found.values()) == pytest.approx(needed, abs=1e-3)


def test_noise_is_not_called_helpful(measure: Callable[..., Outcome]) -> None:
    random = np.random.default_rng(0)
    write_real()
    write_synthetic(random.integers(0, 256, (500, 1, 8, 8), dtype=np.uint8), np.arange(500) % 10)
    row = only_row(measure(SMALL), SMALL)
    assert row["verdict"] in ("makes no difference", "harms")
    assert row["accuracy"]["synthetic"]["mean"] < 30


def test_the_rest_of_the_real_images_helps(measure: Callable[..., Outcome]) -> None:
    write_real()
    write_synthetic(DIGITS[REST], LABELS[REST])
    row = only_row(measure(SMALL), SMALL)
    assert row["verdict"] == "helps"
    assert row["gain_over_real_long"]["mean"] > 2
    assert row["sentence"].startswith("helps for who has 10 % of the data and receives this set")


def test_gains_are_the_means_of_paired_differences(measure: Callable[..., Outcome]) -> None:
    write_real()
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = Params(fractions=(0.1,), seeds=2, images_seen=1000, learning_rates=(0.01,), synthetic_shares=(0.5,))
    row = only_row(measure(params), params)
    by_seed = {arm: np.array(values) for arm, values in row["accuracy_by_seed"].items()}
    for arm in ("real", "real_long"):
        assert same_interval(row[f"gain_over_{arm}"], by_seed["mixed"], by_seed[arm], step=100 / len(LABELS[TEST]))
    test_labels = LABELS[TEST]
    weighted = sum(
        row["class_gain_over_real_long"][name]["mean"] * np.mean(test_labels == label)
        for label, name in enumerate(CLASSES)
    )
    assert weighted == pytest.approx(row["gain_over_real_long"]["mean"], abs=1e-3)


def test_another_test_split_changes_no_choice(measure: Callable[..., Outcome]) -> None:
    write_real()
    write_synthetic(DIGITS[REST], LABELS[REST])
    outcome = measure(TINY)
    write_real(test=(255 - DIGITS[TEST], LABELS[TEST]))
    other = measure(TINY)
    assert (outcome.chosen, outcome.validation) == (other.chosen, other.validation)
    assert any(outcome.tested(*key).tolist() != other.tested(*key).tolist() for key in outcome.chosen)


def test_the_choosing_seeds_choose_what_is_best_on_validation(measure: Callable[..., Outcome]) -> None:
    write_real()
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = dataclasses.replace(TINY, seeds=3)
    outcome = measure(params)
    assert {arm for _, arm in outcome.chosen} == set(ARMS)  # a balanced set has no arms of rare classes
    for key, settings in outcome.candidates.items():
        means = [np.mean([outcome.validation[training] for training in setting[:2]]) for setting in settings]
        assert outcome.validated(outcome.chosen[key]) == pytest.approx(max(means))
    assert sum(training.images_seen for training in outcome.validation) == params.all_images_seen()


@pytest.mark.parametrize(
    ("gains", "advised"),
    [
        ((1.0, 2.0, 3.0), 0.0),
        ((1.5, 2.0, 2.5), 0.7),
        ((-1.5, -2.0, -2.5), 0.0),
        ((0, 0, 0), 0.0),
        ((0.5, 0.5, 0.5), 0.0),  # the same one image each time
        ((1, 1, 1), 0.7),
    ],
)
def test_only_what_gains_on_validation_beyond_chance_is_advised(gains: Sequence[float], advised: float) -> None:
    params = Params(seeds=3)  # t(0.975, 2) is 4.303: 2 ± 4.303 · 1 / √3 holds 0, 2 ± 4.303 · 0.5 / √3 does not
    without = tuple(params.training("real_long", 0.1, seed, 0.01) for seed in range(3))
    chosen = tuple(params.training("mixed", 0.1, seed, 0.01, 0.7) for seed in range(3))
    outcome = Outcome(
        choosing_seeds=2,
        chosen={(0.1, "mixed"): chosen, (0.1, "real_long"): without},
        validation=dict.fromkeys(without, 90.0) | {one: 90 + gain for one, gain in zip(chosen, gains, strict=True)},
    )
    assert outcome.advised_share(0.1, "mixed", "real_long", step=0.5) == advised


def test_the_intervals_of_gains_are_paired_by_seed() -> None:
    write_real(train=thinned())
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = Params(fractions=(0.1, 1.0), seeds=5)
    labels = LABELS[TEST]
    for row in described(guessed(params, labels), params)["rows"]:
        by_seed = row["accuracy_by_seed"]
        for arm in ("real", "real_long"):
            assert same_interval(row[f"gain_over_{arm}"], by_seed["mixed"], by_seed[arm], step=100 / len(labels))
        by_seed = row["rare"]["recall_by_seed"]
        for arm, found in row["rare"]["recall_gain"].items():
            step = 100 / (2 * np.bincount(labels)[8:].min())
            assert same_interval(found, by_seed["filled"], by_seed[arm], step)


def test_one_test_image_of_a_rare_class_is_no_help_however_often_it_is_seen() -> None:
    """Though it counts as much as all others of the other rare class together."""
    shown = np.concatenate([np.flatnonzero(LABELS[TEST] != 9), np.flatnonzero(LABELS[TEST] == 9)[:1]])
    labels = LABELS[TEST][shown]
    write_real(test=(DIGITS[TEST][shown], labels), train=thinned())
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = Params(fractions=(1.0,), seeds=5)
    outcome = guessed(params, labels)
    for (_, arm), setting in outcome.chosen.items():
        outcome.test_right |= dict.fromkeys(setting, (labels != 9) | (arm == "filled"))
    rare = only_row(outcome, params)["rare"]
    assert rare["recall_gain"]["oversampled"] == {"mean": 50, "low": 0, "high": 100}
    assert rare["verdict"] == "makes no difference"


def test_the_seeds_of_all_arms_are_the_same_and_each_classifier_sees_what_its_arm_may(
    measure: Callable[..., Outcome],
) -> None:
    write_real(train=thinned())
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = dataclasses.replace(TINY, fractions=(1.0,), learning_rates=(0.01,), synthetic_shares=(0.5,))
    outcome = measure(params, imbalanced=True)
    assert {arm for _, arm in outcome.chosen} == {*ARMS, *RARE_ARMS}
    for (_, arm), setting in outcome.chosen.items():
        assert [training.seed for training in setting] == [0, 1]
        assert {training.images_seen for training in setting} == {500 if arm == "real" else 1000}
        assert {training.synthetic_share for training in setting} == {
            {"mixed": 0.5, "filled": 0.5, "synthetic": 1.0}.get(arm, 0.0)
        }


@pytest.mark.parametrize("arm", ["real_long", "oversampled", "weighted"])
def test_a_worker_returns_the_score_of_the_classifier_that_it_saved(
    arm: Arm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, synthetic = write_real(train=thinned()), write_synthetic(DIGITS[REST], LABELS[REST])
    monkeypatch.setattr(utility, "_sets", (real, synthetic), raising=False)
    score = utility._train(TINY.training(arm, 1.0, 0, 0.01), tmp_path / "a.safetensors")
    truth = LABELS[VALIDATION]
    right = predict(load(tmp_path / "a.safetensors"), DIGITS[VALIDATION]).argmax(axis=1) == truth
    accuracy, balanced = 100 * right.mean(), 100 * np.mean([right[truth == label].mean() for label in range(10)])
    assert abs(accuracy - balanced) > 1e-6
    assert score == pytest.approx(accuracy if arm == "real_long" else balanced)


@pytest.mark.parametrize("label", [0, 9])  # one of many images, and a rare one
def test_a_class_without_test_images_has_no_figure_and_changes_none(label: int) -> None:
    shown = LABELS[TEST] != label
    write_real(test=(DIGITS[TEST][shown], LABELS[TEST][shown]), train=thinned())
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = Params(fractions=(1.0,), seeds=3)
    report = described(guessed(params, LABELS[TEST][shown]), params)
    json.dumps(report, allow_nan=False)
    (row,) = report["rows"]
    others = [name for name in CLASSES if name != str(label)]
    assert row["class_gain_over_real_long"][str(label)] is None
    assert None not in [row["class_gain_over_real_long"][name] for name in others]
    assert f"Without a test image, and so in no figure of a class: '{label}'." in report["protocol"]
    rare = row["rare"]
    assert list(rare["images"]) == [name for name in "89" if name in others]
    assert rare["recall_by_class"][str(label)] is None
    for arm in ("filled", "weighted"):
        recalls = {name: rare["recall_by_class"][name][arm] for name in others}
        assert rare["balanced_accuracy"][arm]["mean"] == pytest.approx(np.mean(list(recalls.values())), abs=1e-3)
        assert rare["recall"][arm]["mean"] == pytest.approx(
            np.mean([recalls[name] for name in rare["images"]]), abs=1e-3
        )


def test_rare_classes_that_no_test_image_shows_are_not_asked_for() -> None:
    shown = LABELS[TEST] < 8
    write_real(test=(DIGITS[TEST][shown], LABELS[TEST][shown]), train=thinned())
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = Params(fractions=(1.0,), seeds=2)
    report = described(guessed(params, LABELS[TEST][shown]), params)
    assert "rare" not in report["rows"][0]
    assert not any(line.startswith(("filled", "Rare")) for line in report["protocol"])


def test_the_protocol_says_on_what_and_with_what_it_was_measured() -> None:
    real = write_real()
    synthetic = write_synthetic(DIGITS[REST], LABELS[REST], data_fingerprint=real.fingerprint)
    params = Params(fractions=(1.0,), seeds=7, choosing_seeds=3, images_seen=20_000, width=24, flip=True)
    report = described(guessed(params, LABELS[TEST]), params)
    (line,) = [line for line in report["protocol"] if line.startswith("Intervals")]
    assert "over 7 seeds, on 400 test images" in line
    told = "\n".join(report["protocol"])
    for said in (
        "a residual network (arXiv 1512.03385) with 24 channels",
        "mirrored at even odds.",
        "Each saw 20,000 images, of the arm real 10,000. Learning rates are of 0.005, 0.02, synthetic parts of 0.3, "
        "0.7, chosen by 3 of the 7 seeds on 100 validation images.",
        f"Real images: 400 for training, of {real.fingerprint[:12]}, resize none. Synthetic images: 897, of "
        f"{synthetic.fingerprint[:12]}, whose generator learned from {real.fingerprint[:12]}.",
        f"torch {version('torch')}.",
        "numpy ",
    ):
        assert said in told
    assert "Without a test image" not in told
    assert "seeds only" not in report["rows"][0]["sentence"]
    few = dataclasses.replace(params, seeds=3)
    assert described(guessed(few, LABELS[TEST]), few)["rows"][0]["sentence"].endswith("; by 3 seeds only, fewer than 5")


def test_of_thinned_out_data_it_is_said_which_classes_were() -> None:
    real = write_real(train=thinned())
    write_synthetic(DIGITS[REST], LABELS[REST], data_fingerprint=real.fingerprint)
    params = Params(fractions=(0.1, 1.0), seeds=5)
    section = {"train_fraction": 0.5, "class_counts": {8: 3, 9: 3}, "image_size": 8}
    _, kept = utility.read_params(Document({"ingest": section, "utility": {}}))
    report = described(guessed(params, LABELS[TEST]), params, kept)
    part, whole = report["rows"]
    whom = (
        " for who has 5 % of the data ('8', '9' thinned out) and receives this set, whose generator learned from 50 %"
    )
    assert whom in part["sentence"]
    for sentence in (whole["sentence"], whole["rare"]["sentence"]):
        assert " at 50 % of the data ('8', '9' thinned out), which is all that its generator learned from: " in sentence
    assert [row["data"] for row in report["rows"]] == ["5 %", "50 %"]
    assert "Thinned out by ingest.class_counts: 8 with 3 images, 9 with 3." in report["protocol"]
    assert "thinned" not in json.dumps(described(guessed(params, LABELS[TEST]), params))


def test_classes_may_be_rare_with_one_share_of_the_data_only(tmp_path: Path) -> None:
    """As in a study, in which `ingest` keeps other numbers of images for each share."""
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = Params(fractions=(1.0,), seeds=2)
    rows = []
    for train in ((DIGITS[TRAIN], LABELS[TRAIN]), thinned()):
        write_real(train=train)
        rows.append(only_row(guessed(params, LABELS[TEST]), params))
    plain, thin = csv.DictReader(utility.table(rows).splitlines())
    assert plain["rare_recall_filled"] == ""
    assert float(thin["rare_recall_filled"]) == rows[1]["rare"]["recall"]["filled"]["mean"]
    draw(tmp_path / "study.png", rows)
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_choices_are_drawn_with_the_chosen_one_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_real(train=thinned())
    write_synthetic(DIGITS[REST], LABELS[REST])
    params = Params(fractions=(0.1, 1.0), seeds=2)
    choices = described(guessed(params, LABELS[TEST]), params)["choices"]
    figures: list[Figure] = []
    monkeypatch.setattr("pipeline.report.utility.save_figure", lambda figure, _: figures.append(figure))
    draw_choices(tmp_path / "choices.png", choices)
    for axes, arms in zip(figures[0].axes, (("real_long", "mixed"), ("oversampled", "filled")), strict=True):
        for number, fraction in enumerate(params.fractions):
            line, ring = axes.lines[2 * number : 2 * number + 2]
            tried = [each for arm in arms for each in choices if (each["arm"], each["fraction"]) == (arm, fraction)]
            points = [(each["synthetic_share"], each["validation_accuracy"]) for each in tried]
            np.testing.assert_allclose(line.get_xydata(), points, atol=0.02)
            assert line.get_label() == f"{('10', '100')[number]} % of the real training images"
            (chosen,) = [point for point, each in zip(points[1:], tried[1:], strict=True) if each["chosen"]]
            np.testing.assert_allclose(ring.get_xydata(), [chosen], atol=0.02)


def thinned() -> tuple[np.ndarray, np.ndarray]:
    """The training images, with three of class 8 and of class 9."""
    images, labels = DIGITS[TRAIN], LABELS[TRAIN]
    rows = np.concatenate([np.flatnonzero(labels == label)[: 3 if label >= 8 else None] for label in range(10)])
    return images[rows], labels[rows]


def test_rare_classes_filled_up_with_new_images_are_seen_and_noise_is_not_said_to_help(
    measure: Callable[..., Outcome], tmp_path: Path
) -> None:
    real = write_real(train=thinned())
    params = Params(
        fractions=(1.0,), seeds=3, images_seen=3000, learning_rates=(0.01,), synthetic_shares=(0.7,), width=8
    )
    write_synthetic(DIGITS[REST], LABELS[REST], data_fingerprint=real.fingerprint)
    outcome = measure(params, imbalanced=True)
    assert sum(training.images_seen for training in outcome.validation) == params.all_images_seen(imbalanced=True)
    row = only_row(outcome, params)
    rare, accuracy = row["rare"], row["accuracy_by_seed"]
    assert rare["images"] == {"8": 3, "9": 3}
    assert rare["recall"]["real_long"]["mean"] + 5 < rare["recall"]["filled"]["mean"]
    assert rare["sentence"].startswith(f"filling up the rare classes (8 with 3 images, 9 with 3) {rare['verdict']} at ")
    for arm in ("real_long", "oversampled", "weighted"):
        by_seed = {each: np.array(rare["recall_by_seed"][each]) for each in ("filled", arm)}
        gained = np.mean(by_seed["filled"] - by_seed[arm])
        assert rare["recall_gain"][arm]["mean"] == pytest.approx(gained, abs=1e-3)
        recalls = [rare["recall_by_class"][name][arm] for name in CLASSES]
        assert rare["recall"][arm]["mean"] == pytest.approx(np.mean(recalls[8:]), abs=1e-3)
        assert rare["balanced_accuracy"][arm]["mean"] == pytest.approx(np.mean(recalls), abs=1e-3)
    sizes = np.bincount(LABELS[TEST])
    weighted = np.average([rare["recall_by_class"][name]["mixed"] for name in CLASSES], weights=sizes)
    assert weighted == pytest.approx(np.mean(accuracy["mixed"]), abs=1e-3)
    (line,) = csv.DictReader(utility.table([row]).splitlines())
    assert float(line["rare_recall_filled"]) == rare["recall"]["filled"]["mean"]
    draw(tmp_path / "rare.png", [row])
    assert (tmp_path / "rare.png").read_bytes().startswith(b"\x89PNG")

    noise = np.random.default_rng(0).integers(0, 256, (500, 1, 8, 8), dtype=np.uint8)
    write_synthetic(noise, np.arange(500) % 10, data_fingerprint=real.fingerprint)
    params = dataclasses.replace(params, seeds=2, images_seen=1000, width=8)
    assert only_row(measure(params, imbalanced=True), params)["rare"]["verdict"] != "helps"


def document(**settings: Any) -> Document:
    section = {
        "fractions": [0.2, 1.0],
        "seeds": 2,
        "images_seen": 1000,
        "learning_rates": [0.01],
        "synthetic_shares": [0.5],
        "width": 8,
    }
    return Document({"ingest": {"train_fraction": 0.1, "image_size": 8}, "utility": section | settings})


def test_one_worker_and_two_write_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = write_real()
    write_synthetic(DIGITS[REST], LABELS[REST], data_fingerprint=real.fingerprint)
    written = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        utility.run(document())
        written.append({path.name: path.read_bytes() for path in paths.UTILITY.rglob("*") if path.is_file()})
    assert written[0] == written[1]
    assert set(written[0]) == {"utility.json", "table.csv", "choices.csv", "utility.png", "choices.png"}
    report = json.loads(written[0]["utility.json"])
    assert [(row["data"], row["protocol"]) for row in report["rows"]] == [
        ("2 %", "shared-generator"),
        ("10 %", "same-data"),
    ]
    lines = list(csv.DictReader(written[0]["table.csv"].decode().splitlines()))
    assert [float(line["gain_over_real"]) for line in lines] == list(report["gain_over_real"].values())
    choices = list(csv.DictReader(written[0]["choices.csv"].decode().splitlines()))
    assert choices == [{name: str(value) for name, value in each.items()} for each in report["choices"]]
    assert {choice["arm"] for choice in choices if choice["chosen"] == "True"} == set(ARMS)


@pytest.mark.parametrize("other", [{"data_fingerprint": "0" * 64}, {"parent_sha256": "0" * 64}])
def test_a_generator_or_a_parent_of_other_data_is_never_same_data(
    measure: Callable[..., Outcome], other: dict[str, str]
) -> None:
    real = write_real()
    write_synthetic(DIGITS[REST], LABELS[REST], **({"data_fingerprint": real.fingerprint} | other))
    params = Params(fractions=(1.0,), seeds=2, images_seen=1000, learning_rates=(0.01,), synthetic_shares=(0.5,))
    row = only_row(measure(params), params)
    assert row["protocol"] == "shared-generator"
    assert "whose generator learned from other data" in row["sentence"]


def test_a_killed_stage_leaves_no_workers() -> None:
    write_real()
    write_synthetic(DIGITS[REST], LABELS[REST])
    code = f"""
from pipeline.params import Document
from pipeline.stages import utility
if __name__ == "__main__":
    utility.run(Document({document(images_seen=10**9).content!r}))
"""
    Path("main.py").write_text(code)
    stage = subprocess.Popen(
        [sys.executable, "main.py"], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    )
    workers = wait_for(lambda: trainers_of(stage.pid))
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def trainers_of(parent: int) -> list[int]:
    """Children that have used two seconds of CPU: begun, and at work."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent and int(fields[11]) > 2 * os.sysconf("SC_CLK_TCK"):
            found.append(int(stat.parent.name))
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("did not come to pass in two minutes")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"fractions": []}, "utility.fractions is []; needed numbers above 0 and at most 1, in ascending order"),
        ({"fractions": [0.1, 1.5]}, "utility.fractions is [0.1, 1.5]; needed"),
        ({"fractions": [0.2, 0.1]}, "utility.fractions is [0.2, 0.1]; needed"),
        ({"synthetic_shares": [0.5, 1.0]}, "utility.synthetic_shares has 1; needed shares below 1"),
        ({"seeds": 1}, "utility.seeds is 1; needed at least 2"),
        ({"choosing_seeds": 3}, "utility.choosing_seeds is 3; needed at most seeds, 2"),
        ({"seed": 1}, "utility.seed is not a setting; did you mean 'seeds'?"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: ") as error:
        utility.read_params(document(**setting))
    assert sentence in str(error.value)


def test_sets_that_do_not_fit_are_refused() -> None:
    write_real()
    write_imageset(
        paths.SYNTHETIC / paths.IMAGESET,
        rows(np.zeros((4, 3, 8, 8), np.uint8), np.arange(4) % 2, "train"),
        classes=("a", "b"),
        source={"kind": "generator"},
        resize=None,
        synthetic=True,
    )
    with pytest.raises(UserError, match=r"^out/synthetic/imageset: has 2 classes of shape \(3, 8, 8\); needed the 10"):
        utility.run(document())


def test_classes_of_other_names_are_refused_by_the_first_that_differs() -> None:
    write_real()
    write_imageset(
        paths.SYNTHETIC / paths.IMAGESET,
        rows(DIGITS[REST], LABELS[REST], "train"),
        classes=(*CLASSES[:7], "seven", *CLASSES[8:]),
        source={"kind": "generator"},
        resize=None,
        synthetic=True,
    )
    with pytest.raises(UserError) as error:
        utility.run(document())
    assert str(error.value) == "out/synthetic/imageset: calls class 7 'seven'; needed '7' as in out/real/imageset"


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (LABELS != 3, "has no image of 1 of 10 classes ('3'); needed at least one of each, as in out/real/imageset"),
        (LABELS == 3, "has no image of 9 of 10 classes ('0', '1', '2', '4', "),
    ],
)
def test_a_synthetic_set_that_lacks_classes_is_refused_before_anything_is_trained(
    held: np.ndarray, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_real()
    write_synthetic(DIGITS[held][:50], LABELS[held][:50])
    monkeypatch.delattr(utility, "measure")
    with pytest.raises(UserError, match=r"^out/synthetic/imageset: ") as error:
        utility.run(document())
    assert sentence in str(error.value)
