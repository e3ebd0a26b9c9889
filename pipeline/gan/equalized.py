"""Layers of Karras et al. 2018 (progressive growing, arXiv 1710.10196) that StyleGAN2 kept.

Equalized learning rate (section 4.1): weights begin as N(0, 1) and are scaled to √(1 / fan-in) while running, so that
Adam, whose steps do not know a weight's scale, moves all of them at one pace.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.gan.resampling import smoothing

LEAKY_GAIN = math.sqrt(2)  # keeps the variance through a leaky ReLU, about


class EqualizedLinear(nn.Module):
    """(…, inputs) → (…, outputs). `rate` is the learning rate of this layer in proportion to all others."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate * gain / math.sqrt(inputs), rate

    def forward(self, vectors: Tensor) -> Tensor:
        return F.linear(vectors, self.weight * self.scale, self.bias * self.rate)


class EqualizedConv2d(nn.Module):
    """(B, inputs, H, W) → (B, outputs, H, W), or half that size, filtered, with `down`. `size` of the kernel is odd."""

    smoothing: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, gain: float = 1.0, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.down = gain / math.sqrt(inputs * size**2), down
        self.register_buffer("smoothing", smoothing(size) if down else torch.empty(0), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        size = self.weight.shape[-1]
        if not self.down:
            return F.conv2d(images, self.weight * self.scale, self.bias, padding=size // 2)
        weight = (self.weight.flatten(2) @ (self.smoothing * self.scale)).reshape(
            *self.weight.shape[:2], size + 3, size + 3
        )
        return F.conv2d(images, weight, self.bias, stride=2, padding=(size + 1) // 2)


def pixel_norm(features: Tensor) -> Tensor:
    """Each pixel's vector along axis 1 brought to the mean square 1. Section 4.2; also of latents (B, D)."""
    return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-8)


def with_deviation(features: Tensor, group: int) -> Tensor:
    """Features (B, C, H, W) with one more channel: how much the images of each group differ. Section 3.

    The standard deviation over the `group` images that follow one another, averaged over channels and pixels: what a
    discriminator needs to see that a generator repeats itself. Raises UserError when groups do not come out even.
    """
    count, _, height, width = features.shape
    if count % group:
        raise UserError(
            f"train.batch_size gives each process {count} images; needed a multiple of deviation_group, {group}"
        )
    grouped = features.to(torch.get_default_dtype()).reshape(-1, group, *features.shape[1:])
    deviation = (grouped.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    channel = deviation.repeat_interleave(group)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([features, channel.to(features.dtype)], 1)


class EqualizedScore(nn.Module):
    """Scores (B,) by projection, as `layers.ProjectionScore`, of weights with equalized learning rate."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = EqualizedLinear(features, 1)
        self.embedding = nn.Embedding(classes, features) if classes else None  # begins as N(0, 1)
        self.scale = 1 / math.sqrt(features)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.linear.weight.dtype)
            scores: Tensor = self.linear(features).squeeze(1)
            if self.embedding is not None:
                scores = scores + (self.embedding(labels) * features).sum(1) * self.scale
            return scores
