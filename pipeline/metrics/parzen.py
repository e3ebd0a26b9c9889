"""Parzen-window log-likelihood, by which the first GANs were measured. Historical: it misleads.

Generated images become a density, a Gaussian around each, and real images are scored under it (Goodfellow et al. 2014,
arXiv 1406.2661, section 5). In as many dimensions as an image has, that is far from the likelihood of the model, and
it ranks cluster centres of the training images above real images (Theis et al. 2016, arXiv 1511.01844).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SIGMAS = np.logspace(-1, 0, 10)  # this and the number of images that choose among them: as in 2014
CHOOSING = 1000
_BLOCK_PAIRS = 10_000_000  # that are compared at once, float64: 80 MB


def parzen(samples: np.ndarray, choosing: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """`log_likelihood`, nats per image, and its `standard_error` over `test` (at least 2), at the σ best on `choosing`.

    All are uint8 (N, C, H, W) of one size.
    """
    sigma = SIGMAS[log_likelihoods(samples, choosing, SIGMAS).mean(axis=1).argmax()]
    (scores,) = log_likelihoods(samples, test, np.array([sigma]))
    return {
        "log_likelihood": float(scores.mean()),
        "standard_error": float(scores.std(ddof=1) / math.sqrt(len(scores))),
        "sigma": float(sigma),
    }


def log_likelihoods(samples: np.ndarray, images: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """log p(x) in nats of each of `images`, for each σ, p the mean of Gaussians N(s, σ²I) around `samples`.

    Both are uint8 (N, C, H, W) of one size, as densities in pixels from 0 to 1. Returns float64 (len(sigmas), N).
    """
    centres, points = _flat(samples), _flat(images)
    count, dimensions = centres.shape
    norms = centres.square().sum(dim=1)
    parts = []
    for block in torch.split(points, max(1, _BLOCK_PAIRS // count)):
        # Of whole numbers below 2^53: exact in whatever order they are added.
        distances = torch.addmm(norms, block, centres.T, alpha=-2) + block.square().sum(dim=1, keepdim=True)
        parts.append(torch.stack([(distances / (-2 * (255 * sigma) ** 2)).logsumexp(dim=1) for sigma in sigmas]))
    constant = math.log(count) + dimensions / 2 * np.log(2 * math.pi * sigmas**2)
    scores: np.ndarray = torch.cat(parts, dim=1).numpy() - constant[:, None]
    return scores


def _flat(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images, np.float64)).flatten(start_dim=1)
