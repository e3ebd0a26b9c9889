"""Distances between sets of images in a feature space: rows of features in, numbers out.

Features are float (N, D), from whatever extractor; the generated set always comes first, as in torch-fidelity. What
torch-fidelity has is its own; what resamples say of the error is measured by functions of ours, which are equal to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from pipeline.errors import FailedError, UserError

KID_SUBSETS = 100
NEIGHBOURS = 3  # of precision and recall: the k of arXiv 1904.06991
COVERAGE_NEIGHBOURS = 5  # of density and coverage: the k of arXiv 2002.09797
RESAMPLES = 10
ISC_PARTS = 10
_CHUNK = 128  # rows of a block of pairwise distances, which then stays in the cache


def fidelity(
    generated: np.ndarray, real: np.ndarray, *, seed: int, precision: DTypeLike = np.float64
) -> dict[str, float]:
    """`fid`, `kid`, `precision` and `recall` by torch-fidelity, `density` and `coverage`.

    Computed in `precision`: torch-fidelity's own command line has float32. KID is the mean over KID_SUBSETS subsets of
    `kid_subset_size` drawn by `seed`; unbiased, so it may be below zero. Raises as `check_features` does.
    """
    return with_spread(generated, real, seed=seed, precision=precision, resamples=0)[0]


def with_spread(
    generated: np.ndarray,
    real: np.ndarray,
    *,
    seed: int,
    precision: DTypeLike = np.float64,
    resamples: int = RESAMPLES,
    pool: Executor | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """`fidelity` with `fid_infinity` beside it, and the standard error of each measure as resamples show it.

    Resamples are drawn without replacement from both sides, halves of them for FID and quarters for the measures of
    neighbours, since equal images would be neighbours; KID has its subsets. That of m of n images is known to scatter
    √((n - m)/m) times as widely as n images do (Shao & Wu 1989), of FID near its floor more: then the error is
    too large, never too small. FID falls by c/n towards that of infinitely many images (Chong & Forsyth 2020, arXiv
    1911.07023): `fid_infinity` is where the line through the mean of the halves and the whole ends; it may be below
    zero. Halves shift with the whole, so that its error is that of FID, and what so few halves leave in their mean.
    Both are left out where half a side has no more images than there are features. A `pool` measures parts side by
    side, which changes no digit.
    """
    check_features(generated, "the generated set")
    check_features(real, "the real set")
    sides = generated.astype(precision), real.astype(precision)
    random = np.random.Generator(np.random.Philox(seed))

    def parts(divisor: int, enough: bool) -> list[list[np.ndarray]]:
        """Which rows of either side, for each resample."""
        return [
            [np.sort(random.permutation(len(side))[: len(side) // divisor]) for side in sides]
            for _ in range(resamples if enough else 0)
        ]

    fewest, dimensions = min(map(len, sides)), generated.shape[1]
    halves, quarters = parts(2, fewest // 2 > dimensions), parts(4, fewest // 4 > COVERAGE_NEIGHBOURS)
    tasks: list[Callable[[], Any]] = [
        partial(_kid, *sides, seed=seed),
        partial(_precision_recall, *sides),
        partial(neighbourhoods, *sides),
        partial(_fid, *sides),
        *(partial(_of_rows, frechet_distance, sides, rows) for rows in halves),
        *(partial(_of_rows, neighbourhoods, sides, rows) for rows in quarters),
    ]
    (kid, kid_deviation), precision_recall, ours, fid, *resampled = (pool.map if pool else map)(_call, tasks)
    scores = {"fid": fid, "kid": kid, **precision_recall, "density": ours["density"], "coverage": ours["coverage"]}
    of_halves, of_quarters = resampled[: len(halves)], resampled[len(halves) :]
    size = kid_subset_size(*map(len, sides))
    spread = {"kid": kid_deviation * math.sqrt(size / (fewest - size))} if resamples else {}
    if of_halves:
        scores["fid_infinity"] = float(2 * fid - np.mean(of_halves))
        spread["fid"] = float(np.std(of_halves, ddof=1))
        spread["fid_infinity"] = spread["fid"] * math.sqrt(1 + 1 / len(of_halves))
    if of_quarters:
        spread |= {
            name: float(np.std([each[name] for each in of_quarters], ddof=1)) / math.sqrt(3) for name in of_quarters[0]
        }
    return scores, spread


def _call(task: Callable[[], Any]) -> Any:
    return task()


def _of_rows(measure: Callable[..., Any], sides: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> Any:
    return measure(*(side[those] for side, those in zip(sides, rows, strict=True)))


def _fid(generated: np.ndarray, real: np.ndarray) -> float:
    from torch_fidelity import metric_fid

    sides = map(metric_fid.fid_features_to_statistics, map(torch.from_numpy, (generated, real)))
    found: float = metric_fid.fid_statistics_to_metric(*sides, verbose=False)[metric_fid.KEY_METRIC_FID]
    return found


def _kid(generated: np.ndarray, real: np.ndarray, *, seed: int) -> tuple[float, float]:
    """The mean and the standard deviation over the subsets."""
    from torch_fidelity import metric_kid

    found = metric_kid.kid_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=kid_subset_size(len(generated), len(real)),
        rng_seed=seed,
        verbose=False,
    )
    return found[metric_kid.KEY_METRIC_KID_MEAN], found[metric_kid.KEY_METRIC_KID_STD]


def _precision_recall(generated: np.ndarray, real: np.ndarray) -> dict[str, float]:
    from torch_fidelity import metric_prc

    found = metric_prc.prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_CHUNK,
        save_cpu_ram=True,
        verbose=False,
    )
    return {"precision": found[metric_prc.KEY_METRIC_PRECISION], "recall": found[metric_prc.KEY_METRIC_RECALL]}


def inception_score(logits: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Inception Score of logits (N, K), arXiv 1606.03498, by torch-fidelity: the mean of ten parts, and its error."""
    from torch_fidelity import metric_isc

    found = metric_isc.isc_features_to_metric(torch.from_numpy(logits.copy()), splits=ISC_PARTS, rng_seed=seed)
    return found[metric_isc.KEY_METRIC_ISC_MEAN], found[metric_isc.KEY_METRIC_ISC_STD] / math.sqrt(ISC_PARTS)


def by_domain(labels: np.ndarray, *, translated: bool) -> list[np.ndarray]:
    """The rows of images that are compared with real ones together: all, or of translations each domain by itself.

    Two domains translated into each other are the same two domains when nothing is done to them at all.
    """
    if not translated:
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels == domain) for domain in np.unique(labels)]


def protocol(
    about: Mapping[str, Any], sizes: Iterable[tuple[int, int]], *, seed: int, logits: int = 0
) -> dict[str, Any]:
    """How `fidelity` measures, for a protocol: `about` the extractor, and by the sizes of the sets, generated first."""
    scored = (
        {"inception_score": f"layer logits_unbiased, {logits} classes, mean of {ISC_PARTS} parts"} if logits else {}
    )
    subsets = sorted({kid_subset_size(*pair) for pair in sizes})
    return {
        **about,
        "kid": f"mean of {KID_SUBSETS} subsets of {' and '.join(map(str, subsets))}, cubic kernel",
        "precision_recall": f"{NEIGHBOURS} nearest neighbours",
        "density_coverage": f"{COVERAGE_NEIGHBOURS} nearest neighbours",
        "spread": f"standard errors (after ±) from {RESAMPLES} random parts of both sides, halves for FID, quarters "
        "for neighbours, and from the subsets of KID",
        "fid_infinity": "on the line in 1/N through the mean of the halves and the whole, after arXiv 1911.07023",
        **scored,
        "seed": seed,
        "library": f"torch-fidelity {version('torch-fidelity')}, torch {version('torch')}",
    }


def kid_subset_size(generated: int, real: int) -> int:
    """1000 as is usual, or half of the smaller set, so that subsets differ."""
    return min(1000, generated // 2, real // 2)


def neighbourhoods(generated: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """`precision` and `recall`, arXiv 1904.06991, equation 1; `density` and `coverage`, arXiv 2002.09797, 3 and 4.

    An image's ball reaches to its k-th nearest other image of its own set. Precision: the share of generated images in
    a ball of a real one. Recall: the share of real images in a ball of a generated one. Density: in how many balls of
    real images a generated one lies, over k; 1 is expected of real images, more is possible. Coverage: the share of
    balls of real images that hold a generated one. k is NEIGHBOURS, and COVERAGE_NEIGHBOURS for the last two.
    """
    ours, theirs = torch.from_numpy(generated), torch.from_numpy(real)
    (reach,) = _radii(ours, [NEIGHBOURS])
    near, wide = _radii(theirs, [NEIGHBOURS, COVERAGE_NEIGHBOURS])
    precise, held = 0, torch.zeros(len(theirs), dtype=torch.int64)
    recalled = torch.zeros(len(theirs), dtype=torch.bool)
    for part, its_reach in zip(torch.split(ours, _CHUNK), torch.split(reach, _CHUNK), strict=True):
        distances = torch.cdist(part, theirs)
        precise += int((distances <= near).any(dim=1).sum())
        recalled |= (distances <= its_reach[:, None]).any(dim=0)
        held += (distances <= wide).sum(dim=0)
    return {
        "precision": precise / len(ours),
        "recall": float(recalled.double().mean()),
        "density": float(held.sum() / (COVERAGE_NEIGHBOURS * len(ours))),
        "coverage": float((held > 0).double().mean()),
    }


def _radii(rows: Tensor, neighbours: Sequence[int]) -> list[Tensor]:
    """For each number k the distances (N,) of all rows to their k-th nearest other row."""
    most = max(neighbours) + 1  # the first is the row itself
    nearest = [torch.cdist(part, rows).topk(most, dim=1, largest=False).values for part in torch.split(rows, _CHUNK)]
    return [torch.cat(nearest)[:, number] for number in neighbours]


def frechet_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (N, D); arXiv 1706.08500, equation 6.

    ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½), in float64: tr (Σ₁Σ₂)^½ is the sum of the square roots of the eigenvalues
    of the symmetric Σ₁^½ Σ₂ Σ₁^½. Equals the `fid` of `fidelity`, in less time. Biased upwards by about 1/N, so compare
    at equal N. Raises as `check_features` does.
    """
    check_features(generated, "the generated set")
    check_features(real, "the real set")
    mean, covariance = _gaussian(generated)
    other_mean, other_covariance = _gaussian(real)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ other_covariance @ root)
    shift = mean - other_mean
    trace = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(cross.clip(min=0)).sum()
    return float(shift @ shift + trace)


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exact = features.astype(np.float64)
    return exact.mean(axis=0), np.atleast_2d(np.cov(exact, rowvar=False))


def check_count(count: int, dimensions: int, name: str) -> None:
    """Raise UserError on fewer images than the covariance of so many features needs."""
    if count <= dimensions:
        raise UserError(f"{name} has {count} images; needed more than the {dimensions} dimensions of the features")


def check_features(features: np.ndarray, name: str) -> None:
    """Raise UserError on fewer rows than the covariance needs, FailedError on values that are not finite."""
    count, dimensions = features.shape
    check_count(count, dimensions, name)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        raise FailedError(f"{name}: the features of {bad} of {count} images are not finite")
