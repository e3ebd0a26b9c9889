"""Distances between sets of images in a feature space: rows of features in, numbers out.

Features are float (N, D), from whatever extractor; the generated set always comes first, as in torch-fidelity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import FailedError, UserError

KID_SUBSETS = 100
NEIGHBOURS = 3  # of precision and recall: the k of arXiv 1904.06991
COVERAGE_NEIGHBOURS = 5  # of density and coverage: the k of arXiv 2002.09797
_CHUNK = 1000  # rows of a block of pairwise distances


def fidelity(
    generated: np.ndarray, real: np.ndarray, *, seed: int, precision: DTypeLike = np.float64
) -> dict[str, float]:
    """`fid`, `kid`, `precision` and `recall` by torch-fidelity, which computes in the `precision` of what it is given.

    `density` and `coverage` beside them, in float64. torch-fidelity's own command line has float32.
    KID is the mean over subsets of `kid_subset_size` drawn by `seed`; unbiased, so it may be below zero. Raises as
    `check_features` does.
    """
    check_features(generated, "the generated set")
    check_features(real, "the real set")
    from torch_fidelity import calculate_metrics

    scores = calculate_metrics(
        input1=_Rows(generated.astype(precision)),
        input2=_Rows(real.astype(precision)),
        fid=True,
        kid=True,
        prc=True,
        feature_extractor=_given_features(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=kid_subset_size(len(generated), len(real)),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_CHUNK,
        rng_seed=seed,
        batch_size=_CHUNK,
        cuda=False,
        cache=False,  # it is keyed by name only: other features under the same name would get the old numbers
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    density, coverage = density_and_coverage(generated, real)
    return {
        "fid": scores["frechet_inception_distance"],
        "kid": scores["kernel_inception_distance_mean"],
        "precision": scores["precision"],
        "recall": scores["recall"],
        "density": density,
        "coverage": coverage,
    }


def by_domain(labels: np.ndarray, *, translated: bool) -> list[np.ndarray]:
    """The rows of images that are compared with real ones together: all, or of translations each domain by itself.

    Two domains translated into each other are the same two domains when nothing is done to them at all.
    """
    if not translated:
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels == domain) for domain in np.unique(labels)]


def protocol(about: Mapping[str, Any], sizes: Iterable[tuple[int, int]], *, seed: int) -> dict[str, Any]:
    """How `fidelity` measures, for a protocol: `about` the extractor, and by the sizes of the sets, generated first."""
    subsets = sorted({kid_subset_size(*pair) for pair in sizes})
    return {
        **about,
        "kid": f"mean of {KID_SUBSETS} subsets of {' and '.join(map(str, subsets))}, cubic kernel",
        "precision_recall": f"{NEIGHBOURS} nearest neighbours",
        "density_coverage": f"{COVERAGE_NEIGHBOURS} nearest neighbours",
        "seed": seed,
        "library": f"torch-fidelity {version('torch-fidelity')}, torch {version('torch')}",
    }


def kid_subset_size(generated: int, real: int) -> int:
    """1000 as is usual, or half of the smaller set, so that subsets differ."""
    return min(1000, generated // 2, real // 2)


class _Rows(Dataset[Tensor]):
    """Features as the data set that torch-fidelity reads."""

    def __init__(self, features: np.ndarray) -> None:
        self.rows = torch.from_numpy(features)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


@cache
def _given_features() -> str:
    """Register, once, an extractor that hands its input on: one pass through a network then serves every measure."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor

    class GivenFeatures(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("given",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "given"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            raise NotImplementedError

        def forward(self, rows: Tensor) -> tuple[Tensor]:
            return (rows,)

    register_feature_extractor("forgeline-given", GivenFeatures)
    return "forgeline-given"


def density_and_coverage(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Density and coverage, arXiv 2002.09797, equations 3 and 4, with k = COVERAGE_NEIGHBOURS.

    A real image's ball reaches to its k-th nearest other real image. Density: in how many balls a generated image
    lies, over k; 1 is expected of real images, more is possible. Coverage: the share of balls that hold one.
    """
    ours, theirs = (torch.from_numpy(features.astype(np.float64)) for features in (generated, real))
    radius = torch.cat(
        [
            torch.cdist(part, theirs).kthvalue(COVERAGE_NEIGHBOURS + 1, dim=1).values  # the first is the image itself
            for part in torch.split(theirs, _CHUNK)
        ]
    )
    inside = torch.zeros(len(theirs), dtype=torch.int64)
    for part in torch.split(ours, _CHUNK):
        inside += (torch.cdist(part, theirs) <= radius).sum(dim=0)
    return float(inside.sum() / (COVERAGE_NEIGHBOURS * len(ours))), float((inside > 0).double().mean())


def frechet_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (N, D); arXiv 1706.08500, equation 6.

    ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½), in float64: tr (Σ₁Σ₂)^½ is the sum of the square roots of the eigenvalues
    of the symmetric Σ₁^½ Σ₂ Σ₁^½. Equals the `fid` of `fidelity`, without torch-fidelity's seconds of import. Biased
    upwards by about 1/N, so compare at equal N. Raises as `check_features` does.
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
