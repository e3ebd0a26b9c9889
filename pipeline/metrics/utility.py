"""Does a synthetic set help a classifier? Arms that are compared, paired intervals, and the verdict in words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.imageset.subset import RARE, stratified_fraction
from pipeline.metrics.classifier import Classifier, train_classifier

Arm = Literal["real", "real_long", "synthetic", "mixed", "oversampled", "weighted", "filled"]
Protocol = Literal["same-data", "shared-generator"]
BASELINES: tuple[Arm, ...] = ("real", "real_long")
RARE_BASELINES: tuple[Arm, ...] = (*BASELINES, "oversampled", "weighted")  # what filling up rare classes must beat

ARMS: dict[Arm, str] = {
    "real": "real images only",
    "real_long": "real images only, as many images seen as by mixed",
    "synthetic": "synthetic images only",
    "mixed": "real and synthetic images",
}
RARE_ARMS: dict[Arm, str] = {
    "oversampled": "real images only, all classes shown equally often, as many images seen as by mixed",
    "weighted": "real images only, losses weighted by the inverse size of the class, as many images seen as by mixed",
    "filled": (
        "all classes shown equally often; the fewer real images a class has, the larger the part of it that is "
        "synthetic, as many images seen as by mixed"
    ),
}
RARE_CLASSES = (
    f"Rare is a class that has fewer than {RARE:g} times the training images of the largest class. Their recall is "
    "the mean over these classes, balanced accuracy the mean over all. Learning rates and the synthetic part of "
    "oversampled, weighted and filled are chosen by balanced accuracy on the validation split. Filling up helps when "
    "the recall rises above that of each arm of real images and balanced accuracy falls below none, by the intervals."
)
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
ADVISED = (
    "The part advised to be mixed in is what did best on the validation split, before the test split was read; none "
    "where the interval of its gain there, over real images alone seen as often (of rare classes: oversampled), is not "
    "above zero. Verdicts are on mixing."
)


ENOUGH_SEEDS = 5  # with fewer, a verdict says how many there were


def intervals(seeds: int, test_images: int) -> str:
    """What the intervals are of; whoever shows one shows this line, which begins with `Intervals`."""
    return (
        f"Intervals are 95 % t intervals of the difference between two classifiers of the same seed, over {seeds} "
        f"seeds, on {test_images:,} test images: each seed begins with other weights, and draws other real images "
        "where a classifier has a part of them. A gain's reaches at least as far as one test image counts. Each "
        "stands for itself: none is corrected for how many comparisons there are. There is one generator, one test "
        "split and one set of real images, and how far another of these would shift a figure is not in them."
    )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval, in percentage points."""

    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float] | NDArray[np.float64], step: float = 0.0) -> Interval:
    """Student's interval of the mean of n ≥ 2 values: mean ± t(0.975, n-1) · s / √n; paired when of differences.

    ± `step` at least, in which the values come: equal differences of a few test images are no certainty.
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError(f"values are {len(values)}; needed at least 2 for an interval")
    mean = float(np.mean(values))
    half = max(step, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))))
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
    Where all classes are shown equally often (`oversampled`, `filled`), `synthetic_share` is that of a class as good as
    without real images.
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
    class_weights = None
    if training.arm in ("oversampled", "filled"):
        made = data.synthetic[1] if training.synthetic_share > 0 else labels[:0]
        weights = list(filling_weights(parts[0][1], made, training.synthetic_share, data.classes))
    if training.arm == "weighted":
        class_weights = 1 / np.maximum(1, np.bincount(labels, minlength=data.classes))
    return train_classifier(
        images,
        labels,
        classes=data.classes,
        seed=training.seed,
        images_seen=training.images_seen,
        weights=np.concatenate(weights),
        class_weights=class_weights,
        width=training.width,
        flip=training.flip,
        learning_rate=training.learning_rate,
    )


def filling_weights(
    real: NDArray[np.int64], synthetic: NDArray[np.int64], share: float, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often to show each image, by the labels (N,) and (M,), so that all classes are shown equally often.

    Of a class with n real images, m being the most that a class has, a part share · (1 - n/m) is synthetic, where there
    are synthetic images of it: none of the largest class, and with share 0 none at all, which is oversampling.
    """
    have, made = (np.bincount(labels, minlength=classes) for labels in (real, synthetic))
    part = np.where(made > 0, share * (1 - have / have.max()), 0.0)
    of_real, of_synthetic = (1 - part) / np.maximum(have, 1), part / np.maximum(made, 1)
    return of_real[real], of_synthetic[synthetic]


def draw(contents: Sequence[str], labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """The rows of a part of each class: another one for each seed, and within a seed 5 % is a part of 10 %."""
    hashes = [hashlib.sha256(f"{seed} {content}".encode()).hexdigest() for content in contents]
    return stratified_fraction(hashes, labels, fraction)


def validation_score(arm: Arm, right: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """What `arm` is chosen by, in percent: the part of all images that is right, of RARE_ARMS the mean over classes.

    `right` (N,) says which images are, `labels` (N,) of which class each is; a class without images is in no mean.
    """
    if arm in RARE_ARMS:
        return float(100 * np.mean([right[labels == label].mean() for label in np.unique(labels)]))
    return float(100 * right.mean())


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


def sentence(
    protocol: Protocol, data: str, generator_data: str, over_real: Interval, over_long: Interval, seeds: int
) -> str:
    """The verdict in words: for whom, by how much, with which intervals, and of how many seeds where these are few.

    `data` and `generator_data` say what classifier and generator learned from, such as `5 % of the data`.
    """
    word, whom = verdict([over_real, over_long]), _whom(protocol, data, generator_data)
    gains = f"{points(over_real)} over real only, {points(over_long)} with as many images seen"
    return f"{word} {whom}: {gains}{_few(seeds)}"


def rare_verdict(recall: Mapping[Arm, Interval], balanced: Mapping[Arm, Interval]) -> str:
    """`verdict` on the recall of rare classes gained over each baseline; `harms` also by balanced accuracy."""
    return verdict(list(recall.values())) if verdict(list(balanced.values())) != "harms" else "harms"


def rare_sentence(
    protocol: Protocol,
    data: str,
    generator_data: str,
    rare: Mapping[str, int],
    recall: Mapping[Arm, Interval],
    balanced: Mapping[Arm, Interval],
    seeds: int,
) -> str:
    """The verdict on filling up the classes `rare` (with their real images), by what is gained over each baseline."""
    over: dict[Arm, str] = {
        "real": "real only",
        "real_long": "real only with as many images seen",
        "oversampled": "oversampling",
        "weighted": "class weights",
    }
    recalls, accuracies = (
        ", ".join(f"{points(gains[arm])} over {words}" for arm, words in over.items()) for gains in (recall, balanced)
    )
    word, whom = rare_verdict(recall, balanced), _whom(protocol, data, generator_data)
    return (
        f"filling up the rare classes ({listed(rare)}) {word} {whom}: their recall {recalls}; balanced accuracy "
        f"{accuracies}{_few(seeds)}"
    )


def listed(rare: Mapping[str, int], most: int = 5) -> str:
    """`8 with 11 images, 9 with 12`."""
    names = [f"{name} with {count:,}{'' if number else ' images'}" for number, (name, count) in enumerate(rare.items())]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _few(seeds: int) -> str:
    return f"; by {seeds} seeds only, fewer than {ENOUGH_SEEDS}" if seeds < ENOUGH_SEEDS else ""


def _whom(protocol: Protocol, data: str, generator_data: str) -> str:
    if protocol == "same-data":
        return f"at {data}, which is all that its generator learned from"
    return f"for who has {data} and receives this set, whose generator learned from {generator_data}"


def points(interval: Interval) -> str:
    """`+1.2 points [+0.8, +1.6]`."""
    return f"{interval.mean:+.2f} points [{interval.low:+.2f}, {interval.high:+.2f}]"


def percent(fraction: float) -> str:
    """`0.05` as `5 %`, `0.025` as `2.5 %`."""
    return f"{100 * fraction:.3g} %"
