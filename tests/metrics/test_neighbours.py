"""Nearest training images: against a plain search, and copies are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.neighbours import memorization, nearest, nearest_of_domain


def noise(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@given(
    count=st.integers(0, 20),
    references=st.integers(1, 30),
    channels=st.sampled_from([1, 3]),
    size=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_finds_what_a_plain_search_finds(count: int, references: int, channels: int, size: int, seed: int) -> None:
    images, others = (noise(n, (channels, size, size), seed + n) for n in (count, references))
    apart = images[:, None].astype(float) - others[None]
    plain = np.sqrt((apart**2).mean(axis=(2, 3, 4)))
    distances, rows = nearest(images, others)
    np.testing.assert_allclose(distances, plain.min(axis=1), rtol=1e-5)
    np.testing.assert_allclose(plain[np.arange(count), rows], plain.min(axis=1), rtol=1e-5)


def test_a_copy_is_at_exactly_nothing() -> None:
    training = noise(500, (3, 32, 32), 1)
    order = np.random.default_rng(0).permutation(500)
    distances, rows = nearest(training[order], training)
    assert (distances == 0).all()
    np.testing.assert_array_equal(rows, order)


def test_black_is_as_far_from_white_as_can_be() -> None:
    black, white = np.zeros((1, 1, 4, 4), np.uint8), np.full((1, 1, 4, 4), 255, np.uint8)
    assert nearest(black, white)[0] == [255]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, others = noise(50, (1, 5, 5), 1), noise(40, (1, 5, 5), 2)
    whole = nearest(images, others)
    monkeypatch.setattr("pipeline.metrics.neighbours._BLOCK_ROWS", 7)
    for before, after in zip(whole, nearest(images, others), strict=True):
        np.testing.assert_array_equal(before, after)


def test_refuses_nothing_to_compare_with_and_other_sizes() -> None:
    with pytest.raises(ValueError, match="references are"):
        nearest(noise(2, (1, 4, 4), 1), noise(0, (1, 4, 4), 1))
    with pytest.raises(ValueError, match=r"needed at least 1 of the shape \(1, 4, 4\)"):
        nearest(noise(2, (1, 4, 4), 1), noise(5, (3, 4, 4), 1))


def test_copies_are_all_nearer_and_new_images_as_expected() -> None:
    training, held_out, new = (noise(count, (1, 3, 3), seed) for count, seed in ((2000, 1), (3000, 2), (3000, 3)))
    expected = nearest(held_out, training)[0]
    copied = memorization(nearest(training[:100], training)[0], expected)
    assert copied == {"nearer_than_median": 1, "nearer_than_percentile_1": 1, "copies": 100, "nearest": 0}
    fresh = memorization(nearest(new, training)[0], expected)
    assert fresh["nearer_than_median"] == pytest.approx(0.5, abs=0.05)
    assert fresh["nearer_than_percentile_1"] == pytest.approx(0.01, abs=0.01)
    assert fresh["copies"] == 0


def test_of_a_translation_the_nearest_is_of_its_domain_unless_it_is_a_copy() -> None:
    references = np.array([10, 20, 100, 200], np.uint8)[:, None, None, None].repeat(4, axis=3)
    domains = np.array([0, 0, 1, 1])
    images = np.array([21, 20, 110, 15], np.uint8)[:, None, None, None].repeat(4, axis=3)
    distances, rows = nearest_of_domain(images, np.array([1, 1, 0, 0]), references, domains)
    assert rows.tolist() == [2, 1, 1, 0]  # its source, at 1, does not count; a copy does; then two of its own domain
    assert distances.tolist() == [79, 0, 90, 5]
