"""What makes SNGAN that family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.gan.families.sngan import Config, Family
from pipeline.gan.family import ImageSpec


def _spec(size: int) -> ImageSpec:
    return ImageSpec(channels=3, image_size=size, classes=10)


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
def test_every_power_of_two_is_made_and_judged(size: int) -> None:
    family = Family(Config(width=8), _spec(size))
    labels = torch.tensor([3, 4])
    images = family.generator(torch.randn(2, 128), labels)
    assert images.shape == (2, 3, size, size)
    assert family.discriminator(images, labels).shape == (2,)


def test_channels_double_as_the_size_halves_and_the_last_block_does_not_halve() -> None:
    family = Family(Config(class_conditional=False), _spec(32))
    assert [block.convolution1.out_channels for block in family.generator.blocks] == [256, 128, 64]  # type: ignore[union-attr,index]
    blocks = list(family.discriminator.blocks)[:-1]  # type: ignore[arg-type]
    assert [(block.convolution1.out_channels, block.halves) for block in blocks] == [
        (64, True),
        (128, True),
        (256, True),
        (512, False),
    ]


def test_every_weight_of_the_discriminator_has_a_largest_singular_value_of_1_and_none_of_the_generator() -> None:
    family = Family(Config(width=16), _spec(16))
    for _ in range(200):  # training passes: one power iteration each
        family.discriminator(torch.zeros(1, 3, 16, 16), torch.tensor([0]))
    family.eval()
    weights = {
        name: layer.weight
        for name, layer in family.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding)
    }
    judging = [weight for name, weight in weights.items() if name.startswith("discriminator")]
    assert len(judging) == 3 * 3 + 2  # two convolutions and the shortcut of each block, the score
    for weight in judging:
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)
    making = [weight for name, weight in weights.items() if name.startswith("generator")]
    assert all(abs(torch.linalg.matrix_norm(weight.flatten(1), 2).item() - 1) > 0.01 for weight in making)


def test_outside_training_the_discriminator_changes_nothing_and_is_deterministic() -> None:
    discriminator = Family(Config(width=8), _spec(8)).discriminator.eval()
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}

    def scores() -> Tensor:
        judged: Tensor = discriminator(images, labels)
        return judged

    assert torch.equal(scores(), scores())
    assert all(torch.equal(before[name], tensor) for name, tensor in discriminator.state_dict().items())


def test_a_young_generator_tells_classes_apart_where_it_is_told_them() -> None:
    latents = torch.randn(1, 128).expand(3, -1)
    for wanted in (True, False):
        generator = Family(Config(width=8, class_conditional=wanted), _spec(8)).generator.eval()
        images = generator(latents, torch.arange(3))
        assert len({tuple(image.flatten().tolist()) for image in images}) == (3 if wanted else 1)
