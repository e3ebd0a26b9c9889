"""Nearest training images: against a plain search, and copies are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.neighbours import (
    Nearest,
    _flat,
    alike,
    expected_nearer,
    memorization,
    nearer,
    nearest,
    nearest_as_made,
    nearest_features,
    nearest_of_domain,
)


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


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_copy_of_one_of_many_that_nearly_equal_each_other_is_found(size: int) -> None:
    training = np.full((100, 3, size, size), 200, np.uint8)
    training.reshape(100, -1)[np.arange(100), np.arange(100)] = 201  # one level in one place, each in another
    distances, rows = nearest(training[::2], training)
    assert (distances == 0).all()
    np.testing.assert_array_equal(rows, np.arange(0, 100, 2))


def test_black_is_as_far_from_white_as_can_be() -> None:
    black, white = np.zeros((1, 1, 4, 4), np.uint8), np.full((1, 1, 4, 4), 255, np.uint8)
    assert nearest(black, white)[0] == [255]


def test_what_differs_in_small_parts_only_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where directions leave much over, few images are out of reach; where they leave nothing, many."""
    random = np.random.default_rng(0)
    flat = np.full((300, 1, 16, 16), 90, np.uint8) + random.integers(0, 2, (300, 1, 16, 16), dtype=np.uint8)
    ramps = (random.integers(0, 60, (300, 1, 1, 1)) * np.linspace(0, 4, 16)).astype(np.uint8).repeat(16, axis=2)
    spots = np.zeros((300, 1, 16, 16), np.uint8)
    spots[np.arange(300), 0, random.integers(0, 16, 300), random.integers(0, 16, 300)] = 255
    for references in (flat, ramps, spots, np.concatenate([flat, ramps, spots]), noise(300, (1, 16, 16), 1)):
        images = np.concatenate([references[::7], noise(20, (1, 16, 16), 2), 255 - references[:20]])
        plain = ((images[:, None].astype(float) - references) ** 2).mean(axis=(2, 3, 4))
        for directions in (1, 8, 64):
            monkeypatch.setattr("pipeline.metrics.neighbours._DIRECTIONS", directions)
            distances, _ = nearest(images, references)
            np.testing.assert_allclose(distances, np.sqrt(plain.min(axis=1)), rtol=1e-5)


def test_few_references_are_looked_at_in_full() -> None:
    random = np.random.default_rng(0)
    kinds = random.normal(128, 50, (2000, 6)) @ random.normal(0, 0.1, (6, 256))
    images = (kinds + random.normal(128, 5, kinds.shape)).clip(0, 255).astype(np.uint8).reshape(-1, 1, 16, 16)
    find = Nearest(images[:1900])
    assert len(find._in_reach(_flat(images[1900:1910]))) < 950
    distances, rows = find(images[1900:])
    plain = ((images[1900:, None].astype(float) - images[:1900]) ** 2).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(rows, plain.argmin(axis=1))
    np.testing.assert_allclose(distances, np.sqrt(plain.min(axis=1)), rtol=1e-5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, others = noise(50, (1, 5, 5), 1), noise(40, (1, 5, 5), 2)
    whole = nearest(images, others)
    for name in ("_BLOCK_ROWS", "_ROWS"):
        monkeypatch.setattr(f"pipeline.metrics.neighbours.{name}", 7)
    for before, after in zip(whole, nearest(images, others), strict=True):
        np.testing.assert_array_equal(before, after)


def test_refuses_nothing_to_compare_with_and_other_sizes() -> None:
    with pytest.raises(ValueError, match="references are"):
        nearest(noise(2, (1, 4, 4), 1), noise(0, (1, 4, 4), 1))
    with pytest.raises(ValueError, match=r"needed the shape \(1, 4, 4\) of the images"):
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


@pytest.mark.parametrize("held_out", [20, 150])
def test_new_images_are_as_often_near_as_is_expected_beside_few_held_out_ones(held_out: int) -> None:
    random = np.random.default_rng(0)
    found = [nearer(random.random(4000), random.random(held_out)) for _ in range(4000)]
    for name, share in expected_nearer(held_out).items():
        values = [each[name] for each in found]
        assert np.mean(values) == pytest.approx(share, abs=5 * np.std(values) / np.sqrt(len(values)))


def test_held_out_images_get_the_shares_of_classes_of_the_generated_ones() -> None:
    held_out = np.array([0] * 6 + [1] * 2 + [3] * 2)
    rows, independent = alike(np.array([0, 1] * 20), held_out)
    assert np.bincount(rows, minlength=10).tolist() == [1, 1, 1, 1, 1, 0, 3, 2, 0, 0]
    assert independent == 100 // (5 + 9 + 4)
    rows, independent = alike(np.array([0] * 30 + [1] * 10 + [3] * 10), held_out)
    assert (sorted(rows), independent) == (list(range(10)), 10)
    assert alike(np.array([2]), held_out)[0].tolist() == list(range(10))  # nothing of the kind to compare with


def test_a_balanced_set_is_as_near_as_is_expected_beside_held_out_images_that_are_not_balanced() -> None:
    """Of two classes, of which one lies ten times as far."""
    random = np.random.default_rng(0)
    labels, held_out = np.repeat([0, 1], 200), np.repeat([0, 1], (160, 16))
    rows, independent = alike(labels, held_out)
    shares = []
    for _ in range(300):
        generated, expected = (random.uniform(1, 2, len(side)) * 10.0**side for side in (labels, held_out))
        shares.append(nearer(generated, expected[rows]))
    for name, share in expected_nearer(independent).items():
        assert np.mean([each[name] for each in shares]) == pytest.approx(share, abs=0.015)


def test_distances_in_features_are_those_of_a_plain_search() -> None:
    features, references = np.random.default_rng(0).normal(size=(2, 300, 5)).astype(np.float32)
    plain = np.linalg.norm(features[:, None].astype(float) - references, axis=2)
    distances, rows = nearest_features(features, references)
    np.testing.assert_allclose(distances, plain.min(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(rows, plain.argmin(axis=1))
    distances, rows = nearest_features(references, references)
    assert distances.max() < 1e-5
    np.testing.assert_array_equal(rows, np.arange(300))


def test_of_a_translation_the_nearest_is_of_its_domain_unless_it_is_a_copy() -> None:
    references = np.array([10, 20, 100, 200], np.uint8)[:, None, None, None].repeat(4, axis=3)
    domains = np.array([0, 0, 1, 1])
    images = np.array([21, 20, 110, 15], np.uint8)[:, None, None, None].repeat(4, axis=3)
    distances, rows = nearest_of_domain(images, np.array([1, 1, 0, 0]), references, domains)
    assert rows.tolist() == [2, 1, 1, 0]  # its source, at 1, does not count; a copy does; then two of its own domain
    assert distances.tolist() == [79, 0, 90, 5]
    sides = images, np.array([1, 1, 0, 0]), references, domains
    assert nearest_as_made(*sides, translated=True)[1].tolist() == [2, 1, 1, 0]
    assert nearest_as_made(*sides, translated=False)[1].tolist() == [1, 1, 2, 0]
