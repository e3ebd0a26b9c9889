"""The surprise of a linear classifier by its closed form and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.probe import surprise


def clouds(count: int, seed: int, *, apart: float = 4.0, width: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Points in the plane around three corners, that stand `apart`."""
    labels = np.arange(count) % 3
    corners = apart * np.array([[0, 0], [1, 0], [0, 1]])
    return corners[labels] + width * np.random.default_rng(seed).normal(size=(count, 2)), labels


def test_what_knows_nothing_is_surprised_as_by_a_die() -> None:
    features, labels = clouds(300, 1, apart=0)
    assert surprise(np.zeros_like(features), labels, features, labels, 3) == pytest.approx(np.log(3))


def test_two_classes_on_a_line_are_the_logistic_function() -> None:
    known, labels = np.array([[-2.0], [0.0], [0.0], [2.0]]), np.array([0, 0, 1, 1])  # means -1 and 1, variance 1
    found = surprise(known, labels, np.array([[0.75]]), np.array([1]), 2)
    assert found == pytest.approx(np.log1p(np.exp(-2 * 0.75)))


def test_images_like_the_held_out_ones_surprise_least() -> None:
    held_out, truth = clouds(3000, 2, apart=2)
    right = surprise(*clouds(3000, 3, apart=2), held_out, truth, 3)
    for wrong in (clouds(3000, 3, apart=4), clouds(3000, 3, apart=2, width=0.4), clouds(3000, 3, apart=2, width=2)):
        assert surprise(*wrong, held_out, truth, 3) > right + 0.01


@given(st.permutations(range(30)), st.floats(0.1, 10), st.floats(-5, 5), st.floats(0, 6))
def test_order_scale_place_and_direction_do_not_matter(
    order: list[int], scale: float, shift: float, angle: float
) -> None:
    (known, labels), (held_out, truth) = clouds(30, 4, apart=2), clouds(30, 5, apart=2)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = surprise(known[order] @ turn + shift, labels[order], held_out @ turn + shift, truth, 3)
    assert moved == pytest.approx(surprise(known, labels, held_out, truth, 3), rel=1e-6)


def test_a_class_without_images_cannot_be_known() -> None:
    features, labels = clouds(30, 1)
    with pytest.raises(ValueError, match=r"^class 3 has no features; needed some of each of 4 classes"):
        surprise(features, labels, features, labels, 4)
