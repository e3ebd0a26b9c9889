"""Conditional GAN (Mirza & Osindero 2014, arXiv 1411.1784): images of a class that is asked for.

New: the label goes into both networks, so that the generator is told what to make and the discriminator what to
expect. It is embedded and joined to the latent in the generator; in the discriminator either joined to the image, as
in the paper (`conditioning: concatenation`), or by projection (Miyato & Koyama 2018, arXiv 1802.05637), which learns
faster. Both networks are multilayer perceptrons, as in the paper's experiment on MNIST.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pipeline.gan import game
from pipeline.gan.family import ImageSpec, at_least
from pipeline.gan.layers import LabelJoin, NoiseGenerator, ProjectionScore


@dataclass(frozen=True, kw_only=True)
class Config(game.Config):
    """`families.conditional` of params.yaml."""

    conditioning: Literal["concatenation", "projection"] = "projection"
    latent_size: int = 64
    embedding_size: int = 32  # of the label, where it is joined to something
    width: int = 256  # of the two hidden layers of each network
    r1_gamma: float = 0.1
    penalty_every: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, embedding_size=1, width=1)
        if not self.class_conditional:
            raise ValueError("class_conditional is False; needed True: labels are what this family adds to mlp")


class Generator(NoiseGenerator):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config.latent_size, conditional=True)
        self.join = LabelJoin(config.latent_size, spec.classes, config.embedding_size)
        self.layers = nn.Sequential(
            nn.Linear(self.join.size, config.width, bias=False),
            nn.BatchNorm1d(config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width, bias=False),
            nn.BatchNorm1d(config.width),
            nn.ReLU(),
            nn.Linear(config.width, spec.channels * spec.image_size**2),
            nn.Tanh(),
            nn.Unflatten(1, (spec.channels, spec.image_size, spec.image_size)),
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.layers(self.join(latents, labels))
        return images


class Discriminator(nn.Module):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        projects = config.conditioning == "projection"
        pixels = spec.channels * spec.image_size**2
        self.join = LabelJoin(pixels, 0 if projects else spec.classes, config.embedding_size)
        self.layers = nn.Sequential(
            nn.Linear(self.join.size, config.width),
            nn.LeakyReLU(0.2),
            nn.Linear(config.width, config.width),
            nn.LeakyReLU(0.2),
        )
        self.score = ProjectionScore(config.width, spec.classes if projects else 0)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        scores: Tensor = self.score(self.layers(self.join(images.flatten(1), labels)), labels)
        return scores


class Family(game.Family):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config, Generator(config, spec), Discriminator(config, spec))
