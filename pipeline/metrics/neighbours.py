"""Nearest training images, in pixels and in features: are the generated images copies?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.imageset.layout import content_hash

QUANTILES = {"nearer_than_median": 0.5, "nearer_than_percentile_1": 0.01}  # of held-out distances
_BLOCK_ELEMENTS = 20_000_000  # that are looked at at once, float32: 80 MB
_BLOCK_ROWS = 4096  # references that are compared at once, and no more
_ROWS = 128  # images that are compared at once: what is in reach of one of them is compared with all
_DIRECTIONS = 64
_SAMPLE = 512  # references that say which directions
_SLACK = 1e-4  # of squared lengths: far above float32's rounding, far below the distances of neighbours


def nearest(images: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Nearest(references)(images)`, for when these references are needed once."""
    return Nearest(references)(images)


class Nearest:
    """Finds the nearest of `references`, uint8 (N, C, H, W), at least one.

    It compares few in full. Two images are at least as far apart as their shadows on the references' principal
    directions, and what these leave over of each image differs in length: with P the projection,
    |a - b|² ≥ |Pa - Pb|² + (|a - Pa| - |b - Pb|)². What lies farther by that than some reference is, is not nearest.
    """

    def __init__(self, references: np.ndarray) -> None:
        """Raises ValueError when there is nothing to compare with."""
        if len(references) == 0:
            raise ValueError("references are 0; needed at least 1")
        self.references = references
        self.rows = max(1, min(_BLOCK_ROWS, _BLOCK_ELEMENTS // math.prod(references.shape[1:])))
        sample = _flat(references[:: math.ceil(len(references) / min(_SAMPLE, self.rows))])
        self.centre = sample.mean(dim=0)
        self.directions = torch.linalg.svd(sample - self.centre, full_matrices=False).Vh[:_DIRECTIONS]
        starts = range(0, len(references), self.rows)
        self.shadows = torch.cat([self._shadow(_flat(references[start : start + self.rows])) for start in starts])
        self.lengths = self.shadows.square().sum(dim=1)
        self.contents = {content_hash(references[row]): row for row in reversed(range(len(references)))}

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances float32 (M,) to, and rows int64 (M,) of, the nearest reference of each of uint8 (M, C, H, W).

        A distance is the root mean square over channels and pixels of the difference, in levels from 0 (a copy) to
        255. Raises ValueError on images of another shape.
        """
        references = self.references
        if images.shape[1:] != references.shape[1:]:
            raise ValueError(f"references are {references.shape}; needed the shape {images.shape[1:]} of the images")
        distance, index = np.empty(len(images), np.float32), np.empty(len(images), np.int64)
        size = max(1, min(_ROWS, self.rows, _BLOCK_ELEMENTS // len(references)))
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            near = self._nearest_rows(_flat(images[part]))
            # Of references that nearly equal each other float32 does not know which one an image is a copy of.
            found = [self.contents.get(content_hash(image), row) for image, row in zip(images[part], near, strict=True)]
            index[part] = found
            difference = images[part].astype(np.float32) - references[found]  # itself, so that a copy is at exactly 0
            distance[part] = np.sqrt(np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64))
        return distance, index

    def _shadow(self, rows: Tensor) -> Tensor:
        """Along the directions, and the length of what is left over: (N, directions + 1)."""
        centred = rows - self.centre
        along = centred @ self.directions.T
        left = torch.linalg.vector_norm(centred - along @ self.directions, dim=1, keepdim=True)
        return torch.cat([along, left], dim=1)

    def _nearest_rows(self, ours: Tensor) -> np.ndarray:
        """The index of the nearest reference to each row of `ours`, by |theirs|²/2 - ours·theirs."""
        among = self._in_reach(ours)
        least, index = torch.full((len(ours),), torch.inf), torch.zeros(len(ours), dtype=torch.int64)
        for start in range(0, len(among), self.rows):
            theirs = _flat(self.references[among[start : start + self.rows]])
            scores = torch.addmm(theirs.square().sum(dim=1) / 2, ours, theirs.T, alpha=-1)
            least_here, at = scores.min(dim=1)
            index = torch.where(least_here < least, at + start, index)
            least = torch.minimum(least, least_here)
        found: np.ndarray = among[index.numpy()]
        return found

    def _in_reach(self, ours: Tensor) -> np.ndarray:
        """The rows of the references of which one is the nearest to each row of `ours`."""
        shadow = self._shadow(ours)
        lengths = shadow.square().sum(dim=1)
        bounds = torch.addmm(self.lengths, shadow, self.shadows.T, alpha=-2)  # but for our own lengths
        likely = _flat(self.references[bounds.argmin(dim=1).numpy()])
        slack = _SLACK * (self.lengths.max() + lengths.max())
        reach = (ours - likely).square().sum(dim=1) - lengths + slack
        among: np.ndarray = (bounds <= reach[:, None]).any(dim=0).nonzero().squeeze(1).numpy()
        return among


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


def nearest_as_made(
    images: np.ndarray, labels: np.ndarray, references: np.ndarray, domains: np.ndarray, *, translated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest_of_domain` of what is `translated`, `nearest` of all else."""
    return nearest_of_domain(images, labels, references, domains) if translated else nearest(images, references)


def nearest_features(features: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `features` (N, D) the Euclidean distance to the nearest of `references` (M, D), and the row of that.

    Float64 (N,) and int64 (N,).
    """
    known = torch.from_numpy(references.astype(np.float64))
    parts = torch.split(torch.from_numpy(features.astype(np.float64)), _ROWS)
    distances, rows = zip(*(torch.cdist(part, known).min(dim=1) for part in parts), strict=True)
    return torch.cat(distances).numpy(), torch.cat(rows).numpy()


def _flat(images: np.ndarray) -> Tensor:
    """Rows around zero, so that float32 holds the differences of squares."""
    return torch.from_numpy(np.array(images)).flatten(start_dim=1).float() - 127.5


def alike(labels: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows of held-out images that have the generated images' shares of classes, by the labels (N,) and (M,) of both.

    Else a balanced set would seem to be far from its training images where most held-out ones are of classes that lie
    close together. There are M rows, fewer where a class has no held-out images; of one that is rarer there some come
    more than once. Then, how many independent images say as much (Kish 1965): (Σ w)² / Σ w².
    """
    classes, counts = np.unique(labels, return_counts=True)
    wanted = np.diff(np.round(np.cumsum([0, *counts]) / len(labels) * len(held_out))).astype(int)
    found = []
    for label, count in zip(classes, wanted, strict=True):
        have = np.flatnonzero(held_out == label)
        found.append(have[np.arange(count if len(have) else 0) * len(have) // max(count, 1)])
    rows = np.concatenate(found)
    if not len(rows):
        rows = np.arange(len(held_out))
    return rows, int(len(rows) ** 2 / np.square(np.bincount(rows)).sum())


def memorization(generated: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """What distances to the nearest training image, of generated and of held-out real images, say about copying.

    `nearer_than_median` and `nearer_than_percentile_1`: the share of generated images at least as near as that
    quantile of the held-out ones; `expected_nearer` says it of new real images, of copies it is 1. `copies`: how many
    are at distance 0; `nearest`: the smallest distance.
    """
    return nearer(generated, held_out) | {"copies": int((generated == 0).sum()), "nearest": float(generated.min())}


def nearer(generated: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """The two shares of `memorization`."""
    return {name: float((generated <= np.quantile(held_out, part)).mean()) for name, part in QUANTILES.items()}


def expected_nearer(held_out: int) -> dict[str, float]:
    """The two shares that are expected of new real images beside as many held-out ones: of few, more than the quantile.

    The k-th of n distances leaves k / (n + 1) of all below it in the mean, and np.quantile lies linearly between two.
    """
    return {name: (part * (held_out - 1) + 1) / (held_out + 1) for name, part in QUANTILES.items()}
