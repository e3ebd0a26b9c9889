"""Differentiable augmentation for small data (Zhao et al. 2020, arXiv 2006.10738).

The same kind of change is made to real and to fake images before the discriminator sees them, in every step, so that
it cannot learn the training images by heart; gradients flow through to the generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.gan.batches import Draws

Policy = Literal["color", "translation", "cutout"]


def augment(images: Tensor, policies: Sequence[Policy], draws: Draws) -> Tensor:
    """Images (B, C, H, W) after each policy in turn, every image with random numbers of its own."""
    for policy in policies:
        images = _POLICIES[policy](images, draws)
    return images


def color(images: Tensor, draws: Draws) -> Tensor:
    """Brightness moved by up to ±0.5, saturation scaled by 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = draws.uniform(3, 1, 1, 1).unbind(1)
    images = images + (brightness - 0.5)
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * (saturation * 2)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: Tensor, draws: Draws) -> Tensor:
    """Moved by up to an eighth of the size each way; what comes in is 0, middle gray."""
    count, _, height, width = images.shape
    reach = (height + 4) // 8
    moves = (draws.uniform(2) * (2 * reach + 1)).long()  # 0 … 2·reach, of padded images
    rows = moves[:, 0, None] + torch.arange(height, device=images.device)
    columns = moves[:, 1, None] + torch.arange(width, device=images.device)
    padded = F.pad(images, (reach, reach, reach, reach))
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, draws: Draws) -> Tensor:
    """A square of half the size somewhere, also partly outside, becomes 0."""
    _, _, height, width = images.shape
    centers = draws.uniform(2)
    rows = (torch.arange(height, device=images.device) + 0.5 - centers[:, :1] * height).abs() < height / 4
    columns = (torch.arange(width, device=images.device) + 0.5 - centers[:, 1:] * width).abs() < width / 4
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


_POLICIES = {"color": color, "translation": translation, "cutout": cutout}
