"""R3GAN (Huang, Gokaslan, Kuleshov & Tompkin 2024, arXiv 2501.05441): a modern baseline without tricks.

New: the relativistic pairing loss, for which a fake need only look more real than the real image beside it, and which
therefore leaves no mode out; R1 and R2 together, without which it does not converge (sections 2 and 3). With such a
loss most of what StyleGAN2 had gathered goes: no mapping, styles or noise, no minibatch deviation, mixing, path length
or lazy penalties. What stays is a plain residual network, the same in the generator and in the discriminator (section
4): blocks of 1×1, grouped 3×3 and 1×1 convolution around twice the channels, no normalization but an initialization
that starts each block as the identity (Zhang et al. 2019, Fixup, arXiv 1901.09321), bilinear resampling between the
blocks and a learned 4×4 basis where vectors become images.

Its schedules (appendix) are half cosines over the first `burn_in` of the run: learning rate, γ and the probability of
augmentation, and Adam's β2. The averaged generator's half-life grows with the images seen (`ema_ramp`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gan import family, game, objectives, schedules
from pipeline.gan.batches import Batch
from pipeline.gan.family import ImageSpec, Progress, at_least
from pipeline.gan.layers import LabelJoin, NoiseGenerator, ProjectionScore, ToVectors, channels_by_size
from pipeline.gan.resampling import downsample, upsample

_GROUP = 16  # channels of a group
_LEAKY_GAIN = math.sqrt(2 / (1 + 0.2**2))  # of leaky ReLU, He et al. 2015


@dataclass(frozen=True, kw_only=True)
class Config(game.Config):
    """`families.r3gan` of params.yaml."""

    learning_rate: float = 2e-4
    final_learning_rate: float = 5e-5
    first_beta2: float = 0.9  # and beta2 in the end
    burn_in: float = 0.5  # the share of the run over which all this changes
    final_gamma: float = 0.1  # in proportion to r1_gamma and r2_gamma
    objective: objectives.Name = "relativistic"
    latent_size: int = 64
    width: int = 16  # channels at the image's size; twice as many at each smaller size, at most max_width
    max_width: int = 128
    blocks: int = 2  # at each size
    r1_gamma: float = 0.05
    r2_gamma: float = 0.05
    penalty_every: int = 1
    precision: family.Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, final_learning_rate=0, first_beta2=0, burn_in=1e-9, final_gamma=0, blocks=1)
        for name in ("width", "max_width"):
            if getattr(self, name) < 1 or getattr(self, name) % (_GROUP // 2):
                raise ValueError(f"{name} is {getattr(self, name)}; needed a multiple of {_GROUP // 2}")
        for name in ("first_beta2", "burn_in"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed at most 1")


def _drawn(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> Any:
    """The layer with weights N(0, gain² / fan-in) and biases 0."""
    nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """x + f(x), where f begins as 0 and its inner layers are drawn smaller the more blocks there are. Section 4.2."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        inner, gain = 2 * channels, _LEAKY_GAIN * blocks ** (-1 / 4)  # Fixup: L^(-1 / (2m - 2)) of m = 3 layers
        self.expand = _drawn(nn.Conv2d(channels, inner, 1), gain)
        self.mix = _drawn(nn.Conv2d(inner, inner, 3, padding=1, groups=inner // _GROUP), gain)
        self.project = _drawn(nn.Conv2d(inner, channels, 1, bias=False), 0)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.expand(features), 0.2)
        hidden = F.leaky_relu(self.mix(hidden), 0.2)
        out: Tensor = features + self.project(hidden)
        return out


class Up(nn.Module):
    """To twice the size."""

    def forward(self, features: Tensor) -> Tensor:
        return upsample(features)


class Down(nn.Module):
    """To half the size."""

    def forward(self, features: Tensor) -> Tensor:
        return downsample(features)


def _joined(before: int, after: int) -> list[nn.Module]:
    return [] if before == after else [_drawn(nn.Conv2d(before, after, 1, bias=False))]


class Basis(nn.Module):
    """Vectors (B, inputs) to images (B, outputs, 4, 4): each channel a multiple of a learned 4×4 image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = _drawn(nn.Linear(inputs, outputs, bias=False))
        self.basis = nn.Parameter(torch.randn(outputs, 4, 4))

    def forward(self, vectors: Tensor) -> Tensor:
        images: Tensor = self.basis * self.linear(vectors)[:, :, None, None]
        return images


class Generator(NoiseGenerator):
    """Linear at the pixels: images may overshoot [-1, 1]."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config.latent_size, conditional=config.class_conditional)
        channels = channels_by_size(spec, config.width, config.max_width)
        total = config.blocks * len(channels)
        self.join = LabelJoin(config.latent_size, spec.classes if self.conditional else 0, config.latent_size)
        if self.join.embedding is not None:  # a layer like the others, whose input is one of so many
            nn.init.normal_(self.join.embedding.weight, 0, spec.classes**-0.5)
        layers: list[nn.Module] = [Basis(self.join.size, channels[0])]
        for before, after in itertools.pairwise([channels[0], *channels]):
            if len(layers) > 1:
                layers += [*_joined(before, after), Up()]
            layers += [Block(after, total) for _ in range(config.blocks)]
        self.layers = nn.Sequential(*layers, _drawn(nn.Conv2d(channels[-1], spec.channels, 1, bias=False)))
        self.to(memory_format=torch.channels_last)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.layers(self.join(latents, labels))
        return images


class Discriminator(nn.Module):
    """The generator's mirror image."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        channels = channels_by_size(spec, config.width, config.max_width)[::-1]
        total = config.blocks * len(channels)
        layers: list[nn.Module] = [_drawn(nn.Conv2d(spec.channels, channels[0], 1, bias=False))]
        for before, after in itertools.pairwise([channels[0], *channels]):
            if len(layers) > 1:
                layers += [Down(), *_joined(before, after)]
            layers += [Block(after, total) for _ in range(config.blocks)]
        last = channels[-1]
        basis = _drawn(nn.Conv2d(last, last, 4, groups=last, bias=False))
        self.layers = nn.Sequential(*layers, basis, ToVectors())
        self.score = ProjectionScore(last, spec.classes if config.class_conditional else 0)
        _drawn(self.score.linear)
        if self.score.embedding is not None:
            nn.init.normal_(self.score.embedding.weight, 0, last**-0.5)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        scores: Tensor = self.score(self.layers(images), labels)
        return scores


class Family(game.Family):
    config: Config
    gamma_share: Tensor  # of the penalties

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config, Generator(config, spec), Discriminator(config, spec))
        self.register_buffer("gamma_share", torch.ones(()), persistent=False)

    def prepare(self, progress: Progress) -> Hashable | None:
        if (most := self.config.transformation_probability) and self.config.transformations:
            self.strength.fill_(self._changed(progress, 0, most))
        self.gamma_share.fill_(self._changed(progress, 1, self.config.final_gamma))
        return super().prepare(progress)

    def penalty(self, images: Tensor, fakes: Tensor, real: Batch) -> Tensor:
        return self.gamma_share * super().penalty(images, fakes, real)

    def hyperparameters(self, player: str, progress: Progress) -> dict[str, Any]:
        config, set_to = self.config, super().hyperparameters(player, progress)
        fallen = self._changed(progress, 1, config.final_learning_rate / config.learning_rate)
        beta2 = self._changed(progress, config.first_beta2, config.beta2)
        return set_to | {"lr": set_to["lr"] * fallen, "betas": (config.beta1, beta2)}

    def _changed(self, progress: Progress, begin: float, end: float) -> float:
        return schedules.cosine(progress.images_seen, progress.total_images, begin, end, self.config.burn_in)
