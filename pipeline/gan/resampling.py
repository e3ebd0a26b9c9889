"""Twice and half the size with the filter [1, 3, 3, 1], which is bilinear interpolation and its mirror image.

Karras et al. 2019 (StyleGAN), section 2 and Zhang 2019, arXiv 1904.11486: what is resampled without a filter aliases.
What lies outside an image counts as 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(images: Tensor) -> Tensor:
    """Images (B, C, H, W) at twice the size."""
    return _blur(F.interpolate(images, scale_factor=2, mode="nearest"))


def downsample(images: Tensor) -> Tensor:
    """Images (B, C, H, W) at half the size."""
    return F.avg_pool2d(_blur(images), 2)


def _blur(images: Tensor) -> Tensor:
    """By [1, 2, 1] / 4 along both axes: with the [1, 1] of a doubled or averaged pixel that is [1, 3, 3, 1]."""
    channels = images.shape[1]
    line = torch.linspace(-1, 1, 3, dtype=images.dtype, device=images.device).abs().mul(-0.25).add(0.5)
    return F.conv2d(images, torch.outer(line, line).expand(channels, 1, 3, 3), padding=1, groups=channels)


def smoothing(size: int) -> Tensor:
    """The matrix (size², (size + 3)²) that convolves flattened kernels of size × size with [1, 3, 3, 1] / 8 both ways.

    A convolution of stride 2 with such a kernel is the filter followed by the convolution, in one step.
    """
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    each = torch.eye(size**2).reshape(-1, 1, size, size)
    return F.conv2d(each, torch.outer(line, line)[None, None], padding=3).flatten(1)
