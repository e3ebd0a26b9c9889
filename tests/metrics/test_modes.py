"""Agreement, balance and spread by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.metrics.classifier import Classifier, predict, train_classifier
from pipeline.metrics.fidelity import neighbourhoods
from pipeline.metrics.modes import agreement, balance, by_class, least_diverse, mean_distances, pixel_spread, worst


def test_agreement_is_by_asked_for_class_and_unknown_without_images() -> None:
    found = agreement(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2]), 3)
    assert found[:2].tolist() == [0.75, 0.5]
    assert math.isnan(found[2])


def test_equal_shares_are_balanced_whatever_the_counts() -> None:
    found = balance(np.arange(30) % 3, np.arange(300) % 3, 3)
    assert found == {"classes_seen": 3, "classes_covered": 3, "kl_from_real": 0}


def test_one_class_of_four_is_a_collapse() -> None:
    found = balance(np.full(50, 2), np.arange(400) % 4, 4)
    assert found["classes_covered"] == 1
    assert found["kl_from_real"] == pytest.approx(math.log(4))


def test_a_class_below_a_tenth_of_its_share_is_not_covered() -> None:
    judged = np.repeat([0, 1], [96, 4])
    found = balance(judged, np.arange(100) % 2, 2)
    assert (found["classes_seen"], found["classes_covered"]) == (2, 1)
    assert found["kl_from_real"] == pytest.approx(0.96 * math.log(0.96 / 0.5) + 0.04 * math.log(0.04 / 0.5))


@pytest.fixture(scope="module")
def stacked() -> tuple[Classifier, np.ndarray, np.ndarray]:
    """A judge of stacked digits, and 10,000 stacks of digits that it has not seen, with their labels."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    random = np.random.default_rng(0)
    order = random.permutation(len(pixels))

    def stack(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = random.choice(rows, (count, 3))
        return pixels[chosen], digits.target[chosen] @ [100, 10, 1]

    train = stack(order[:1200], 10_000)
    judge = train_classifier(*train, classes=1000, seed=0, images_seen=10_000, per_channel=True)
    return judge, *stack(order[1200:], 10_000)


def test_stacked_digits_have_their_thousand_modes(stacked: tuple[Classifier, np.ndarray, np.ndarray]) -> None:
    judge, images, labels = stacked
    judged = predict(judge, images).argmax(axis=1)
    assert (judged == labels).mean() > 0.9**3
    found = balance(judged, np.arange(1000), 1000)
    assert found["classes_seen"] >= 995
    assert found["kl_from_real"] < 3 * 999 / 20_000  # the last is expected of 10,000 drawn evenly and judged rightly


def test_stacks_of_a_few_digits_have_the_modes_of_these(stacked: tuple[Classifier, np.ndarray, np.ndarray]) -> None:
    judge, images, _ = stacked
    red_is_blue = images[:, [0, 1, 0]]
    found = balance(predict(judge, red_is_blue).argmax(axis=1), np.arange(1000), 1000)
    assert found["classes_seen"] == 100
    assert found["kl_from_real"] == pytest.approx(math.log(10), abs=0.1)


def test_one_stack_again_and_again_is_one_mode(stacked: tuple[Classifier, np.ndarray, np.ndarray]) -> None:
    judge, images, _ = stacked
    found = balance(predict(judge, images[:1].repeat(500, axis=0)).argmax(axis=1), np.arange(1000), 1000)
    assert (found["classes_seen"], found["classes_covered"]) == (1, 1)
    assert found["kl_from_real"] == pytest.approx(math.log(1000))


def test_spread_is_the_deviation_within_each_class() -> None:
    images = np.array([10, 30, 7, 7, 100], np.uint8)[:, None, None, None].repeat(4, axis=2).repeat(4, axis=3)
    found = pixel_spread(images, np.array([0, 0, 1, 1, 2]), 4)
    assert found[:2].tolist() == [10, 0]
    assert np.isnan(found[2:]).all()


def test_the_mean_distance_is_that_of_all_pairs_of_a_label() -> None:
    square = np.array([[0, 0], [3, 0], [0, 4], [3, 4], [9, 9]], np.float32)
    found = mean_distances(square, np.array([0, 0, 0, 0, 1]))
    assert found == {0: pytest.approx((3 + 3 + 4 + 4 + 5 + 5) / 6)}  # one image has no pair


def test_the_least_diverse_label_is_found_by_the_measure_of_its_real_images() -> None:
    real = {0: 10.0, 1: 1.0, 2: 0.0, 3: 5.0}  # all images of 2 are one and the same
    assert least_diverse({0: 5.0, 1: 0.9, 2: 0.0}, real) == (0, 0.5)


def test_no_label_is_the_least_diverse_where_each_has_but_one_image() -> None:
    label, ratio = least_diverse({0: 5.0}, {})
    assert label == -1
    assert np.isnan(ratio)


def test_a_class_that_is_blurred_and_one_that_has_collapsed_are_told_apart() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(900) % 3
    real, other = random.normal(size=(2, 900, 6)) + 20 * labels[:, None]
    centre = 20 * labels[:, None]
    wide = np.where((labels == 1)[:, None], centre + 3 * (other - centre), other)
    both = np.where((labels == 2)[:, None], centre + 0.1 * (other - centre), wide)
    found = by_class((both, labels), (real, labels), 4, seed=0)
    assert found["precision"][1] < 0.5 < 0.9 < found["precision"][2]
    assert found["recall"][2] < 0.1 < 0.5 < found["recall"][0]
    assert found["diversity"][:3] == pytest.approx([1, 3, 0.1], rel=0.1)
    assert all(np.isnan(values[3]) for values in found.values())  # of this class there are no images
    assert worst(found)["worst_recall"] == found["recall"][2]
    assert worst({"recall": np.full(2, np.nan)}) == {}


def test_a_class_that_only_the_real_side_has_is_the_worst() -> None:
    rows, labels = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 3
    there = labels != 1
    found = by_class((rows[there], labels[there]), (rows, labels), 4, seed=0)
    assert {name: values[1] for name, values in found.items()} == {"precision": 0, "recall": 0, "diversity": 0}
    assert worst(found) == {"worst_precision": 0, "worst_recall": 0, "worst_diversity": 0}
    unknown = by_class((rows, labels), (rows[there], labels[there]), 4, seed=0)
    assert np.isnan(unknown["recall"][1])
    assert worst(unknown)["worst_recall"] > 0.5


def test_a_class_has_the_measures_of_a_set_of_its_own() -> None:
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(2, 40, 3))
    found = by_class((generated, np.zeros(40, int)), (real, np.zeros(40, int)), 1, seed=0)
    whole = neighbourhoods(generated, real)
    assert (found["precision"][0], found["recall"][0]) == (whole["precision"], whole["recall"])


def test_a_collapsed_set_is_less_diverse_and_as_many_other_images_are_about_as_diverse() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(600) % 3
    real, other = random.normal(size=(2, 600, 8))
    collapsed = np.where((labels == 1)[:, None], other * 0.1, other)
    assert least_diverse(mean_distances(other, labels), mean_distances(real, labels))[1] == pytest.approx(1, abs=0.05)
    label, share = least_diverse(mean_distances(collapsed, labels), mean_distances(real, labels))
    assert (label, share) == (1, pytest.approx(0.1, rel=0.05))
