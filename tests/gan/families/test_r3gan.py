"""What makes R3GAN that family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.gan import game
from pipeline.gan.batches import Batch, StepDraws
from pipeline.gan.families.r3gan import Block, Config, Discriminator, Family, Generator
from pipeline.gan.family import ImageSpec, Progress


def _spec(size: int = 8) -> ImageSpec:
    return ImageSpec(channels=3, image_size=size, classes=10)


def test_a_block_begins_as_the_identity_and_draws_its_layers_for_the_number_of_blocks() -> None:
    block = Block(64, 16)
    features = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(features), features)
    for layer, fan_in in ((block.expand, 64), (block.mix, 9 * 16)):
        expected = (2 / 1.04 / fan_in) ** 0.5 * 16 ** (-1 / 4)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_both_networks_are_one_another_mirrored_and_without_normalization() -> None:
    config = Config(width=8, max_width=32)
    family = Family(config, _spec(32))
    shapes = []
    for network in (family.generator, family.discriminator):
        blocks = [module.expand.in_channels for module in network.modules() if isinstance(module, Block)]
        shapes.append(blocks)
        assert not any("Norm" in type(module).__name__ for module in network.modules())
    assert shapes[0] == shapes[1][::-1] == [32, 32, 32, 32, 16, 16, 8, 8]
    groups = {module.groups for module in family.generator.modules() if isinstance(module, nn.Conv2d)}
    assert groups == {1, 2, 4}  # of 16 channels


def test_the_widths_of_the_paper() -> None:
    for size, width, expected in ((32, 768, [768] * 4), (256, 96, [768, 768, 768, 768, 384, 192, 96])):
        with torch.device("meta"):
            generator = Generator(Config(width=width, max_width=768, blocks=1), _spec(size))
        assert [m.expand.in_channels for m in generator.modules() if isinstance(m, Block)] == expected


@pytest.mark.parametrize("size", [8, 64])
def test_images_are_made_and_judged_under_labels(size: int) -> None:
    config = Config(width=8, max_width=8, blocks=1)
    latent, labels = torch.randn(1, 64).expand(10, -1), torch.arange(10)
    images = Generator(config, _spec(size))(latent, labels)
    assert images.shape == (10, 3, size, size)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 10
    assert Discriminator(config, _spec(size))(images[:1].expand(10, -1, -1, -1), labels).unique().numel() == 10


def test_schedules_are_half_cosines_over_the_burn_in() -> None:
    settings: dict[str, Any] = {"transformations": ("flip",), "transformation_probability": 0.6}
    config = Config(width=8, burn_in=0.5, fall_from=0.9, first_beta2=0.9, beta2=0.99, **settings)
    family = Family(config, _spec())
    images = torch.rand(4, 3, 8, 8)
    for images_seen, share in ((0, 0.0), (250, 0.5), (500, 1.0), (800, 1.0)):
        progress = Progress(step=3, images_seen=images_seen, total_images=1000)
        set_to = family.hyperparameters("generator", progress)
        assert set_to["lr"] == pytest.approx(2e-4 + share * (5e-5 - 2e-4))
        assert set_to["betas"] == pytest.approx((0.0, 0.9 + share * 0.09))
        family.prepare(progress)
        like = Batch(images=images, labels=torch.arange(4), draws=StepDraws(torch.Generator().manual_seed(0), 4))
        whole = game.Family.penalty(family, images, images, like)
        assert family.penalty(images, images, like).item() == pytest.approx(whole.item() * (1 - 0.9 * share))
        assert family.strength.item() == pytest.approx(0.6 * share)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 12}, "width is 12; needed a multiple of 8"),
        ({"burn_in": 1.5}, r"burn_in is 1\.5; needed at most 1"),
        ({"transformations": ("flip",)}, "transformation_probability is None; needed one with the relativistic"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Config(**settings)
