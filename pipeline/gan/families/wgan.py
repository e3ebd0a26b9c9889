"""Wasserstein GAN (Arjovsky, Chintala & Bottou 2017, arXiv 1701.07875): a distance in place of a verdict.

New: the discriminator becomes a critic, whose scores are no probabilities. Over critics that are Lipschitz the largest
difference between its mean on real and on generated images is the Wasserstein distance, which has gradients where the
two do not overlap, and whose estimate (minus `discriminator_loss`) falls as the images get better. Algorithm 1: weights
clipped after each step keep the critic Lipschitz, it makes five steps for each of the generator, and both learn by
RMSprop, since with momentum training became unstable (section 3). The networks are those of DCGAN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.gan import convolutional, game
from pipeline.gan.batches import Batch
from pipeline.gan.convolutional import Discriminator
from pipeline.gan.family import ImageSpec, Progress, at_least


@dataclass(frozen=True, kw_only=True)
class Config(convolutional.Config):
    """`families.wgan` of params.yaml."""

    lipschitz: ClassVar[bool] = True

    learning_rate: float = 5e-5
    beta2: float = 0.99  # of the mean square in RMSprop
    objective: Literal["wasserstein"] = "wasserstein"
    discriminator_steps: int = 5
    clip: float = 0.01  # the critic's weights lie within ± this

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, clip=1e-9)
        if self.beta1:
            raise ValueError(f"beta1 is {self.beta1}; needed 0, since momentum makes a clipped critic unstable")
        if self.gradient_penalty:
            raise ValueError(
                f"gradient_penalty is {self.gradient_penalty}; needed 0 with clipped weights, which hold the critic's "
                "slope far below the 1 that the penalty asks for; wgan_gp clips nothing"
            )


Generator = convolutional.Generator


class Family(game.Family):
    config: Config

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config, Generator(config, spec), Discriminator(config, spec, nn.BatchNorm2d))

    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        for player, loss in super().losses(real, progress):
            yield player, loss
            if player == "discriminator":  # it has stepped by now
                with torch.no_grad():
                    for weight in self.discriminator.parameters():
                        weight.clamp_(-self.config.clip, self.config.clip)

    def optimizer(self, player: str) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.get_submodule(player).parameters(), alpha=self.config.beta2)
