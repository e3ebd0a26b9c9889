"""Spectrally normalized GAN (Miyato et al. 2018, arXiv 1802.05957): every layer of the discriminator 1-Lipschitz.

New: each weight of the discriminator is divided by its largest singular value, which costs one power iteration a step,
so its slope is bound everywhere and not only where samples happen to lie. As in the paper's best results the networks
are residual (appendix B.4; of its two shapes that for larger images, whose channels double as the size halves), the
loss is the hinge (equations 16 and 17), Adam has no momentum, the learning rate falls all the way, and the
discriminator makes five steps. Labels go into the generator's batch normalization and into the
discriminator by projection, as in the same authors' next paper (Miyato & Koyama 2018, arXiv 1802.05637), and also into
the generator with the latent, as in BigGAN (Brock et al. 2019, arXiv 1809.11096): gains alone, which all begin as 1,
take many times as long to tell classes apart.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gan import family, game, objectives
from pipeline.gan.family import ImageSpec, at_least
from pipeline.gan.layers import (
    ConditionalBatchNorm2d,
    LabelJoin,
    NoiseGenerator,
    ProjectionScore,
    channels_by_size,
    normalize_spectrally,
)


@dataclass(frozen=True, kw_only=True)
class Config(game.Config):
    """`families.sngan` of params.yaml."""

    lipschitz: ClassVar[bool] = True

    learning_rate: float = 2e-4
    beta2: float = 0.9
    fall_from: float = 0.0
    latent_size: int = 128
    embedding_size: int = 32  # of the label, where it is joined to the latent
    objective: objectives.Name = "hinge"
    discriminator_steps: int = 5
    width: int = 64  # channels at the image's size; twice as many at each smaller size, at most max_width
    max_width: int = 512
    precision: family.Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, embedding_size=1, width=1, max_width=1)


class GeneratorBlock(nn.Module):
    """Maps (B, before, S, S) → (B, after, 2S, 2S). Its convolutions end in a normalization, which undoes any bias."""

    def __init__(self, before: int, after: int, classes: int) -> None:
        super().__init__()
        self.normalization1 = ConditionalBatchNorm2d(before, classes)
        self.convolution1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.normalization2 = ConditionalBatchNorm2d(after, classes)
        self.convolution2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        hidden = F.interpolate(F.relu(self.normalization1(maps, labels)), scale_factor=2)
        hidden = self.convolution1(hidden)
        hidden = self.convolution2(F.relu(self.normalization2(hidden, labels)))
        total: Tensor = hidden + F.interpolate(self.shortcut(maps), scale_factor=2)
        return total


class Generator(NoiseGenerator):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config.latent_size, conditional=config.class_conditional)
        classes = spec.classes if self.conditional else 0
        channels = channels_by_size(spec, config.width, config.max_width)
        self.join = LabelJoin(config.latent_size, classes, config.embedding_size)
        self.first = nn.Linear(self.join.size, channels[0] * 4 * 4)
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, after, classes) for before, after in itertools.pairwise(channels)
        )
        self.last = nn.Sequential(
            nn.BatchNorm2d(channels[-1]), nn.ReLU(), nn.Conv2d(channels[-1], spec.channels, 3, padding=1), nn.Tanh()
        )
        _initialize(self)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        maps = self.first(self.join(latents, labels)).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            maps = block(maps, labels)
        images: Tensor = self.last(maps)
        return images


class DiscriminatorBlock(nn.Module):
    """Maps (B, before, S, S) → (B, after, S, S), or half as large; the first block takes pixels as they are."""

    def __init__(self, before: int, after: int, *, halves: bool, first: bool = False) -> None:
        super().__init__()
        self.halves, self.first = halves, first
        self.convolution1 = nn.Conv2d(before, after, 3, padding=1)
        self.convolution2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if halves or before != after else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        hidden = self.convolution1(maps if self.first else F.relu(maps))
        hidden = self.convolution2(F.relu(hidden))
        if self.halves:
            hidden, maps = F.avg_pool2d(hidden, 2), F.avg_pool2d(maps, 2)
        total: Tensor = hidden + self.shortcut(maps)
        return total


class Discriminator(nn.Module):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        channels = channels_by_size(spec, config.width, config.max_width)[::-1]
        blocks = [
            DiscriminatorBlock(before, after, halves=True, first=number == 0)
            for number, (before, after) in enumerate(itertools.pairwise([spec.channels, *channels[:-1]]))
        ]
        blocks.append(DiscriminatorBlock(channels[-2], channels[-1], halves=False))
        self.blocks = nn.Sequential(*blocks, nn.ReLU())
        self.score = ProjectionScore(channels[-1], spec.classes if config.class_conditional else 0)
        _initialize(self)
        normalize_spectrally(self)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        scores: Tensor = self.score(self.blocks(images).sum((2, 3)), labels)
        return scores


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    network.to(memory_format=torch.channels_last)


class Family(game.Family):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config, Generator(config, spec), Discriminator(config, spec))
