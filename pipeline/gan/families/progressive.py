"""Progressive growing of GANs (Karras et al. 2018, arXiv 1710.10196).

New: both networks begin with images of 4×4 and grow by a layer whenever the size is doubled, the new layers faded in
(section 2), so that what is coarse is learned first and cheaply; a discriminator that sees how much the images of a
batch differ (3); weights scaled while running for an equal pace of learning (4.1); and each pixel's vector normalized
in the generator in place of batch normalization (4.2). The loss is that of WGAN-GP with a term that keeps the critic's
scores near zero (appendix A). Labels go in with the latent, and into the critic by projection.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gan import family, game, objectives, schedules
from pipeline.gan.batches import Batch, Draws
from pipeline.gan.equalized import (
    LEAKY_GAIN,
    EqualizedConv2d,
    EqualizedLinear,
    EqualizedScore,
    pixel_norm,
    with_deviation,
)
from pipeline.gan.family import ImageSpec, Progress, at_least
from pipeline.gan.layers import LabelJoin, NoiseGenerator, ToMaps, ToVectors, channels_by_size


@dataclass(frozen=True, kw_only=True)
class Config(game.Config):
    """`families.progressive` of params.yaml."""

    objective: objectives.Name = "wasserstein"
    latent_size: int = 64
    width: int = 16  # channels at the image's size; twice as many at each smaller size, at most max_width
    max_width: int = 128
    growth: float = 0.5  # the share of the run by whose end the networks have grown to the image's size
    drift: float = 1e-3  # the weight of the squared scores of real images
    gradient_penalty: float = 10.0
    penalty_every: int = 1
    deviation_group: int = 4  # images whose deviation the discriminator sees
    precision: family.Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, width=1, max_width=1, growth=1e-9, drift=0, deviation_group=1)
        if self.growth >= 1:
            raise ValueError(f"growth is {self.growth}; needed below 1, it is a share of the run")


class Growth(nn.Module):
    """How far the networks have grown: level 0 is 4×4, each more is twice the size, fractions are fading in.

    A copy of a generator, such as the averaged one, shares it, and grows with it. It is saved with the weights, not as
    a buffer, since it is a number of the host and no average of it would be meaningful.
    """

    def __init__(self) -> None:
        super().__init__()
        self.level = 0.0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.level, dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        self.level = float(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Growth:
        return self

    @property
    def newest(self) -> int:
        """The highest level that takes part."""
        return math.ceil(self.level)

    @property
    def fade(self) -> float:
        """The weight of the newest level against the one before, in (0, 1]."""
        return 1 - (self.newest - self.level)


def _leaky(features: Tensor) -> Tensor:
    return F.leaky_relu(features, 0.2)


def _twice(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="nearest")


def _half(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 2)


class PixelNorm(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return pixel_norm(features)


def _convolutions(*channels: int, normalized: bool = False) -> nn.Sequential:
    """3×3 convolutions from each number of channels to the next."""
    made: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        made += [EqualizedConv2d(before, after, 3, gain=LEAKY_GAIN), nn.LeakyReLU(0.2)]
        if normalized:
            made.append(PixelNorm())
    return nn.Sequential(*made)


class Generator(NoiseGenerator):
    """Linear at the pixels: images may overshoot [-1, 1]."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config.latent_size, conditional=config.class_conditional)
        channels = channels_by_size(spec, config.width, config.max_width)
        self.growth = Growth()
        self.join = LabelJoin(config.latent_size, spec.classes if self.conditional else 0, config.latent_size)
        self.dense = nn.Sequential(
            EqualizedLinear(self.join.size, channels[0] * 4 * 4, gain=LEAKY_GAIN / 4), ToMaps(channels[0], 4)
        )
        self.blocks = nn.ModuleList([_convolutions(channels[0], channels[0], normalized=True)])
        for before, after in itertools.pairwise(channels):
            self.blocks.append(_convolutions(before, after, after, normalized=True))
        self.to_pixels = nn.ModuleList(EqualizedConv2d(count, spec.channels, 1) for count in channels)
        self.to(memory_format=torch.channels_last)

    def latents(self, draws: Draws) -> Tensor:
        """On the sphere, (B, latent_size)."""
        return pixel_norm(super().latents(draws))

    def sample_like(self, batch: Batch, spread: float = 1.0) -> Tensor:
        """At the size of the batch's images, which is not below the networks'."""
        images = super().sample_like(batch, spread)
        return F.interpolate(images, size=batch.images.shape[2:], mode="nearest")

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images of the size that the networks have grown to."""
        newest, fade = self.growth.newest, self.growth.fade
        features = pixel_norm(_leaky(self.dense(self.join(latents, labels))))
        features = before = self.blocks[0](features)
        for block in list(self.blocks)[1 : newest + 1]:
            before, features = features, block(_twice(features))
        images: Tensor = self.to_pixels[newest](features)
        return images if fade == 1 else torch.lerp(_twice(self.to_pixels[newest - 1](before)), images, fade)


class Discriminator(nn.Module):
    """The generator's mirror image, as grown as it is."""

    def __init__(self, config: Config, spec: ImageSpec, growth: Growth) -> None:
        super().__init__()
        channels = channels_by_size(spec, config.width, config.max_width)
        self.growth, self.deviation_group = growth, config.deviation_group
        self.from_pixels = nn.ModuleList(EqualizedConv2d(spec.channels, c, 1, gain=LEAKY_GAIN) for c in channels)
        self.blocks = nn.ModuleList([_convolutions(channels[0] + 1, channels[0])])
        for smaller, larger in itertools.pairwise(channels):
            self.blocks.append(_convolutions(larger, larger, smaller))
        self.dense = nn.Sequential(
            ToVectors(), EqualizedLinear(channels[0] * 4 * 4, channels[0], gain=LEAKY_GAIN), nn.LeakyReLU(0.2)
        )
        self.score = EqualizedScore(channels[0], spec.classes if config.class_conditional else 0)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        newest, fade = self.growth.newest, self.growth.fade
        features = _leaky(self.from_pixels[newest](images))
        for level in range(newest, 0, -1):
            features = _half(self.blocks[level](features))
            if level == newest and fade < 1:
                features = torch.lerp(_leaky(self.from_pixels[level - 1](_half(images))), features, fade)
        features = self.blocks[0](with_deviation(features, self.deviation_group))
        scores: Tensor = self.score(self.dense(features), labels)
        return scores


class Family(game.Family):
    config: Config
    generator: Generator

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        generator = Generator(config, spec)
        super().__init__(config, generator, Discriminator(config, spec, generator.growth))
        self.objective = objectives.with_drift(self.objective, config.drift)
        self.levels = len(generator.blocks)

    def prepare(self, progress: Progress) -> Hashable | None:
        growth = self.generator.growth
        growth.level = schedules.growth(
            progress.images_seen, progress.total_images, self.levels - 1, self.config.growth
        )
        return super().prepare(progress), growth.level

    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        growth, images = self.generator.growth, real.images
        for _ in range(self.levels - 1 - growth.newest):
            images = _half(images)
        if growth.fade < 1:
            images = torch.lerp(_twice(_half(images)), images, growth.fade)
        yield from super().losses(dataclasses.replace(real, images=images), progress)
