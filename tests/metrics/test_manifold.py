"""Balls around real features: by hand on a line, and as precision of torch-fidelity's where there is one class."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.metrics.fidelity import fidelity
from pipeline.metrics.manifold import Manifold

LINE = np.array([[0.0], [1.0], [3.0], [7.0]], np.float32)  # radii for k = 1: 1, 1, 2, 4; for k = 2: 3, 2, 3, 6


@pytest.mark.parametrize(
    ("place", "nearest", "second"),
    [(-1.0, True, True), (-1.5, False, True), (-3.5, False, False), (5.0, True, True), (11.5, False, True)],
)
def test_a_ball_reaches_to_the_kth_nearest_other_image(place: float, nearest: bool, second: bool) -> None:
    manifold, asked = Manifold(LINE, np.zeros(4, np.int64), 2), np.array([[place]], np.float32)
    assert manifold.holds(asked, np.zeros(1, np.int64), 1).tolist() == [nearest]
    assert manifold.holds(asked, np.zeros(1, np.int64), 2).tolist() == [second]


def test_an_image_is_held_by_its_own_class_only() -> None:
    features = np.concatenate([LINE, LINE + 100])
    manifold = Manifold(features, np.repeat([4, 6], 4), 1)
    asked = np.array([[0.5], [100.5], [0.5], [100.5]], np.float32)
    assert manifold.holds(asked, np.array([4, 4, 6, 6]), 1).tolist() == [True, False, False, True]


def test_a_class_of_too_few_real_images_or_of_none_says_nothing() -> None:
    manifold = Manifold(LINE, np.array([0, 0, 0, 1]), 3)
    far, labels = np.full((4, 1), 1e6, np.float32), np.array([0, 0, 1, 2])
    assert manifold.holds(far, labels, 2).tolist() == [False, False, True, True]
    assert manifold.holds(far, labels, 3).all()


def test_of_one_class_the_share_that_is_held_is_its_precision() -> None:
    draw = np.random.default_rng(0)
    real, generated = draw.normal(size=(1500, 6)), draw.normal(0.3, 1.3, (1100, 6))  # blocks that are not full
    held = Manifold(real, np.zeros(1500, np.int64), 3).holds(generated, np.zeros(1100, np.int64), 3)
    assert 0.1 < held.mean() < 0.95
    assert held.mean() == pytest.approx(fidelity(generated, real, seed=0)["precision"], abs=1e-6)  # which is float32
