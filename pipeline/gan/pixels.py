"""Every image is uint8 at rest and float in [-1, 1] in a model; this module converts."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 of any shape to torch's default floating dtype in [-1, 1]."""
    return images.to(torch.get_default_dtype()).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] (what lies outside is clamped) to the nearest uint8."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
