"""Are all classes there, as asked for and as varied as the real ones?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from pipeline.metrics.fidelity import COVERAGE_NEIGHBOURS, neighbourhoods

_PAIRED = 1000  # images of a class at most: a million pairs


def agreement(asked: np.ndarray, judged: np.ndarray, classes: int) -> np.ndarray:
    """Per class the share of its images that the judges give the asked-for label; NaN for a class without images."""
    right = np.bincount(asked[asked == judged], minlength=classes)
    count = np.bincount(asked, minlength=classes)
    shares: np.ndarray = np.divide(right, count, out=np.full(classes, np.nan), where=count > 0)
    return shares


def balance(judged: np.ndarray, real: np.ndarray, classes: int) -> dict[str, float]:
    """How the judged labels of generated images spread over the classes, against real labels.

    `classes_seen`: classes with an image, which are the modes of Stacked MNIST in the literature. `classes_covered`:
    those with at least a tenth of their real share. `kl_from_real`: Σ p log(p/q) in nats, p the shares of the judged
    labels, q the real ones; about (classes - 1) / 2N is expected of N new real images.
    """
    p = np.bincount(judged, minlength=classes) / len(judged)
    q = np.bincount(real, minlength=classes) / len(real)
    there = p > 0
    return {
        "classes_seen": int(there.sum()),
        "classes_covered": int((p >= q / 10).sum()),
        "kl_from_real": float((p[there] * np.log(p[there] / q[there])).sum()),
    }


def pixel_spread(images: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Per class the standard deviation over its images, averaged over pixels, in levels; NaN below two images."""
    spread = np.full(classes, np.nan)
    for label in range(classes):
        members = images[labels == label]
        if len(members) > 1:
            spread[label] = members.astype(np.float64).std(axis=0).mean()
    return spread


def mean_distances(features: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """By label the mean Euclidean distance between two of its images, from features (N, D); a label of one has none."""
    found = {}
    for label in np.unique(labels).tolist():
        rows = torch.from_numpy(features[labels == label][:_PAIRED].astype(np.float64))
        if len(rows) > 1:
            found[label] = torch.nn.functional.pdist(rows).mean().item()
    return found


def by_class(
    generated: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], classes: int, *, seed: int
) -> dict[str, np.ndarray]:
    """`precision`, `recall` and `diversity` of each class, as (classes,); NaN for a class of too few images.

    0 for a class that only the real side has: no set gains by lacking one.

    Both sides are features (N, D) with labels (N,). Precision and recall are those of fidelity.neighbourhoods within a
    class, of equally many images drawn by the seed from either side. Diversity is the mean distance between two images
    of the class, over that of real ones.
    """
    found = {name: np.full(classes, np.nan) for name in ("precision", "recall", "diversity")}
    spreads, real_spreads = (mean_distances(*side) for side in (generated, real))
    random = np.random.Generator(np.random.Philox(seed))
    for label in range(classes):
        sides = [features[labels == label] for features, labels in (generated, real)]
        count = min(map(len, sides))
        if len(sides[0]) == 0 < len(sides[1]):
            for values in found.values():
                values[label] = 0
        if count > COVERAGE_NEIGHBOURS:
            drawn = (side[random.permutation(len(side))[:count]].astype(np.float64) for side in sides)
            scores = neighbourhoods(*drawn)
            found["precision"][label], found["recall"][label] = scores["precision"], scores["recall"]
        if label in spreads and real_spreads.get(label, 0) > 0:
            found["diversity"][label] = spreads[label] / real_spreads[label]
    return found


def worst(by_class: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The least of each measure over the classes that have it, as `worst_<measure>`."""
    return {f"worst_{name}": float(np.nanmin(values)) for name, values in by_class.items() if np.isfinite(values).any()}


def least_diverse(generated: Mapping[int, float], real: Mapping[int, float]) -> tuple[int, float]:
    """The label whose generated images differ least from each other by the measure of the real ones, and that ratio.

    Both are `mean_distances`; (-1, NaN) where no label has them on both sides.
    """
    ratios = {label: generated[label] / real[label] for label in generated if real.get(label, 0) > 0}
    if not ratios:
        return -1, math.nan
    label = min(ratios, key=lambda label: ratios[label])
    return label, ratios[label]
