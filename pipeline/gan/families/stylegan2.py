"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), with what it took from StyleGAN (Karras et al. 2019, 1812.04948).

New in StyleGAN: the generator starts from a learned constant, and the latent, mapped to a style by a perceptron, only
says at each layer how strong each channel is; noise of every pixel adds what is random in a picture; styles of two
latents are mixed while training. New in StyleGAN2: the style scales a convolution's weights, whose output is brought
back to unit variance (demodulation, section 2.2); images are sums over sizes in the generator, and the discriminator
is residual (4.1), instead of growing; R1 and the path length penalty, which makes equal steps in style equal steps in
the picture (3.2), are lazy (3.1). For few images `transformations` adds adaptive discriminator augmentation.

`spread` is truncation: latents are normalized, so that what it widens or narrows is the styles about their mean
(StyleGAN, appendix B, ψ).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gan import family, game, penalties
from pipeline.gan.batches import Batch, Draws
from pipeline.gan.distributed import all_mean
from pipeline.gan.equalized import (
    LEAKY_GAIN,
    EqualizedConv2d,
    EqualizedLinear,
    EqualizedScore,
    pixel_norm,
    with_deviation,
)
from pipeline.gan.family import ImageSpec, Progress, at_least
from pipeline.gan.layers import LabelJoin, ToVectors, channels_by_size
from pipeline.gan.resampling import smoothing, upsample

_STYLE_MEMORY = 0.998  # of the mean style, a step
_LENGTH_MEMORY = 0.99  # of the mean path length, a step of its penalty


@dataclass(frozen=True, kw_only=True)
class Config(game.Config):
    """`families.stylegan2` of params.yaml."""

    learning_rate: float = 2e-3
    latent_size: int = 64
    style_size: int = 64
    mapping_layers: int = 4
    mapping_rate: float = 0.01  # the mapping's learning rate in proportion to all others
    width: int = 16  # channels at the image's size; twice as many at each smaller size, at most max_width
    max_width: int = 128
    style_mixing: float = 0.9  # the probability that an image has the styles of two latents
    r1_gamma: float = 0.1
    penalty_every: int = 16
    path_weight: float = 2.0
    path_every: int = 8  # generator steps; the weight makes up for the steps without
    deviation_group: int = 4  # images whose deviation the discriminator sees
    precision: family.Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, style_size=1, mapping_layers=1, mapping_rate=1e-9, width=1, max_width=1, style_mixing=0)
        at_least(self, path_weight=0, path_every=1, deviation_group=1)
        if self.style_mixing > 1:
            raise ValueError(f"style_mixing is {self.style_mixing}; needed at most 1, it is a probability")


def _leaky(features: Tensor) -> Tensor:
    return F.leaky_relu(features, 0.2) * LEAKY_GAIN


class Mapping(nn.Module):
    """Latents (B, Z) and labels (B,) to styles (B, W)."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.join = LabelJoin(config.latent_size, classes, config.latent_size)
        if self.join.embedding is not None:  # louder, and the images of a label come to look alike
            nn.init.normal_(self.join.embedding.weight, 0, classes**-0.5)
        sizes = [self.join.size, *[config.style_size] * config.mapping_layers]
        self.layers = nn.ModuleList(
            EqualizedLinear(*pair, rate=config.mapping_rate) for pair in itertools.pairwise(sizes)
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        styles: Tensor = self.join(pixel_norm(latents), labels)
        for layer in self.layers:
            styles = _leaky(layer(styles))
        return styles


class ModulatedConv2d(nn.Module):
    """Images (B, inputs, H, W) under styles (B, W) → (B, outputs, H, W), or twice that size, filtered, with `up`.

    Section 2.2: each image is convolved with weights of its own, w'_ijk = s_i·w_ijk, and w'' = w' / √(Σ_ik w'² + ε)
    with `demodulate`. Scaling the input by s and the output by the root is the same, without weights for each image.
    """

    smoothing: Tensor

    def __init__(
        self, inputs: int, outputs: int, size: int, style_size: int, *, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.style = EqualizedLinear(style_size, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.scale, self.up, self.demodulate = 1 / math.sqrt(inputs * size**2), up, demodulate
        self.register_buffer("smoothing", smoothing(size) * 4 if up else torch.empty(0), persistent=False)

    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        scales = self.style(styles)
        weight, size = self.weight * self.scale, self.weight.shape[-1]
        images = images * scales.to(images.dtype)[:, :, None, None]
        if self.up:
            kernel = (weight.flatten(2) @ self.smoothing).reshape(*weight.shape[:2], size + 3, size + 3)
            images = F.conv_transpose2d(images, kernel.transpose(0, 1), stride=2, padding=(size + 1) // 2)
        else:
            images = F.conv2d(images, weight, padding=size // 2)
        if not self.demodulate:
            return images
        with torch.autocast(images.device.type, enabled=False):
            squares = scales.to(weight.dtype).square() @ weight.square().sum((2, 3)).T
            return images * torch.rsqrt(squares + 1e-8).to(images.dtype)[:, :, None, None]


class StyledLayer(nn.Module):
    """A modulated 3×3 convolution, noise of one number a pixel, bias and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_size: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style_size, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, images: Tensor, styles: Tensor, draws: Draws) -> Tensor:
        images = self.conv(images, styles)
        noise = draws.normal(1, *images.shape[2:]) * self.noise_strength
        return _leaky(images + (noise + self.bias).to(images.dtype))


class ToPixels(nn.Module):
    """A modulated 1×1 convolution without demodulation, and bias."""

    def __init__(self, inputs: int, channels: int, style_size: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, channels, 1, style_size, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        pixels: Tensor = self.conv(images, styles)
        return pixels + self.bias


class Generator(family.Generator):
    """Linear at the pixels: images may overshoot [-1, 1]."""

    average_style: Tensor

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        self.conditional, self.latent_size = config.class_conditional, config.latent_size
        self.style_mixing = config.style_mixing
        channels = channels_by_size(spec, config.width, config.max_width)
        size = config.style_size
        self.mapping = Mapping(config, spec.classes if self.conditional else 0)
        self.constant = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.layers = nn.ModuleList([StyledLayer(channels[0], channels[0], size)])
        for before, after in itertools.pairwise(channels):
            self.layers += [StyledLayer(before, after, size, up=True), StyledLayer(after, after, size)]
        self.to_pixels = nn.ModuleList(ToPixels(count, spec.channels, size) for count in channels)
        self.styles_per_image = len(self.layers) + 1
        self.register_buffer("average_style", torch.zeros(size))
        self.to(memory_format=torch.channels_last)

    def sample_like(self, batch: Batch, spread: float = 1.0) -> Tensor:
        return self.synthesis(self.styles(batch, spread), batch.draws)

    def styles(self, batch: Batch, spread: float = 1.0) -> Tensor:
        """(B, layers, W): the same in all layers of an image, but mixed while training."""
        with torch.autocast(batch.labels.device.type, enabled=False):
            styles = self._mapped(batch)[:, None].expand(-1, self.styles_per_image, -1)
            if self.training and self.style_mixing:
                others = self._mapped(batch)[:, None]
                mixes, share = batch.draws.uniform(2, 1, 1).unbind(1)
                first = 1 + (share * (self.styles_per_image - 1)).floor()  # of the layers with the other style
                layers = torch.arange(self.styles_per_image, device=styles.device)[None, :, None]
                styles = torch.where((mixes < self.style_mixing) & (layers >= first), others, styles)
            return torch.lerp(self.average_style, styles, spread) if spread != 1 else styles

    def _mapped(self, batch: Batch) -> Tensor:
        styles: Tensor = self.mapping(batch.draws.normal(self.latent_size), batch.labels)
        if self.training:
            self.average_style.lerp_(all_mean(styles.detach().mean(0)), 1 - _STYLE_MEMORY)
        return styles

    def synthesis(self, styles: Tensor, draws: Draws) -> Tensor:
        """Images float (B, C, H, W) of styles (B, layers, W)."""
        of_layer = styles.unbind(1)
        features = self.layers[0](self.constant.expand(len(styles), -1, -1, -1), of_layer[0], draws)
        pixels: Tensor = self.to_pixels[0](features, of_layer[1])
        for level, to_pixels in enumerate(self.to_pixels[1:], 1):
            for number in (2 * level - 1, 2 * level):
                features = self.layers[number](features, of_layer[number], draws)
            pixels = upsample(pixels) + to_pixels(features, of_layer[2 * level + 1])
        return pixels


class Halving(nn.Module):
    """A residual block to half the size. Section 4.1."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = EqualizedConv2d(before, before, 3)
        self.second = EqualizedConv2d(before, after, 3, down=True)
        self.skip = EqualizedConv2d(before, after, 1, down=True)

    def forward(self, features: Tensor) -> Tensor:
        deep: Tensor = _leaky(self.second(_leaky(self.first(features))))
        out: Tensor = (deep + self.skip(features)) * math.sqrt(0.5)
        return out


class Discriminator(nn.Module):
    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        channels = channels_by_size(spec, config.width, config.max_width)[::-1]
        self.deviation_group = config.deviation_group
        self.from_pixels = EqualizedConv2d(spec.channels, channels[0], 1)
        self.blocks = nn.Sequential(*(Halving(*pair) for pair in itertools.pairwise(channels)))
        self.last = EqualizedConv2d(channels[-1] + 1, channels[-1], 3)
        self.dense = nn.Sequential(ToVectors(), EqualizedLinear(channels[-1] * 4 * 4, channels[-1]))
        self.score = EqualizedScore(channels[-1], spec.classes if config.class_conditional else 0)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.blocks(_leaky(self.from_pixels(images)))
        features = _leaky(self.last(with_deviation(features, self.deviation_group)))
        scores: Tensor = self.score(_leaky(self.dense(features)), labels)
        return scores


class Family(game.Family):
    config: Config
    generator: Generator
    mean_path_length: Tensor

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__(config, Generator(config, spec), Discriminator(config, spec))
        self.register_buffer("mean_path_length", torch.zeros(()))

    def prepare(self, progress: Progress) -> Hashable | None:
        return super().prepare(progress), self._path_weight(progress)

    def _path_weight(self, progress: Progress) -> float:
        """What the path penalty counts in this step of the generator."""
        config = self.config
        return config.path_weight * penalties.lazy(progress.step // config.discriminator_steps, config.path_every)

    def losses(self, real: Batch, progress: Progress) -> Iterator[tuple[str, Tensor]]:
        weight = self._path_weight(progress)
        for player, loss in super().losses(real, progress):
            if player == "generator" and weight:
                loss = loss + weight * self._path_penalty(real)
            yield player, loss

    def _path_penalty(self, real: Batch) -> Tensor:
        """E[(|Jᵀy| - a)²] with a the moving mean of the lengths. Section 3.2, equation 4."""
        styles = self.generator.styles(real)
        images = self.generator.synthesis(styles, real.draws)
        lengths = penalties.path_lengths(images, styles, real.draws.normal(*images.shape[1:]))
        self.mean_path_length.lerp_(all_mean(lengths.detach().mean()), 1 - _LENGTH_MEMORY)
        return (lengths - self.mean_path_length).square().mean()
