"""The networks of DCGAN (Radford, Metz & Chintala 2015, arXiv 1511.06434), which later families took for other games.

Strided and transposed 4×4 convolutions in place of pooling, ReLU in the generator and leaky ReLU in the discriminator.
A label goes into the generator with the latent and into the discriminator by projection (Miyato & Koyama 2018).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.gan import family, game
from pipeline.gan.family import ImageSpec, at_least
from pipeline.gan.layers import LabelJoin, NoiseGenerator, ProjectionScore, ToMaps, ToVectors, doublings


@dataclass(frozen=True, kw_only=True)
class Config(game.Config):
    """What these networks can be told."""

    embedding_size: int = 32  # of the label, where it is joined to the latent
    width: int = 64  # channels at half the image's size; twice as many at each smaller size, at most 8 times
    precision: family.Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, embedding_size=1, width=1)


def _channels(config: Config, spec: ImageSpec) -> list[int]:
    """Channels at each size from the smallest (4×4, or 2×2 for images of 8×8) to half the image's size."""
    return [config.width * min(8, 2**level) for level in reversed(range(max(2, doublings(spec))))]


class Generator(NoiseGenerator):
    """Batch normalization everywhere but at the pixels; weights begin as N(0, 0.02)."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config.latent_size, conditional=config.class_conditional)
        channels = _channels(config, spec)
        size = spec.image_size // 2 ** len(channels)
        self.join = LabelJoin(config.latent_size, spec.classes if self.conditional else 0, config.embedding_size)
        layers: list[nn.Module] = [
            nn.Linear(self.join.size, channels[0] * size**2, bias=False),
            ToMaps(channels[0], size),
        ]
        for before, after in itertools.pairwise(channels):
            layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(channels[-1]), nn.ReLU(), nn.ConvTranspose2d(channels[-1], spec.channels, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        _initialize(self)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.layers(self.join(latents, labels))
        return images


class Discriminator(nn.Module):
    """With a normalization (channels → module) after every convolution but the first, or none."""

    def __init__(self, config: Config, spec: ImageSpec, normalization: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        channels = _channels(config, spec)[::-1]
        size = spec.image_size // 2 ** len(channels)
        layers: list[nn.Module] = [nn.Conv2d(spec.channels, channels[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in itertools.pairwise(channels):
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=normalization is None))
            if normalization is not None:
                layers.append(normalization(after))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, ToVectors())
        self.score = ProjectionScore(channels[-1] * size**2, spec.classes if config.class_conditional else 0)
        _initialize(self)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        scores: Tensor = self.score(self.layers(images), labels)
        return scores


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, ProjectionScore) and module.embedding is not None:
            nn.init.normal_(module.embedding.weight, 0, 0.02)  # louder, and the generator heeds nothing but the label
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
    network.to(memory_format=torch.channels_last)
