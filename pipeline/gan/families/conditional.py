"""Conditional GAN of multilayer perceptrons (Mirza & Osindero 2014, arXiv 1411.1784).

The label goes into both networks: embedded and joined to the latent in the generator; in the discriminator either
joined to the image, as in the paper, or by projection (Miyato & Koyama 2018, arXiv 1802.05637), which learns faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.gan import family, objectives, penalties
from pipeline.gan.batches import Batch
from pipeline.gan.diffaugment import Policy, augment
from pipeline.gan.family import ImageSpec, Progress, at_least
from pipeline.gan.layers import LabelJoin, NoiseGenerator, ProjectionScore


@dataclass(frozen=True, kw_only=True)
class Config(family.Config):
    """`families.conditional` of params.yaml."""

    conditioning: Literal["concatenation", "projection"] = "projection"
    objective: Literal["non_saturating", "hinge"] = "non_saturating"
    latent_size: int = 64
    embedding_size: int = 32  # of the label, where it is joined to something
    width: int = 256  # of the two hidden layers of each network
    r1_gamma: float = 0.1
    r1_every: int = 4  # steps
    augment: tuple[Policy, ...] = ()  # DiffAugment: color, translation, cutout

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, latent_size=1, embedding_size=1, width=1, r1_gamma=0, r1_every=1)


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


class Family(family.Family):
    config: Config

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config, spec)
        self.discriminator = Discriminator(config, spec)
        self.objective: objectives.Objective = getattr(objectives, config.objective)

    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        config = self.config
        fakes = augment(self.generator.sample_like(real), config.augment, real.draws)
        images = augment(real.images, config.augment, real.draws)
        both = torch.cat([images, fakes.detach()])
        real_scores, fake_scores = self.discriminator(both, real.labels.repeat(2)).chunk(2)
        loss = self.objective.discriminator(real_scores, fake_scores)
        if weight := config.r1_gamma * penalties.lazy(progress.step, config.r1_every):
            penalty = penalties.r1(lambda shown: self.discriminator(shown, real.labels), images)
            loss = loss + weight * penalty
        progress.charts["real_accuracy"] = (real_scores > 0).float().mean()
        progress.charts["fake_accuracy"] = (fake_scores < 0).float().mean()
        yield "discriminator", loss

        fake_scores = self.discriminator(fakes, real.labels)
        yield "generator", self.objective.generator(real_scores.detach(), fake_scores)
