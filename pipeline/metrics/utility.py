"""Does a synthetic set help a classifier? Arms that are compared, paired intervals, and the verdict in words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.imageset.subset import stratified_fraction
from pipeline.metrics.classifier import Classifier, train_classifier

Arm = Literal["real", "real_long", "synthetic", "mixed"]
Protocol = Literal["same-data", "shared-generator"]
BASELINES: tuple[Arm, ...] = ("real", "real_long")

ARMS: dict[Arm, str] = {
    "real": "real images only",
    "real_long": "real images only, as many images seen as by mixed",
    "synthetic": "synthetic images only",
    "mixed": "real and synthetic images",
}
PROTOCOLS: dict[Protocol, str] = {
    "same-data": (
        "same-data: the generator learned from exactly the real images that the classifier has. What the set adds, it "
        "adds for the team that owns the data; only these rows say what helps at a share of the data."
    ),
    "shared-generator": (
        "shared-generator: the generator learned from more real images than the classifier has. It is what a team "
        "gains that receives the synthetic set, and not the data behind it; part of the gain is those other images."
    ),
}
INTERVALS = (
    "Intervals are 95 % t intervals of the difference between two classifiers of the same seed, over the seeds: each "
    "draws other real images and begins with other weights. There is one generator and one test split, and how far "
    "another of these would shift a figure is not in them."
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval, in percentage points."""

    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Student's interval of the mean of n ≥ 2 values: mean ± t(0.975, n-1) · s / √n; paired when of differences."""
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError(f"values are {len(values)}; needed at least 2 for an interval")
    mean = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean=round(mean, 4), low=round(mean - half, 4), high=round(mean + half, 4))


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """What the classifiers train on: uint8 (N, C, H, W) and int64 (N,); `contents` are hex hashes of the real ones."""

    real: tuple[NDArray[np.uint8], NDArray[np.int64]]
    contents: Sequence[str]
    synthetic: tuple[NDArray[np.uint8], NDArray[np.int64]]
    classes: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """One classifier to be trained. A part `synthetic_share` of the images that it sees are synthetic."""

    arm: Arm
    fraction: float  # of the real training images
    seed: int
    images_seen: int
    learning_rate: float
    width: int
    flip: bool
    synthetic_share: float


def train(training: Training, data: Data) -> Classifier:
    """Train on the part of the real images that the seed draws, all synthetic images, or both.

    Arms of one fraction and seed have the same real images and the same first weights: their differences are paired.
    """
    parts, shares = [], []
    if training.synthetic_share < 1:
        rows = draw(data.contents, data.real[1], training.fraction, training.seed)
        parts.append((data.real[0][rows], data.real[1][rows]))
        shares.append(1 - training.synthetic_share)
    if training.synthetic_share > 0:
        parts.append(data.synthetic)
        shares.append(training.synthetic_share)
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    weights = [np.full(len(part[1]), share / len(part[1])) for part, share in zip(parts, shares, strict=True)]
    return train_classifier(
        images,
        labels,
        classes=data.classes,
        seed=training.seed,
        images_seen=training.images_seen,
        weights=np.concatenate(weights),
        width=training.width,
        flip=training.flip,
        learning_rate=training.learning_rate,
    )


def draw(contents: Sequence[str], labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """The rows of a part of each class: another one for each seed, and within a seed 5 % is a part of 10 %."""
    hashes = [hashlib.sha256(f"{seed} {content}".encode()).hexdigest() for content in contents]
    return stratified_fraction(hashes, labels, fraction)


def protocol_of(fraction: float, *, same_set: bool) -> Protocol:
    """What a row is called in which classifiers have `fraction` of the real training split of a set.

    `same_set`: whether the generator learned from the training split of that very set, and nothing else.
    """
    return "same-data" if fraction == 1 and same_set else "shared-generator"


def verdict(gains: Sequence[Interval]) -> str:
    """`helps` when every interval lies above zero, `harms` when one lies below zero, else `makes no difference`."""
    if all(gain.low > 0 for gain in gains):
        return "helps"
    return "harms" if any(gain.high < 0 for gain in gains) else "makes no difference"


def sentence(protocol: Protocol, data: str, generator_data: str, over_real: Interval, over_long: Interval) -> str:
    """The verdict in words: for whom, by how much, with which intervals.

    `data` and `generator_data` say what classifier and generator learned from, such as `5 % of the data`.
    """
    whom = {
        "same-data": f"at {data}, which is all that its generator learned from",
        "shared-generator": f"for who has {data} and receives this set, whose generator learned from {generator_data}",
    }
    word = verdict([over_real, over_long])
    return f"{word} {whom[protocol]}: {points(over_real)} over real only, {points(over_long)} with as many images seen"


def points(interval: Interval) -> str:
    """`+1.2 points [+0.8, +1.6]`."""
    return f"{interval.mean:+.2f} points [{interval.low:+.2f}, {interval.high:+.2f}]"


def percent(fraction: float) -> str:
    """`0.05` as `5 %`, `0.025` as `2.5 %`."""
    return f"{100 * fraction:.3g} %"
