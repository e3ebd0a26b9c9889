"""The networks of DCGAN against its paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.gan.convolutional import Config, Discriminator, Generator
from pipeline.gan.family import ImageSpec


def _spec(size: int, channels: int = 3) -> ImageSpec:
    return ImageSpec(channels=channels, image_size=size, classes=10)


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
def test_every_power_of_two_is_made_and_judged(size: int) -> None:
    config = Config(width=2)
    images = Generator(config, _spec(size))(torch.randn(2, 100), torch.tensor([3, 4]))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert Discriminator(config, _spec(size), None)(images, torch.tensor([3, 4])).shape == (2,)


@pytest.mark.parametrize("size", [4, 28, 96, 512])
def test_other_sizes_are_refused_with_the_setting_that_mends_it(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size}×{size}.*power of two from 8 to 256.*ingest.image_size"):
        Generator(Config(), _spec(size))


def test_64_pixels_at_width_128_are_the_generator_of_the_paper() -> None:
    generator = Generator(Config(width=128, class_conditional=False), _spec(64))
    transposed = [layer for layer in generator.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.in_channels for layer in transposed] == [1024, 512, 256, 128]
    assert generator.layers[0].in_features == 100
    assert generator.layers[0].out_features == 1024 * 4 * 4


def test_normalization_stands_everywhere_but_at_the_pixels() -> None:
    discriminator = Discriminator(Config(width=4), _spec(32), nn.BatchNorm2d)
    names = ["Conv2d", "LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert [type(layer).__name__ for layer in discriminator.layers[:-1]] == names
    last = list(Generator(Config(width=4), _spec(32)).layers)[-4:]
    assert [type(layer).__name__ for layer in last] == ["BatchNorm2d", "ReLU", "ConvTranspose2d", "Tanh"]


def test_weights_begin_small() -> None:
    for network in (Generator(Config(), _spec(32)), Discriminator(Config(), _spec(32), nn.BatchNorm2d)):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.numel() > 5000:
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_without_labels_labels_change_nothing() -> None:
    config = Config(width=4, class_conditional=False)
    generator, discriminator = Generator(config, _spec(8)).eval(), Discriminator(config, _spec(8), None)
    latents, none = torch.randn(2, 100), torch.full((2,), -1)
    images = generator(latents, none)
    assert torch.equal(images, generator(latents, torch.tensor([1, 2])))
    assert torch.equal(discriminator(images, none), discriminator(images, torch.tensor([1, 2])))


def test_a_label_begins_no_louder_in_a_score_than_the_image_itself() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(Config(width=8), _spec(32, channels=1), None)
    images = torch.rand(64, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        features = discriminator.layers(images)
        own = discriminator.score.linear(features)
        of_labels = features @ discriminator.score.embedding.weight.T
    assert of_labels.abs().mean() < 3 * own.abs().mean()
