"""Nearest training images in pixels: are the generated images copies?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_BLOCK_ROWS = 4096  # of pairs that are compared at once, on both sides
_BLOCK_ELEMENTS = 20_000_000  # and no more than these, float32: 80 MB


def nearest(images: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `images` the nearest of `references`: distances float32 (N,) and row indices int64 (N,).

    Both are uint8 (N, C, H, W) of one size. A distance is the root mean square over channels and pixels of the
    difference, in levels from 0 (a copy) to 255. Raises ValueError when there is nothing to compare with.
    """
    if len(references) == 0 or images.shape[1:] != references.shape[1:]:
        raise ValueError(f"references are {references.shape}; needed at least 1 of the shape {images.shape[1:]}")
    rows = max(1, min(_BLOCK_ROWS, _BLOCK_ELEMENTS // math.prod(images.shape[1:])))
    distance, index = np.empty(len(images), np.float32), np.empty(len(images), np.int64)
    for start in range(0, len(images), rows):
        part = slice(start, start + rows)
        index[part] = found = _nearest_rows(_flat(images[part]), references, rows)
        difference = images[part].astype(np.float32) - references[found]  # itself, so that a copy is at exactly 0
        distance[part] = np.sqrt(np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64))
    return distance, index


def nearest_of_domain(
    images: np.ndarray, labels: np.ndarray, references: np.ndarray, domains: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest`, for translations into the domains `labels`: among the references of the same domain.

    A translation is near to the image that it was made of, as it should be. Only where it is a copy, at distance 0, one
    of the other domain is its nearest.
    """
    distance, index = nearest(images, references)
    for label in np.unique(labels):
        rows, among = np.flatnonzero((labels == label) & (distance > 0)), np.flatnonzero(domains == label)
        distance[rows], found = nearest(images[rows], references[among])
        index[rows] = among[found]
    return distance, index


def _nearest_rows(ours: Tensor, references: np.ndarray, rows: int) -> np.ndarray:
    """The index of the nearest reference to each row of `ours`, by |theirs|²/2 - ours·theirs."""
    least, index = torch.full((len(ours),), torch.inf), torch.zeros(len(ours), dtype=torch.int64)
    for start in range(0, len(references), rows):
        theirs = _flat(references[start : start + rows])
        scores = torch.addmm(theirs.square().sum(dim=1) / 2, ours, theirs.T, alpha=-1)
        least_here, at = scores.min(dim=1)
        index = torch.where(least_here < least, at + start, index)
        least = torch.minimum(least, least_here)
    found: np.ndarray = index.numpy()
    return found


def _flat(images: np.ndarray) -> Tensor:
    """Rows around zero, so that float32 holds the differences of squares."""
    return torch.from_numpy(np.array(images)).flatten(start_dim=1).float() - 127.5


def memorization(generated: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """What distances to the nearest training image, of generated and of held-out real images, say about copying.

    `nearer_than_median` and `nearer_than_percentile_1`: the share of generated images at least as near as that
    quantile of the held-out ones; 0.5 and 0.01 are expected of new real images, 1 of copies. `copies`: how many are at
    distance 0; `nearest`: the smallest distance.
    """
    return {
        "nearer_than_median": float((generated <= np.quantile(held_out, 0.5)).mean()),
        "nearer_than_percentile_1": float((generated <= np.quantile(held_out, 0.01)).mean()),
        "copies": int((generated == 0).sum()),
        "nearest": float(generated.min()),
    }
