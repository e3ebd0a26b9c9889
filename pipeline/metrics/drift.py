"""How far the data moved between two states of it: images, classes, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.imageset import ImageSet
from pipeline.metrics.classifier import Classifier, embed
from pipeline.metrics.fidelity import frechet_distance

_MOST = 10_000  # images of each state whose features are compared


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Counts are before and now. Shares are of all images, so that they sum to 1 in each state.

    `balance` is the total variation distance of the shares, 0 to 1. `features` is the Fréchet distance of as many
    training images of each state in features of the in-domain extractor, and `floor` the same of two halves of the
    state before, what it is when nothing moved; None where there are too few images, or of another shape.
    """

    images: Mapping[str, tuple[int, int]]
    shares: Mapping[str, tuple[float, float]]
    balance: float
    features: float | None
    floor: float | None


def drift(before: ImageSet, now: ImageSet, extractor: Classifier, *, seed: int = 0) -> Drift:
    """Compare two states of the real images. The extractor is the one that was trained on `now`."""
    then, today = _by_class(before), _by_class(now)
    shares = {name: (then.get(name, 0.0), today.get(name, 0.0)) for name in dict.fromkeys([*then, *today])}
    splits = dict.fromkeys([*before.counts, *now.counts])
    features, floor = None, None
    if before.shape == now.shape:
        features, floor = distances(before.arrays("train")[0], now.arrays("train")[0], extractor, seed=seed)
    return Drift(
        images={split: (sum(before.counts.get(split, ())), sum(now.counts.get(split, ()))) for split in splits},
        shares=shares,
        balance=sum(abs(one - other) for one, other in shares.values()) / 2,
        features=features,
        floor=floor,
    )


def distances(
    before: np.ndarray, now: np.ndarray, extractor: Classifier, *, seed: int
) -> tuple[float | None, float | None]:
    """Of half of the images `before` to as many `now`, and to its other half; uint8 (N, C, H, W) both."""
    count = min(len(before) // 2, len(now), _MOST // 2)
    if count <= extractor.dimensions:
        return None, None
    random = np.random.Generator(np.random.Philox(seed))
    rows = random.permutation(len(before))
    half, other = (embed(extractor, before[np.sort(rows[start : start + count])]) for start in (0, count))
    drawn = embed(extractor, now[np.sort(random.permutation(len(now))[:count])])
    return frechet_distance(drawn, half), frechet_distance(other, half)


def _by_class(images: ImageSet) -> dict[str, float]:
    counts: Sequence[int] = np.sum(list(images.counts.values()), axis=0).tolist()
    return {name: count / max(sum(counts), 1) for name, count in zip(images.classes, counts, strict=True)}
