"""Nearest training images in pixels: are the generated images copies?"""

from __future__ import annotations

import numpy as np
import torch

_CHUNK_ELEMENTS = 20_000_000  # of one block of distances, float32: 80 MB


def nearest(images: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `images` the nearest of `references`: distances float32 (N,) and row indices int64 (N,).

    Both are uint8 (N, C, H, W) of one size. A distance is the root mean square over channels and pixels of the
    difference, in levels from 0 (a copy) to 255. Raises ValueError when there is nothing to compare with.
    """
    if len(references) == 0 or images.shape[1:] != references.shape[1:]:
        raise ValueError(f"references are {references.shape}; needed at least 1 of the shape {images.shape[1:]}")
    ours, theirs = _flat(images), _flat(references)
    half_squares = theirs.square().sum(dim=1) / 2
    rows = max(1, _CHUNK_ELEMENTS // len(theirs))
    best = [torch.addmm(half_squares, part, theirs.T, alpha=-1).argmin(dim=1) for part in torch.split(ours, rows)]
    index: np.ndarray = torch.cat(best).numpy() if best else np.zeros(0, np.int64)
    distance = np.empty(len(images), np.float32)
    for start in range(0, len(images), 1000):  # the differences themselves: a copy is at exactly 0
        part = slice(start, start + 1000)
        difference = images[part].astype(np.float32) - references[index[part]]
        distance[part] = np.sqrt(np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64))
    return distance, index


def _flat(images: np.ndarray) -> torch.Tensor:
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
