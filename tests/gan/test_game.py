"""The game that families of noise share: whose turn it is, what is added to the loss, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.gan import game
from pipeline.gan.batches import Batch, Draws, StepDraws
from pipeline.gan.family import Progress
from pipeline.gan.game import Config
from pipeline.gan.layers import NoiseGenerator


class _Generator(NoiseGenerator):
    """Images whose pixels all are the one latent number, scaled."""

    def __init__(self) -> None:
        super().__init__(1, conditional=False)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return (self.scale * latents)[:, :, None, None].expand(-1, 1, 2, 2)


class _Discriminator(nn.Module):
    """Scores are slope · (sum of pixels)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.3))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.slope * images.flatten(1).sum(1)


def _batch() -> Batch:
    draws = StepDraws(torch.Generator().manual_seed(0), 4)
    return Batch(images=draws.uniform(1, 2, 2), labels=torch.full((4,), -1), draws=draws)


def _losses(step: int = 0, **settings: Any) -> dict[str, float]:
    """The loss of each player whose turn it is, when nobody steps."""
    family = game.Family(Config(**settings), _Generator(), _Discriminator())
    return {name: loss.item() for name, loss in family.losses(_batch(), _progress(step))}


def _progress(step: int = 0) -> Progress:
    return Progress(step=step, images_seen=4 * step, total_images=100)


def test_the_generator_has_its_turn_after_so_many_steps_of_the_discriminator() -> None:
    turns = [list(_losses(step, discriminator_steps=3)) for step in range(6)]
    alone, both = ["discriminator"], ["discriminator", "generator"]
    assert turns == [alone, alone, both, alone, alone, both]


@pytest.mark.parametrize(
    ("settings", "penalty"),
    [
        ({"r1_gamma": 2.0}, 2.0 * 4 * 0.3**2 / 2),  # the gradient is the slope in each of 4 pixels
        ({"r2_gamma": 2.0}, 2.0 * 4 * 0.3**2 / 2),
        ({"gradient_penalty": 10.0}, 10.0 * (2 * 0.3 - 1) ** 2),
        ({"r1_gamma": 1.0, "r2_gamma": 1.0, "gradient_penalty": 10.0}, 4 * 0.3**2 + 10.0 * (2 * 0.3 - 1) ** 2),
    ],
)
def test_penalties_come_every_so_many_steps_with_so_much_more_weight(
    settings: dict[str, float], penalty: float
) -> None:
    without = _losses()["discriminator"]
    for step in range(7):
        expected = 3 * penalty if step % 3 == 0 else 0.0
        added = _losses(step, penalty_every=3, **settings)["discriminator"] - without
        assert added == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_label_smoothing_is_added_to_the_discriminators_loss_alone() -> None:
    plain, smoothed = _losses(), _losses(label_smoothing=0.1)
    mean_score = 0.3 * _batch().images.flatten(1).sum(1).mean().item()
    assert smoothed["discriminator"] - plain["discriminator"] == pytest.approx(0.1 * mean_score, rel=1e-4)
    assert smoothed["generator"] == plain["generator"]


def test_what_is_augmented_is_what_the_discriminator_sees_real_and_generated() -> None:
    class Dark(game.Family):
        def augment(self, images: Tensor, draws: Draws) -> Tensor:
            return images * 0

    family = Dark(Config(), _Generator(), _Discriminator())
    losses = {name: loss.item() for name, loss in family.losses(_batch(), _progress())}
    assert losses == pytest.approx({"discriminator": 2 * math.log(2), "generator": math.log(2)})


def test_the_strength_of_transformations_adapts_to_real_scores_against_the_boundary() -> None:
    for slope, objective, strength in (
        (1.0, "non_saturating", 4 / 500_000),  # all real images score above 0: 4 of the 500,000 images from 0 to 1
        (-1.0, "non_saturating", 0.0),
        (0.1, "least_squares", 0.0),  # above 0, but below 1/2
    ):
        config = Config(objective=objective, transformations=("flip",), ada_target=0.6)  # type: ignore[arg-type]
        family = game.Family(config, _Generator(), _Discriminator())
        with torch.no_grad():
            family.discriminator.slope.fill_(slope)  # type: ignore[operator,union-attr]
        next(family.losses(_batch(), _progress()))
        assert family.strength.item() == pytest.approx(strength)
        assert family.state_dict()["strength"] == family.strength  # so in checkpoints


def test_transformations_of_a_given_probability_keep_it() -> None:
    config = Config(transformations=("flip", "color"), transformation_probability=0.3)
    family = game.Family(config, _Generator(), _Discriminator())
    list(family.losses(_batch(), _progress()))
    assert family.strength.item() == pytest.approx(0.3)


def test_real_and_generated_images_are_transformed_alike() -> None:
    shown: list[Tensor] = []

    class Watched(game.Family):
        def score(self, images: Tensor, like: Batch) -> Tensor:
            shown.append(images.detach())
            return super().score(images, like)

    class Same(NoiseGenerator):
        def __init__(self) -> None:
            super().__init__(1, conditional=False)
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
            return self.scale * picture.expand(len(latents), -1, -1, -1)

    picture = torch.rand(1, 1, 8, 8)
    config = Config(transformations=("translation", "rotation", "color"), transformation_probability=0.5)
    draws = StepDraws(torch.Generator().manual_seed(0), 4000)
    batch = Batch(images=picture.expand(4000, -1, -1, -1), labels=torch.full((4000,), -1), draws=draws)
    next(Watched(config, Same(), _Discriminator()).losses(batch, _progress(1)))
    real, fake = shown
    torch.testing.assert_close(real.mean(0), fake.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(real.std(0), fake.std(0), rtol=0, atol=0.05)


def test_compared_scores_come_from_the_discriminator_of_the_moment() -> None:
    family = game.Family(Config(objective="relativistic"), _Generator(), _Discriminator())
    game_ = family.losses(_batch(), _progress())
    next(game_)
    with torch.no_grad():
        family.discriminator.slope.zero_()  # type: ignore[operator,union-attr]
    player, loss = next(game_)
    assert player == "generator"
    assert loss.item() == pytest.approx(math.log(2))  # all scores are 0 by now


@pytest.mark.parametrize("objective", ["non_saturating", "least_squares", "wasserstein"])
def test_accuracy_is_1_where_scores_are_apart_whatever_their_level(objective: str) -> None:
    class Told(game.Family):
        def score(self, images: Tensor, like: Batch) -> Tensor:
            level = 100.0 if self.config.objective == "wasserstein" else 0.0
            return self.discriminator(images, like.labels) * 0 + level + (images is like.images)

    settings = {"objective": objective, "gradient_penalty": 1.0, "penalty_every": 2}
    progress = _progress(1)
    list(Told(Config(**settings), _Generator(), _Discriminator()).losses(_batch(), progress))  # type: ignore[arg-type]
    accuracy = {name: chart.item() for name, chart in progress.charts.items()}
    assert accuracy == {"real_accuracy": 1.0, "fake_accuracy": 1.0 if objective != "non_saturating" else 0.0}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label_smoothing": 0.1, "objective": "hinge"}, "label_smoothing is 0.1; needed 0 with the hinge objective"),
        ({"label_smoothing": 0.1, "objective": "wasserstein", "gradient_penalty": 1.0}, "label_smoothing is 0.1"),
        ({"objective": "wasserstein"}, "objective is wasserstein; needed a gradient_penalty, r1_gamma or r2_gamma"),
        (
            {"transformations": ("flip",), "augment": ("color",)},
            "transformations are given; needed none beside augment",
        ),
        ({"transformation_probability": 1.5}, r"transformation_probability is 1\.5; needed from 0 to 1"),
        ({"ada_target": 1.0}, r"ada_target is 1\.0; needed between -1 and 1"),
        (
            {"transformations": ("flip",), "objective": "relativistic"},
            "transformation_probability is None; needed one with the relativistic objective",
        ),
    ],
)
def test_what_makes_no_sense_together_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Config(**settings)


def test_minimax_with_smoothed_labels_and_wasserstein_with_a_penalty_make_sense() -> None:
    Config(objective="minimax", label_smoothing=0.1)
    Config(objective="wasserstein", r1_gamma=1.0)
