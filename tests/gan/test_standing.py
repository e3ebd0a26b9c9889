"""How the game stands: discriminators that know by heart, that cannot tell, and that say how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.gan import game
from pipeline.gan.batches import Batch, Batches
from pipeline.gan.family import Generator
from pipeline.gan.standing import _calibration_error, standing

CPU = torch.device("cpu")


def batches(level: int, count: int = 40) -> Batches:
    """Images of 2×2 pixels around a level."""
    images = np.random.default_rng(level).integers(level, level + 20, (count, 1, 2, 2), dtype=np.uint8)
    return Batches(images, np.zeros(count, np.int64), batch_size=8, seed=0, device=CPU)


class Level(Generator):
    """Images of one level, from -1 to 1."""

    conditional = False

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def sample_like(self, batch: Batch, spread: float = 1.0) -> Tensor:
        return self.level.expand(batch.images.shape)


class Brightness(nn.Module):
    """Scores are slope · (mean of pixels - threshold), less what batch normalization has counted so far."""

    def __init__(self, threshold: float, slope: float = 50.0) -> None:
        super().__init__()
        self.threshold, self.slope = threshold, slope
        self.norm = nn.BatchNorm1d(1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        means = images.flatten(1).mean(1, keepdim=True)
        self.norm(means)
        return self.slope * (means[:, 0] - self.threshold)


def found(discriminator: nn.Module, fake: float, held_out: int, **settings: Any) -> dict[str, float]:
    family = game.Family(game.Config(**settings), Level(fake), discriminator)
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    stands = standing(family, batches(200), batches(held_out), step=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.state_dict().items())
    assert stands == standing(family, batches(200), batches(held_out), step=5)
    return stands


def test_a_discriminator_that_knows_its_training_images_only_has_a_gap() -> None:
    stands = found(Brightness(0.5), fake=-1.0, held_out=100)
    assert (stands["train_accuracy"], stands["held_out_accuracy"], stands["fake_accuracy"]) == (1, 0, 1)
    assert (stands["gap"], stands["train_over_held_out"], stands["held_out_over_fake"]) == (1, 1, 1)
    assert stands["calibration_error"] == pytest.approx(0.5, abs=0.01)  # sure that all held-out images are fake
    assert stands["images"] == 2000


def test_one_that_sees_what_real_images_have_in_common_has_none() -> None:
    stands = found(Brightness(0), fake=-0.8, held_out=200)
    assert (stands["gap"], stands["held_out_over_fake"]) == (0, 1)
    assert stands["train_over_held_out"] == pytest.approx(0.5, abs=0.1)
    assert stands["calibration_error"] == pytest.approx(0, abs=0.01)


def test_one_that_cannot_tell_says_so_and_is_calibrated() -> None:
    stands = found(Brightness(0, slope=0), fake=0.6, held_out=200)
    assert (stands["held_out_over_fake"], stands["train_over_held_out"]) == (0.5, 0.5)
    assert stands["calibration_error"] == 0


class Both(Level):
    """The images of a batch, a level darker or brighter by the domain that they are asked for in."""

    translates = True

    def sample_like(self, batch: Batch, spread: float = 1.0) -> Tensor:
        return batch.images + self.level * (2 * batch.labels - 1)[:, None, None, None]


class OneIsBlind(Brightness):
    """Domain 1 gets a score of 0 whatever it shows."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return super().forward(images, labels) * (labels == 0)


def test_each_domain_of_a_translation_has_a_standing_and_the_means_are_of_both() -> None:
    images = np.full((40, 1, 2, 2), 200, np.uint8)
    domains = Batches(images, np.arange(40) % 2, batch_size=8, seed=0, device=CPU, balanced=True)
    family = game.Family(game.Config(), Both(-1.0), OneIsBlind(0.7))
    stands = standing(family, domains, domains, step=5)
    seeing, blind = stands["domains"]
    assert (seeing["held_out_accuracy"], seeing["fake_accuracy"], seeing["held_out_over_fake"]) == (0, 0, 0)
    assert (blind["held_out_accuracy"], blind["held_out_over_fake"]) == (0, 0.5)
    assert stands["held_out_over_fake"] == 0.25
    assert seeing.keys() == blind.keys() == stands.keys() - {"objective", "images", "domains"}


def test_where_only_differences_count_the_middle_is_the_boundary_and_scores_are_no_probabilities() -> None:
    stands = found(Brightness(-3), fake=-0.8, held_out=200, objective="relativistic")
    assert (stands["train_accuracy"], stands["held_out_accuracy"], stands["fake_accuracy"]) == (1, 1, 1)
    assert "calibration_error" not in stands


def test_the_calibration_error_is_the_mean_distance_of_probability_and_share() -> None:
    real, fake = torch.tensor([0.9, 0.9, 0.3]), torch.tensor([0.9, 0.3, 0.3])
    assert _calibration_error(real, fake) == pytest.approx((3 * abs(0.9 - 2 / 3) + 3 * abs(0.3 - 1 / 3)) / 6)
