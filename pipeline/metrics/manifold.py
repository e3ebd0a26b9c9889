"""Is an image among the real ones? Precision of a generated set (arXiv 1904.06991), asked of each image by itself."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS = 512  # of a block of distances


class Manifold:
    """Balls around the features of real images, each class by itself.

    A ball reaches to the k-th nearest other image of the class.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, most: int) -> None:
        """Of real `features` (N, D) with `labels` (N,); measures all radii for k up to `most`."""
        self.centres: dict[int, Tensor] = {}
        self.radii: dict[int, Tensor] = {}  # (images, most), ascending; infinite where a class has not so many others
        for label in np.unique(labels).tolist():
            centres = torch.from_numpy(features[labels == label].astype(np.float64))
            others = min(most, len(centres) - 1)
            radii = torch.full((len(centres), most), torch.inf, dtype=torch.float64)
            for rows, reach in zip(torch.split(centres, _ROWS), torch.split(radii, _ROWS), strict=True):
                nearest = torch.cdist(rows, centres).topk(others + 1, dim=1, largest=False).values
                reach[:, :others] = nearest[:, 1:]  # the first is the image itself
            self.centres[label], self.radii[label] = centres, radii

    def holds(self, features: np.ndarray, labels: np.ndarray, neighbours: int) -> NDArray[np.bool_]:
        """Whether each of `features` (M, D) is in a ball of its label's (M,), for k = `neighbours`; equation 1.

        A class of at most k real images says nothing: all are held.
        """
        held = np.ones(len(labels), bool)
        for label, centres in self.centres.items():
            rows = np.flatnonzero(labels == label)
            for part in np.array_split(rows, range(_ROWS, len(rows), _ROWS)):
                distances = torch.cdist(torch.from_numpy(features[part].astype(np.float64)), centres)
                held[part] = (distances <= self.radii[label][:, neighbours - 1]).any(dim=1).numpy()
        return held
