"""Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028): a slope of 1 without clipping.

New: the best critic has a gradient of norm 1 between real and generated images (proposition 1), so what is penalized
is the distance of that norm from 1, at one point between each pair of images (section 4), instead of clipping weights,
which left the critic too simple. Batch normalization would make a score depend on the other images: the critic has
none, or layer normalization. The networks are else those of DCGAN; five critic steps, Adam without momentum and λ = 10
as in algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pipeline.gan import convolutional, game
from pipeline.gan.convolutional import Discriminator
from pipeline.gan.family import ImageSpec


@dataclass(frozen=True, kw_only=True)
class Config(convolutional.Config):
    """`families.wgan_gp` of params.yaml."""

    learning_rate: float = 1e-4
    beta2: float = 0.9
    fall_from: float = 0.0  # the rate falls all the way, as in the paper's runs on CIFAR-10
    objective: Literal["wasserstein"] = "wasserstein"
    discriminator_steps: int = 5
    gradient_penalty: float = 10.0
    penalty_every: int = 1
    normalization: Literal["none", "layer"] = "none"  # in the critic

    def __post_init__(self) -> None:
        if not self.gradient_penalty:
            raise ValueError("gradient_penalty is 0; needed above 0: it is what makes this family")
        super().__post_init__()


Generator = convolutional.Generator


def _layer_normalization(channels: int) -> nn.Module:
    """Over all maps of an image, with a gain and a bias per channel."""
    return nn.GroupNorm(1, channels)


class Family(game.Family):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        normalization = _layer_normalization if config.normalization == "layer" else None
        super().__init__(config, Generator(config, spec), Discriminator(config, spec, normalization))
