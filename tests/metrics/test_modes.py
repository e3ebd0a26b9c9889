"""Agreement, balance and spread by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.metrics.modes import agreement, balance, pixel_spread


def test_agreement_is_by_asked_for_class_and_unknown_without_images() -> None:
    found = agreement(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2]), 3)
    assert found[:2].tolist() == [0.75, 0.5]
    assert math.isnan(found[2])


def test_equal_shares_are_balanced_whatever_the_counts() -> None:
    assert balance(np.arange(30) % 3, np.arange(300) % 3, 3) == {"classes_covered": 3, "kl_from_real": 0}


def test_one_class_of_four_is_a_collapse() -> None:
    found = balance(np.full(50, 2), np.arange(400) % 4, 4)
    assert found["classes_covered"] == 1
    assert found["kl_from_real"] == pytest.approx(math.log(4))


def test_a_class_below_a_tenth_of_its_share_is_not_covered() -> None:
    judged = np.repeat([0, 1], [96, 4])
    assert balance(judged, np.arange(100) % 2, 2)["classes_covered"] == 1


def test_spread_is_the_deviation_within_each_class() -> None:
    images = np.array([10, 30, 7, 7, 100], np.uint8)[:, None, None, None].repeat(4, axis=2).repeat(4, axis=3)
    found = pixel_spread(images, np.array([0, 0, 1, 1, 2]), 4)
    assert found[:2].tolist() == [10, 0]
    assert np.isnan(found[2:]).all()
