"""Fidelity against closed forms, against definitions written out, and against torch-fidelity fed with images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import FailedError, UserError
from pipeline.gan.pixels import to_float
from pipeline.metrics.classifier import Classifier, embed
from pipeline.metrics.fidelity import (
    COVERAGE_NEIGHBOURS,
    NEIGHBOURS,
    fidelity,
    frechet_distance,
    inception_score,
    kid_subset_size,
    neighbourhoods,
    with_spread,
)


def features(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Correlated features, off the origin."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, dimensions)) @ random.normal(size=(dimensions, dimensions)) + random.normal()


def white(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Features with mean 0 and covariance 1, exactly."""
    rows = features(count, dimensions, seed)
    rows -= rows.mean(axis=0)
    return rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T


def test_equal_covariances_leave_the_distance_of_the_means() -> None:
    real, shift = features(300, 12, 1), np.linspace(-2, 3, 12)
    assert frechet_distance(real + shift, real) == pytest.approx(shift @ shift, abs=1e-9)


def test_the_fid_of_torch_fidelity_is_that_closed_form_too() -> None:
    real, shift = features(300, 12, 1), np.linspace(-2, 3, 12)
    assert fidelity(real + shift, real, seed=0)["fid"] == pytest.approx(shift @ shift, abs=1e-6)
    ours, theirs = np.linspace(0.1, 2, 9), np.linspace(3, 0.2, 9)
    scores = fidelity(white(200, 9, 1) * ours + 1, white(250, 9, 2) * theirs, seed=0)
    assert scores["fid"] == pytest.approx(9 + ((ours - theirs) ** 2).sum(), abs=1e-6)


def test_commuting_covariances_leave_the_distance_of_the_deviations() -> None:
    ours, theirs = np.linspace(0.1, 2, 9), np.linspace(3, 0, 9)  # the last has no spread at all
    found = frechet_distance(white(200, 9, 1) * ours + 1, white(250, 9, 2) * theirs)
    assert found == pytest.approx(9 + ((ours - theirs) ** 2).sum(), abs=1e-6)  # the root of a rounding error


def test_is_symmetric_and_nothing_to_itself() -> None:
    one, other = features(100, 10, 1), features(120, 10, 2)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-12)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


class Uint8Images(Dataset[Tensor]):
    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    generated = random.integers(0, 256, (230, 1, 8, 8), dtype=np.uint8)
    return generated, (random.integers(0, 256, (260, 1, 8, 8)) ** 2 // 256).astype(np.uint8)


def test_equals_torch_fidelity_fed_with_images(images: tuple[np.ndarray, np.ndarray]) -> None:
    """As any user of torch-fidelity would do it: an extractor of one's own, uint8 images in, generated first."""
    from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor

    torch.manual_seed(0)
    classifier = Classifier(channels=1, image_size=8, classes=3, width=8).eval()

    class Ours(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)
            self.classifier = classifier

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("pooled",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "pooled"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            raise NotImplementedError

        def forward(self, batch: Tensor) -> tuple[Tensor]:
            assert batch.dtype == torch.uint8
            return (self.classifier.features(to_float(batch)).double(),)

    register_feature_extractor("test-of-fidelity", Ours)
    generated, real = images
    theirs = calculate_metrics(
        input1=Uint8Images(generated),
        input2=Uint8Images(real),
        feature_extractor="test-of-fidelity",
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=kid_subset_size(len(generated), len(real)),
        rng_seed=4,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    ours = fidelity(embed(classifier, generated), embed(classifier, real), seed=4)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6, abs=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6, abs=1e-6)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_measures_match_their_definitions_written_out() -> None:
    generated, real = features(60, 3, 5), features(70, 3, 5) * 1.2
    across = np.linalg.norm(generated[:, None] - real[None], axis=2)

    def radii(rows: np.ndarray, neighbours: int) -> np.ndarray:
        return np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=2), axis=1)[:, neighbours]

    inside = across <= radii(real, COVERAGE_NEIGHBOURS)
    scores = fidelity(generated, real, seed=0)
    assert scores["precision"] == pytest.approx((across <= radii(real, NEIGHBOURS)).any(axis=1).mean())
    assert scores["recall"] == pytest.approx((across <= radii(generated, NEIGHBOURS)[:, None]).any(axis=0).mean())
    assert scores["density"] == pytest.approx(inside.sum() / (COVERAGE_NEIGHBOURS * len(generated)))
    assert scores["coverage"] == pytest.approx(inside.any(axis=0).mean())


def test_one_mode_of_two_is_precise_and_does_not_cover() -> None:
    random = np.random.default_rng(0)
    modes = random.normal(size=(200, 4)) + 100 * (np.arange(200) % 2)[:, None]
    dropped = random.normal(size=(200, 4))
    scores = fidelity(dropped, modes, seed=0)
    assert scores["precision"] > 0.9
    assert scores["recall"] <= 0.5
    assert scores["coverage"] <= 0.5


def gaussians(count: int, shift: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 12)) * np.linspace(0.2, 2, 12) + shift


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_fid_of_infinitely_many_is_that_of_the_distributions(shift: float) -> None:
    """Whose Fréchet distance is that of the means; with 400 samples a side it seems larger."""
    found = [with_spread(gaussians(400, shift, seed), gaussians(400, 0, seed + 50), seed=seed)[0] for seed in range(8)]
    true = 12 * shift**2
    biased, extrapolated = (np.mean([scores[name] for scores in found]) for name in ("fid", "fid_infinity"))
    assert biased > true + 0.1
    assert extrapolated == pytest.approx(true, abs=0.05)


def test_the_spread_is_about_what_new_samples_scatter() -> None:
    found = [with_spread(gaussians(300, 0.3, seed), gaussians(300, 0, seed + 50), seed=seed) for seed in range(16)]
    for name in ("fid", "fid_infinity", "kid", "precision", "recall", "density", "coverage"):
        scatter = np.std([scores[name] for scores, _ in found], ddof=1)
        spread = np.mean([each[name] for _, each in found])
        assert scatter / 2.5 < spread < scatter * 2.5, name


def test_the_spread_changes_no_measure_and_is_the_same_again() -> None:
    sides = features(90, 5, 1), features(80, 5, 2)
    scores, spread = with_spread(*sides, seed=3)
    assert (scores, spread) == with_spread(*sides, seed=3)
    assert {name: value for name, value in scores.items() if name != "fid_infinity"} == fidelity(*sides, seed=3)
    assert spread.keys() == scores.keys()


def test_where_half_of_a_side_is_too_few_there_is_no_spread_of_fid() -> None:
    scores, spread = with_spread(features(40, 20, 1), features(60, 20, 2), seed=0)
    assert "fid_infinity" not in scores
    assert spread.keys() == {"kid", "precision", "recall", "density", "coverage"}
    _, spread = with_spread(features(22, 20, 1), features(22, 20, 2), seed=0)
    assert spread.keys() == {"kid"}


def test_the_inception_score_counts_the_classes_that_are_seen_for_certain() -> None:
    seen = np.eye(8, dtype=np.float32)[np.arange(4000) % 5] * 100
    score, error = inception_score(seen, seed=0)
    assert score == pytest.approx(5, rel=0.02)
    assert 0 < error < 0.1
    assert inception_score(np.zeros((4000, 8), np.float32), seed=0) == (pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = features(150, 4, 1), features(130, 4, 1)
    whole = neighbourhoods(generated, real)
    monkeypatch.setattr("pipeline.metrics.fidelity._CHUNK", 7)
    assert neighbourhoods(generated, real) == pytest.approx(whole)


def test_the_same_seed_gives_the_same_numbers() -> None:
    one, other = features(90, 5, 1), features(80, 5, 2)
    assert fidelity(one, other, seed=3) == fidelity(one, other, seed=3)
    assert fidelity(one, other, seed=3)["kid"] != fidelity(one, other, seed=4)["kid"]


@pytest.mark.parametrize("measure", [frechet_distance, lambda one, other: fidelity(one, other, seed=0)])
def test_refuses_in_one_sentence(measure) -> None:  # type: ignore[no-untyped-def]
    good, few, broken = features(50, 8, 1), features(8, 8, 2), features(50, 8, 3)
    broken[7, 2] = np.nan
    with pytest.raises(UserError, match=r"^the generated set has 8 images; needed more than the 8 dimensions"):
        measure(few, good)
    with pytest.raises(UserError, match=r"^the real set has 8 images; needed more than the 8 dimensions"):
        measure(good, few)
    with pytest.raises(FailedError, match=r"^the generated set: the features of 1 of 50 images are not finite$"):
        measure(broken, good)
