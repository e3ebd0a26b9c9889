"""Generative adversarial nets (Goodfellow et al. 2014, arXiv 1406.2661): where it began.

New: a generator learns from nothing but the judgement of a second network, which learns to tell its images from real
ones. Both are multilayer perceptrons here, as in the paper's experiment on MNIST (section 5): latents uniform, a
generator of rectified linear units with a sigmoid at the pixels, a discriminator of maxout units (Goodfellow et al.
2013, arXiv 1302.4389) under dropout. They play for the value of equation 1 (`objective: minimax`), or the generator
maximizes log D(G(z)) for stronger gradients early on (section 3, `non_saturating`), with `discriminator_steps` (the
paper's k) to one of the generator. What later years found to help can be set: batch normalization in the generator,
leaky rectifiers in the discriminator, one-sided label smoothing, penalties.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pipeline.gan import game
from pipeline.gan.batches import Batch, Draws
from pipeline.gan.family import ImageSpec, at_least
from pipeline.gan.layers import LabelJoin, NoiseGenerator, ProjectionScore, dropout


@dataclass(frozen=True, kw_only=True)
class Config(game.Config):
    """`families.mlp` of params.yaml."""

    learning_rate: float = 2e-4
    beta1: float = 0.5
    objective: Literal["minimax", "non_saturating"] = "non_saturating"
    embedding_size: int = 32  # of the label, where it is joined to the latent
    generator_widths: tuple[int, ...] = (1200, 1200)  # of its hidden layers
    batch_normalization: bool = False  # in the generator's hidden layers
    discriminator_widths: tuple[int, ...] = (240, 240)
    discriminator_units: Literal["maxout", "leaky_relu"] = "maxout"
    dropout: float = 0.5  # the share of the discriminator's hidden units that is silent in each pass

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, embedding_size=1, dropout=0)
        if self.dropout >= 1:
            raise ValueError(f"dropout is {self.dropout}; needed below 1")
        for name in ("generator_widths", "discriminator_widths"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} is {list(widths)}; needed one or more, each at least 1")


class Generator(NoiseGenerator):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config.latent_size, conditional=config.class_conditional)
        self.join = LabelJoin(config.latent_size, spec.classes if self.conditional else 0, config.embedding_size)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([self.join.size, *config.generator_widths]):
            layers.append(nn.Linear(before, after, bias=not config.batch_normalization))
            if config.batch_normalization:
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(
            *layers,
            nn.Linear(config.generator_widths[-1], spec.channels * spec.image_size**2),
            nn.Tanh(),  # the sigmoid of pixels in [-1, 1]
            nn.Unflatten(1, (spec.channels, spec.image_size, spec.image_size)),
        )

    def latents(self, draws: Draws) -> Tensor:
        """Uniform with mean 0 and standard deviation 1, (B, latent_size)."""
        return (draws.uniform(self.latent_size) - 0.5) * 12**0.5

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.layers(self.join(latents, labels))
        return images


class Maxout(nn.Module):
    """Each unit is the largest of five linear ones: (B, before) → (B, after). Goodfellow et al. 2013, section 3."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after * 5)

    def forward(self, inputs: Tensor) -> Tensor:
        units: Tensor = self.linear(inputs).unflatten(1, (5, -1)).amax(1)
        return units


class Discriminator(nn.Module):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        self.dropout = config.dropout
        widths = [spec.channels * spec.image_size**2, *config.discriminator_widths]
        self.layers = nn.ModuleList(
            Maxout(before, after)
            if config.discriminator_units == "maxout"
            else nn.Sequential(nn.Linear(before, after), nn.LeakyReLU(0.2))
            for before, after in itertools.pairwise(widths)
        )
        self.score = ProjectionScore(widths[-1], spec.classes if config.class_conditional else 0)

    def forward(self, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        hidden = images.flatten(1)
        for layer in self.layers:
            hidden = dropout(layer(hidden), self.dropout, draws)
        scores: Tensor = self.score(hidden, labels)
        return scores


class Family(game.Family):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config, Generator(config, spec), Discriminator(config, spec))

    def score(self, images: Tensor, like: Batch) -> Tensor:
        scores: Tensor = self.discriminator(images, like.labels, like.draws)
        return scores
