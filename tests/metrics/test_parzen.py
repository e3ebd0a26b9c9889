"""Log densities by closed forms; sums in any order; the σ that is best on images of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pipeline.metrics.parzen import CHOOSING, SIGMAS, log_likelihoods, parzen


def noise(count: int, seed: int, shape: tuple[int, ...] = (3, 4, 4)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_one_sample_is_an_isotropic_gaussian() -> None:
    (centre,), images = noise(1, 1), noise(5, 2)
    for sigma, found in zip([0.1, 0.7], log_likelihoods(centre[None], images, np.array([0.1, 0.7])), strict=True):
        gaussian = multivariate_normal(centre.ravel() / 255, sigma**2)
        np.testing.assert_allclose(found, gaussian.logpdf(images.reshape(5, -1) / 255), rtol=1e-12)


def test_many_samples_are_the_mean_of_their_gaussians() -> None:
    samples, images = noise(7, 1, (1, 2, 2)), noise(5, 2, (1, 2, 2))
    densities = [multivariate_normal(sample.ravel() / 255, 0.25).pdf(images.reshape(5, 4) / 255) for sample in samples]
    (found,) = log_likelihoods(samples, images, np.array([0.5]))
    np.testing.assert_allclose(np.exp(found), np.mean(densities, axis=0), rtol=1e-12)


def test_twice_the_same_sample_changes_nothing() -> None:
    samples, images = noise(10, 1), noise(20, 2)
    once, twice = (log_likelihoods(centres, images, SIGMAS) for centres in (samples, np.tile(samples, (2, 1, 1, 1))))
    np.testing.assert_allclose(once, twice, rtol=1e-12)


def test_densities_below_all_numbers_have_their_logarithm() -> None:
    """Black is 28² = 784 (squared) from white: at σ 0.1 the density is e^-38000, and next to it nothing is seen."""
    black, white = np.zeros((1, 1, 28, 28), np.uint8), np.full((1, 1, 28, 28), 255, np.uint8)
    alone = -784 / (2 * 0.1**2) - 392 * math.log(2 * math.pi * 0.1**2)
    assert log_likelihoods(black, white, np.array([0.1]))[0, 0] == pytest.approx(alone, rel=1e-12)
    beside = math.log(0.5) - 392 * math.log(2 * math.pi * 0.1**2)
    both = np.concatenate([black, white])
    assert log_likelihoods(both, white, np.array([0.1]))[0, 0] == pytest.approx(beside, rel=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, images = noise(30, 1), noise(50, 2)
    whole = log_likelihoods(samples, images, SIGMAS)
    monkeypatch.setattr("pipeline.metrics.parzen._BLOCK_PAIRS", 7 * 30)
    np.testing.assert_allclose(log_likelihoods(samples, images, SIGMAS), whole, rtol=1e-14)


def gaussian(count: int, seed: int, sigma: float) -> np.ndarray:
    """Images of 8×8 pixels, normal around the middle gray."""
    pixels = np.random.default_rng(seed).normal(0.5, sigma, (count, 1, 8, 8))
    return np.rint(255 * pixels).clip(0, 255).astype(np.uint8)


def test_sigma_is_the_one_nearest_to_the_truth() -> None:
    """Images around one sample with a deviation of 0.165: the grid's 0.167, whatever the test images would want."""
    sample = np.full((1, 1, 8, 8), 128, np.uint8)
    found = parzen(sample, gaussian(CHOOSING, 1, 0.165), gaussian(500, 2, 0.1))
    assert found["sigma"] == SIGMAS[2] == pytest.approx(0.1668, abs=1e-4)
    (scores,) = log_likelihoods(sample, gaussian(500, 2, 0.1), SIGMAS[2:3])
    assert found["log_likelihood"] == pytest.approx(scores.mean())
    assert found["standard_error"] == pytest.approx(scores.std() / math.sqrt(500), rel=2e-3)


def test_the_grid_is_that_of_2014() -> None:
    np.testing.assert_allclose(np.log10(SIGMAS), np.linspace(-1, 0, 10), atol=1e-12)
