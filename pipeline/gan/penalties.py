"""What keeps a discriminator smooth: pure functions of a network and images, to be added to its loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def r1(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """E[|∇D(x)|²] / 2 over real images: Mescheder et al. 2018, equation 9, to be multiplied by γ.

    `discriminator` gives scores (B,) for images (B, C, H, W), each score a function of its own image.
    """
    images = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / 2


def lazy(step: int, every: int) -> int:
    """How often a penalty counts in this step: `every` times once in so many steps, else 0.

    Karras et al. 2020 (StyleGAN2), section 3.1: the weight makes up for the steps without it.
    """
    return every if step % every == 0 else 0
