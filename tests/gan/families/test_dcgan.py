"""What makes DCGAN that family; its networks have a test of their own."""

from __future__ import annotations

import pytest
from torch import nn

from pipeline.gan.families.dcgan import Config, Family
from pipeline.gan.family import ImageSpec


def test_both_networks_normalize_over_the_batch_so_a_gradient_penalty_is_refused() -> None:
    family = Family(Config(width=4), ImageSpec(channels=1, image_size=16, classes=3))
    for player in (family.generator, family.discriminator):
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in player.modules())
    with pytest.raises(ValueError, match=r"^gradient_penalty is 10.0; needed 0 with batch normalization .*wgan_gp"):
        Config(gradient_penalty=10.0)
