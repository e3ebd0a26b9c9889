"""Deep convolutional GAN (Radford, Metz & Chintala 2015, arXiv 1511.06434): the first that scaled to photographs.

New: networks of convolutions alone, in which strides take the place of pooling, batch normalization in both but for the
layers that touch pixels, ReLU in the generator and leaky ReLU in the discriminator (section 3); weights begun as
N(0, 0.02) and Adam with a β1 of 0.5 (section 4). The networks stand in pipeline/gan/convolutional.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pipeline.gan import convolutional, game
from pipeline.gan.convolutional import Discriminator
from pipeline.gan.family import ImageSpec


@dataclass(frozen=True, kw_only=True)
class Config(convolutional.Config):
    """`families.dcgan` of params.yaml."""

    learning_rate: float = 2e-4  # this and the betas as in the paper
    beta1: float = 0.5
    beta2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_penalty:
            raise ValueError(
                f"gradient_penalty is {self.gradient_penalty}; needed 0 with batch normalization in the discriminator, "
                "which makes a score depend on the other images too; wgan_gp has none"
            )


Generator = convolutional.Generator


class Family(game.Family):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config, Generator(config, spec), Discriminator(config, spec, nn.BatchNorm2d))
