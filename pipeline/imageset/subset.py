"""Nested subsets, fixed by content; and which classes are rare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

RARE = 0.25  # times the images of the largest class: what has fewer is rare


def rare_labels(counts: Sequence[int]) -> list[int]:
    """The labels of the classes that are rare, by the training images of each; empty where classes are balanced."""
    return [label for label, count in enumerate(counts) if count < RARE * max(counts)]


def stratified_fraction(
    contents: Sequence[str], labels: NDArray[np.int64], fraction: float, counts: Mapping[int, int] | None = None
) -> NDArray[np.int64]:
    """Row indices (ascending, int64) of the first ceil(fraction·n_c) images of each class c by the rank of their hash.

    `contents` are hex hashes (N), `labels` int64 (N,), `fraction` in (0, 1]. A class in `counts` gives so many images
    instead, or all where it has fewer. What is smaller is a subset of what is larger, whatever the order of the rows.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; needed above 0 and at most 1")
    ranked = np.argsort(np.asarray(contents), kind="stable")
    kept = []
    for label in np.unique(labels).tolist():
        members = ranked[labels[ranked] == label]
        share = ceil(round(fraction * len(members), 9))  # 0.07 · 100 is 7.000000000000001
        kept.append(members[: (counts or {}).get(label, share)])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
