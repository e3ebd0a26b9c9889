"""What a simple classifier of features makes of held-out images: in closed form, so that many sets can be compared."""

from __future__ import annotations

import numpy as np

_SHRINKAGE = 0.01  # of the covariance towards equal variances: a class may have fewer images than there are dimensions


def surprise(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """How surprised by held-out labels a classifier is that knows `features` (N, D) with `labels` (N,), in nats.

    It is linear discriminant analysis (Fisher 1936): a Gaussian around the mean of each class, one covariance for all,
    equal priors. Its mean -log probability of the `truth` (M,) of `held_out` (M, D), averaged over classes. Raises
    ValueError when a class has no features.
    """
    sizes = np.bincount(labels, minlength=classes)
    if sizes.min() == 0:
        raise ValueError(f"class {int(sizes.argmin())} has no features; needed some of each of {classes} classes")
    known, new = features.astype(np.float64), held_out.astype(np.float64)
    means = np.zeros((classes, known.shape[1]))
    np.add.at(means, labels, known)
    means /= sizes[:, None]
    within = known - means[labels]
    covariance = within.T @ within / len(known)
    level = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * np.eye(len(covariance))
    directions = np.linalg.solve(covariance, means.T)
    scores = new @ directions - (means.T * directions).sum(axis=0) / 2
    scores -= scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(truth)), truth]
    return float(np.mean([losses[truth == label].mean() for label in np.unique(truth)]))
