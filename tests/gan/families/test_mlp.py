"""What makes the first GAN."""

from __future__ import annotations

import pytest
import torch

from pipeline.gan.batches import Batch, StepDraws
from pipeline.gan.families.mlp import Config, Discriminator, Family, Generator, Maxout
from pipeline.gan.family import ImageSpec

SPEC = ImageSpec(channels=1, image_size=8, classes=3)


def test_the_defaults_are_the_networks_of_the_paper() -> None:
    family = Family(Config(class_conditional=False), ImageSpec(channels=1, image_size=28, classes=10))
    shapes = [tuple(p.shape) for p in family.generator.parameters() if p.dim() == 2]
    assert shapes == [(1200, 100), (1200, 1200), (784, 1200)]
    shapes = [tuple(p.shape) for p in family.discriminator.parameters() if p.dim() == 2]
    assert shapes == [(240 * 5, 784), (240 * 5, 240), (1, 240)]


def test_latents_are_uniform_with_a_deviation_of_1() -> None:
    latents = Generator(Config(), SPEC).latents(StepDraws(torch.Generator().manual_seed(0), 2000))
    assert latents.shape == (2000, 100)
    assert latents.mean().item() == pytest.approx(0, abs=0.01)
    assert latents.std().item() == pytest.approx(1, abs=0.01)
    assert latents.abs().max() <= 3**0.5


def test_a_maxout_unit_is_the_largest_of_its_five_pieces() -> None:
    maxout, inputs = Maxout(6, 4), torch.randn(3, 6)
    pieces = inputs @ maxout.linear.weight.T + maxout.linear.bias
    for unit in range(4):
        torch.testing.assert_close(maxout(inputs)[:, unit], pieces[:, unit::4].max(1).values)


def test_dropout_masks_are_the_draws_of_the_batch() -> None:
    discriminator = Discriminator(Config(discriminator_units="leaky_relu"), SPEC)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])

    def scores(seed: int) -> list[float]:
        judged: list[float] = discriminator(images, labels, StepDraws(torch.Generator().manual_seed(seed), 4)).tolist()
        return judged

    assert scores(1) == scores(1)
    assert scores(1) != scores(2)


def test_labels_count_only_where_wanted() -> None:
    draws = StepDraws(torch.Generator().manual_seed(0), 2)
    images = draws.uniform(1, 8, 8)
    for wanted in (True, False):
        family = Family(Config(class_conditional=wanted, dropout=0), SPEC)
        one, other = (Batch(images=images, labels=torch.tensor(y), draws=draws) for y in ([0, 1], [2, 2]))
        assert torch.equal(family.score(images, one), family.score(images, other)) != wanted
        assert family.generator.conditional == wanted


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dropout": 1.0}, "dropout is 1.0; needed below 1"),
        ({"generator_widths": ()}, r"generator_widths is \[\]; needed one or more"),
        ({"discriminator_widths": (8, 0)}, r"discriminator_widths is \[8, 0\]; needed one or more, each at least 1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Config(**settings)  # type: ignore[arg-type]
