"""Intervals by their closed form, what a row may be called, what each arm trains on and is chosen by."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import utility
from pipeline.metrics.utility import (
    RARE_ARMS,
    RARE_BASELINES,
    Arm,
    Data,
    Interval,
    Training,
    draw,
    filling_weights,
    intervals,
    protocol_of,
    rare_sentence,
    rare_verdict,
    sentence,
    t_interval,
    train,
    validation_score,
    verdict,
)


def test_the_interval_of_five_values_is_the_textbooks() -> None:
    half = 2.7764451052 * math.sqrt(2.5 / 5)  # t(0.975, 4), variance 2.5
    interval = t_interval([1, 2, 3, 4, 5])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-4)


def test_the_interval_of_two_values_is_wide() -> None:
    interval = t_interval([0, 2])
    assert interval.high == pytest.approx(1 + 12.7062047, abs=1e-3)


def test_equal_gains_are_no_certainty() -> None:
    assert t_interval([0.2, 0.2, 0.2], step=0.2) == Interval(mean=0.2, low=0.0, high=0.4)
    assert t_interval([1, 2, 3, 4, 5], step=0.2) == t_interval([1, 2, 3, 4, 5])


def test_intervals_hold_the_truth_95_times_in_100() -> None:
    samples = np.random.default_rng(0).normal(0.3, 2, size=(4000, 5))
    held = [interval.low <= 0.3 <= interval.high for interval in map(t_interval, samples)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match=r"^values are 1; needed at least 2"):
        t_interval([1.0])


@pytest.mark.parametrize(
    ("fraction", "same_set", "protocol"),
    [(1.0, True, "same-data"), (0.5, True, "shared-generator"), (1.0, False, "shared-generator")],
)
def test_only_all_of_the_generators_own_images_are_same_data(fraction: float, same_set: bool, protocol: str) -> None:
    assert protocol_of(fraction, same_set=same_set) == protocol


ABOVE, AROUND, BELOW = (Interval(mean=mean, low=mean - 1, high=mean + 1) for mean in (2, 0, -2))


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ((ABOVE, ABOVE), "helps"),
        ((ABOVE, AROUND), "makes no difference"),
        ((AROUND, AROUND), "makes no difference"),
        ((ABOVE, BELOW), "harms"),
        ((BELOW, BELOW), "harms"),
    ],
)
def test_a_set_helps_only_against_both_baselines(gains: tuple[Interval, Interval], word: str) -> None:
    assert verdict(gains) == word


def test_only_same_data_says_that_it_helps_at_a_share_of_the_data() -> None:
    gains = Interval(mean=1.234, low=0.5, high=2), Interval(mean=1, low=0.25, high=1.75)
    same = sentence("same-data", "10 % of the data", "10 % of it", *gains, seeds=5)
    shared = sentence("shared-generator", "10 % of the data", "100 % of it", *gains, seeds=5)
    assert same.startswith("helps at 10 % of the data")
    assert "helps at" not in shared
    assert "whose generator learned from 100 % of it" in shared
    assert "+1.23 points [+0.50, +2.00] over real only, +1.00 points [+0.25, +1.75]" in shared


def test_a_verdict_of_few_seeds_says_how_few() -> None:
    said = {seeds: sentence("same-data", "5 %", "5 % of it", ABOVE, ABOVE, seeds) for seeds in (2, 4, 5)}
    assert said[2].endswith("with as many images seen; by 2 seeds only, fewer than 5")
    assert said[4].endswith("; by 4 seeds only, fewer than 5")
    assert said[5].endswith("with as many images seen")
    rare = rare_sentence("same-data", "5 %", "5 % of it", {"8": 1}, rare_gains(), rare_gains(), 3)
    assert rare.endswith("; by 3 seeds only, fewer than 5")


def test_the_line_of_the_intervals_carries_seeds_test_images_and_that_nothing_is_corrected() -> None:
    line = intervals(7, 1234)
    assert line.startswith("Intervals are 95 % t intervals")  # what cards and summaries find it by
    assert "over 7 seeds, on 1,234 test images" in line
    assert "none is corrected for how many comparisons there are" in line


@pytest.mark.parametrize(("arm", "score"), [(arm, 50) for arm in RARE_ARMS] + [("mixed", 75), ("real_long", 75)])
def test_arms_that_are_told_of_rare_classes_are_chosen_by_the_mean_over_classes(arm: Arm, score: float) -> None:
    right, labels = np.array([True, True, True, False]), np.array([0, 0, 0, 2])  # none of class 1, which counts not
    assert validation_score(arm, right, labels) == score


sizes = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=6)


@given(sizes, st.floats(0, 1))
def test_filled_up_all_classes_are_shown_equally_often(counts: list[tuple[int, int]], share: float) -> None:
    real, synthetic = (np.repeat(np.arange(len(counts)), side) for side in zip(*counts, strict=True))
    of_real, of_synthetic = filling_weights(real, synthetic, share, len(counts))
    largest = max(count for count, _ in counts)
    for label, (have, made) in enumerate(counts):
        part = of_synthetic[synthetic == label].sum()
        assert part == pytest.approx(share * (1 - have / largest) if made else 0, abs=1e-12)
        assert part + of_real[real == label].sum() == pytest.approx(1)
        assert len(set(of_real[real == label])) == 1
    assert (of_real >= 0).all()
    assert (of_synthetic >= 0).all()


def rare_gains(**by_arm: Interval) -> dict[Arm, Interval]:
    return {arm: by_arm.get(arm, ABOVE) for arm in RARE_BASELINES}


@pytest.mark.parametrize(
    ("recall", "balanced", "word"),
    [
        (rare_gains(), rare_gains(), "helps"),
        (rare_gains(), rare_gains(weighted=AROUND), "helps"),
        (rare_gains(oversampled=AROUND), rare_gains(), "makes no difference"),
        (rare_gains(weighted=AROUND), rare_gains(), "makes no difference"),
        (rare_gains(real=BELOW), rare_gains(), "harms"),
        (rare_gains(), rare_gains(oversampled=BELOW), "harms"),
    ],
)
def test_filling_up_helps_only_when_it_beats_all_that_is_told_of_rare_classes(
    recall: dict[Arm, Interval], balanced: dict[Arm, Interval], word: str
) -> None:
    assert rare_verdict(recall, balanced) == word


def test_the_rare_classes_and_what_was_beaten_are_named() -> None:
    said = rare_sentence(
        "same-data", "100 % of the data", "100 % of it", {"8": 11, "9": 1}, rare_gains(), rare_gains(weighted=AROUND), 5
    )
    assert said.startswith("filling up the rare classes (8 with 11 images, 9 with 1) helps at 100 % of the data, which")
    assert "their recall +2.00 points [+1.00, +3.00] over real only, +2.00" in said
    assert "over real only with as many images seen, +2.00" in said
    assert "over oversampling" in said
    assert said.endswith("+0.00 points [-1.00, +1.00] over class weights")


hashes = st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=20, max_size=60, unique=True)


@given(hashes, st.integers(0, 9))
def test_a_smaller_draw_is_a_part_of_a_larger_one(contents: list[str], seed: int) -> None:
    labels = np.arange(len(contents)) % 3
    small, large = (draw(contents, labels, fraction, seed) for fraction in (0.1, 0.4))
    assert set(small) <= set(large)
    assert set(labels[small]) == {0, 1, 2}


def test_another_seed_draws_other_images() -> None:
    contents, labels = [f"{number:064x}" for number in range(200)], np.zeros(200, np.int64)
    assert set(draw(contents, labels, 0.2, 0)) != set(draw(contents, labels, 0.2, 1))


@pytest.fixture
def data() -> Data:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    return Data(
        real=(images[0], labels),
        contents=[f"{number:064x}" for number in range(40)],
        synthetic=(images[1], labels),
        classes=2,
    )


def training_of(arm: Arm, synthetic_share: float, seed: int = 3) -> Training:
    return Training(
        arm=arm,
        fraction=0.5,
        seed=seed,
        images_seen=300,
        learning_rate=0.01,
        width=8,
        flip=False,
        synthetic_share=synthetic_share,
    )


def trained(data: Data, synthetic_share: float, arm: Arm = "mixed") -> torch.Tensor:
    return train(training_of(arm, synthetic_share), data).head.weight


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `train` asks to be trained on, call by call; nothing is."""
    calls: list[dict[str, Any]] = []

    def record(images: np.ndarray, labels: np.ndarray, **settings: Any) -> None:
        calls.append({"images": images, "labels": labels, **settings})

    monkeypatch.setattr(utility, "train_classifier", record)
    return calls


def test_the_arms_of_a_seed_have_the_same_real_images_and_first_weights(
    data: Data, shown: list[dict[str, Any]]
) -> None:
    arms: dict[Arm, float] = {"real_long": 0.0, "real": 0.0, "mixed": 0.5}
    arms |= {"oversampled": 0.0, "weighted": 0.0, "filled": 0.5}
    known = {image.tobytes() for image in data.real[0]}
    by_seed = []
    for seed in (3, 4):
        for arm, share in arms.items():
            train(training_of(arm, share, seed), data)
        first, *others = ([image.tobytes() for image in call["images"] if image.tobytes() in known] for call in shown)
        assert len(first) == 20
        assert all(other == first for other in others)
        assert {call["seed"] for call in shown} == {seed}
        assert [len(call["images"]) for call in shown] == [20 if share == 0 else 60 for share in arms.values()]
        by_seed.append(first)
        shown.clear()
    assert set(by_seed[0]) != set(by_seed[1])


@pytest.mark.parametrize(
    ("share", "side", "needed"),
    [
        (0.0, "real", True),
        (0.0, "synthetic", False),
        (0.5, "real", True),
        (0.5, "synthetic", True),
        (1.0, "real", False),
        (1.0, "synthetic", True),
    ],
)
def test_an_arm_learns_from_its_own_images_only(data: Data, share: float, side: str, needed: bool) -> None:
    images, labels = getattr(data, side)
    other = dataclasses.replace(data, **{side: (255 - images, labels)})
    assert torch.equal(trained(data, share), trained(other, share)) is not needed


@pytest.fixture
def imbalanced(data: Data) -> Data:
    """Twenty images of class 0, three of class 1."""
    rows = np.flatnonzero((data.real[1] == 0) | (np.arange(40) % 16 == 1))
    contents = [data.contents[row] for row in rows]
    return dataclasses.replace(data, real=(data.real[0][rows], data.real[1][rows]), contents=contents)


def test_each_arm_that_is_told_of_rare_classes_learns_in_its_own_way(imbalanced: Data) -> None:
    arms: dict[Arm, float] = {"real_long": 0.0, "oversampled": 0.0, "weighted": 0.0, "filled": 0.5}
    weights = {arm: trained(imbalanced, share, arm) for arm, share in arms.items()}
    for one in arms:
        for other in arms:
            assert torch.equal(weights[one], weights[other]) is (one == other)


def test_losses_are_weighted_by_the_inverse_size_of_the_class(imbalanced: Data, shown: list[dict[str, Any]]) -> None:
    arms: tuple[Arm, ...] = ("weighted", "real_long", "oversampled")
    for arm in arms:
        train(training_of(arm, 0.0), imbalanced)
    weighted, *others = shown
    assert np.bincount(weighted["labels"]).tolist() == [10, 2]
    assert weighted["class_weights"].tolist() == [1 / 10, 1 / 2]
    assert len(set(weighted["weights"])) == 1  # shown as often as any other image
    assert [call["class_weights"] for call in others] == [None, None]


@pytest.mark.parametrize("arm", ["oversampled", "filled"])
def test_synthetic_images_of_the_largest_class_are_never_shown(imbalanced: Data, arm: Arm) -> None:
    share = 0.5 if arm == "filled" else 0.0
    images, labels = imbalanced.synthetic
    for label, needed in ((0, False), (1, arm == "filled")):
        inverted = np.where((labels == label)[:, None, None, None], 255 - images, images)
        other = dataclasses.replace(imbalanced, synthetic=(inverted, labels))
        assert torch.equal(trained(imbalanced, share, arm), trained(other, share, arm)) is not needed
