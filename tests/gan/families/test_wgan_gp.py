"""What makes WGAN-GP that family."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from pipeline.gan.families.wgan_gp import Config, Family
from pipeline.gan.family import ImageSpec


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_a_score_is_a_function_of_its_own_image(normalization: Literal["none", "layer"]) -> None:
    spec = ImageSpec(channels=1, image_size=16, classes=3)
    critic = Family(Config(width=4, normalization=normalization), spec).discriminator
    assert any(isinstance(layer, nn.GroupNorm) for layer in critic.modules()) == (normalization == "layer")
    images, labels = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    alone = torch.cat([critic(image[None], label[None]) for image, label in zip(images, labels, strict=True)])
    torch.testing.assert_close(critic(images, labels), alone)


def test_without_its_penalty_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gradient_penalty is 0; needed above 0"):
        Config(gradient_penalty=0)
