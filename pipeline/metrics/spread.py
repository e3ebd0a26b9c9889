"""Standard errors of what an evaluation counts: shares, balance, the worst class, nearness to training images.

Those of fidelity come with it, see fidelity.with_spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pipeline.metrics import modes
from pipeline.metrics.fidelity import RESAMPLES
from pipeline.metrics.neighbours import QUANTILES, nearer

_DRAWS = 200  # of what is only counted again


def of_share(share: float, count: int) -> float:
    """Of a share of `count` images: the standard deviation of Jeffreys' Beta(k + ½, n - k + ½).

    Nearly the binomial one (Brown, Cai & DasGupta 2001, section 4), but above zero where all images or none are it.
    """
    one, other = share * count + 0.5, (1 - share) * count + 0.5
    return math.sqrt(one * other / (count + 2)) / (count + 1)


def of_agreement(asked: np.ndarray, judged: np.ndarray, by_class: np.ndarray) -> dict[str, float]:
    """Of the `mean` agreement, and of the `worst_class` as of the class that it is.

    Labels are int64 (N,), `by_class` the agreement (K,); of a class without images it is known for certain.
    """
    worst = int(np.nanargmin(by_class))
    count = int((asked == worst).sum())
    return {
        "mean": of_share(float((asked == judged).mean()), len(asked)),
        "worst_class": of_share(float(by_class[worst]), count) if count else 0.0,
    }


def of_balance(judged: np.ndarray, real: np.ndarray, classes: int, *, seed: int) -> dict[str, float]:
    """Of modes.balance, from as many labels drawn again from the judged ones."""
    shares = np.bincount(judged, minlength=classes) / len(judged)
    counts = np.random.Generator(np.random.Philox(seed)).multinomial(len(judged), shares, _DRAWS)
    drawn = [modes.balance(np.repeat(np.arange(classes), each), real, classes) for each in counts]
    return {name: float(np.std([each[name] for each in drawn], ddof=1)) for name in drawn[0]}


def of_pixel_spread(
    images: np.ndarray, labels: np.ndarray, real_spread: np.ndarray, classes: int, *, seed: int
) -> dict[str, float]:
    """Of the mean of modes.pixel_spread over `real_spread` (K,), from RESAMPLES disjoint parts of the images.

    Empty where a class has fewer than two images in some part.
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(images))
    known = np.bincount(labels, minlength=classes) > 1
    known &= real_spread > 0
    parts = [
        modes.pixel_spread(images[rows], labels[rows], classes)[known] / real_spread[known]
        for rows in map(np.sort, np.array_split(order, RESAMPLES))
    ]
    if not known.any() or not np.isfinite(parts).all():
        return {}
    return {"pixel_spread": float(np.std(np.mean(parts, axis=1), ddof=1)) / math.sqrt(RESAMPLES)}


def of_classes(
    generated: tuple[np.ndarray, np.ndarray],
    real: tuple[np.ndarray, np.ndarray],
    found: Mapping[str, np.ndarray],
    *,
    seed: int,
) -> dict[str, float]:
    """Of modes.worst(found), as of the class that it is, `found` by modes.by_class of the same sides.

    From RESAMPLES quarters of both sides, as fidelity.with_spread does with all classes together; without what a
    quarter has too few images for.
    """
    random = np.random.Generator(np.random.Philox(seed))
    classes = len(found["recall"])

    def quarter(side: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.sort(random.permutation(len(side[0]))[: len(side[0]) // 4])
        return side[0][rows], side[1][rows]

    drawn = [modes.by_class(quarter(generated), quarter(real), classes, seed=seed) for _ in range(RESAMPLES)]
    errors = {}
    for name, values in found.items():
        if np.isfinite(values).any():
            of_worst = [each[name][np.nanargmin(values)] for each in drawn]
            if np.isfinite(of_worst).all():
                errors[f"worst_{name}"] = float(np.std(of_worst, ddof=1)) / math.sqrt(3)
    return errors


def of_nearer(generated: np.ndarray, held_out: np.ndarray, independent: int, *, seed: int) -> dict[str, float]:
    """Of neighbours.nearer: of the share itself, and of the quantile, from held-out distances drawn again.

    As many of these as are `independent`, see neighbours.alike.
    """
    random = np.random.Generator(np.random.Philox(seed))
    sorted_ours = np.sort(generated)
    again = random.choice(held_out, (_DRAWS, independent))
    errors = {}
    for name, share in nearer(generated, held_out).items():
        reaches = np.quantile(again, QUANTILES[name], axis=1)
        shares = np.searchsorted(sorted_ours, reaches, side="right") / len(generated)
        errors[name] = math.hypot(of_share(share, len(generated)), float(np.std(shares, ddof=1)))
    return errors
