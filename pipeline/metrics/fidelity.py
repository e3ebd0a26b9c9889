"""Distances between sets of images in a feature space."""

from __future__ import annotations

import numpy as np

from pipeline.errors import FailedError, UserError


def frechet_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (N, D); arXiv 1706.08500, equation 6.

    ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½), in float64: tr (Σ₁Σ₂)^½ is the sum of the square roots of the eigenvalues
    of the symmetric Σ₁^½ Σ₂ Σ₁^½. Biased upwards by 1/N, so compare at equal N. Raises as `check_features` does.
    """
    check_features(generated, "the generated set")
    check_features(real, "the real set")
    mean, covariance = _gaussian(generated)
    other_mean, other_covariance = _gaussian(real)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ other_covariance @ root)
    shift = mean - other_mean
    trace = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(cross.clip(min=0)).sum()
    return float(shift @ shift + trace)


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exact = features.astype(np.float64)
    return exact.mean(axis=0), np.atleast_2d(np.cov(exact, rowvar=False))


def check_features(features: np.ndarray, name: str) -> None:
    """Raise UserError on fewer rows than the covariance needs, FailedError on values that are not finite."""
    count, dimensions = features.shape
    if count <= dimensions:
        raise UserError(f"{name} has {count} images; needed more than the {dimensions} dimensions of the features")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        raise FailedError(f"{name}: the features of {bad} of {count} images are not finite")
