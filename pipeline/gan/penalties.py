"""What keeps the players smooth: pure functions of a network and images, to be added to a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.gan.convolution import fast_penalties

Discriminator = Callable[[Tensor], Tensor]  # images (B, C, H, W) → scores (B,), each a function of its own image


def r1(discriminator: Discriminator, real: Tensor) -> Tensor:
    """E[|∇D(x)|²] / 2 over real images: Mescheder et al. 2018, equation 9, to be multiplied by γ."""
    return _gradients(discriminator, real).square().sum(1).mean() / 2


def r2(discriminator: Discriminator, fake: Tensor) -> Tensor:
    """E[|∇D(x)|²] / 2 over generated images: Mescheder et al. 2018, equation 10, to be multiplied by γ."""
    return r1(discriminator, fake)


def gradient_penalty(critic: Discriminator, real: Tensor, fake: Tensor, epsilon: Tensor) -> Tensor:
    """E[(|∇D(x̂)| - 1)²] between real and generated images: Gulrajani et al. 2017, equation 3, to be multiplied by λ.

    x̂ = ε·real + (1 - ε)·fake with one ε in [0, 1] per image: `epsilon` is (B, 1, 1, 1).
    """
    between = epsilon * real.detach() + (1 - epsilon) * fake.detach()
    norms: Tensor = torch.linalg.vector_norm(_gradients(critic, between), dim=1)
    return (norms - 1).square().mean()


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """|J(w)ᵀ y| of each image, (B,): Karras et al. 2020 (StyleGAN2), section 3.2 and equation 4.

    The generator's penalty is the mean square of the lengths' distance from their moving average. `images`
    (B, C, H, W) are a function of `styles`, (B, W) or (B, layers, W), over whose layers the squares are averaged;
    y is `noise`, standard normal (B, C, H, W), divided by the root of the pixels of a channel.
    """
    height, width = images.shape[2:]
    projected = (images * noise).sum() / (height * width) ** 0.5
    (gradient,) = torch.autograd.grad(projected, styles, create_graph=True)
    return gradient.square().sum(-1).view(len(styles), -1).mean(1).sqrt()


def lazy(step: int, every: int) -> int:
    """How often a penalty counts in this step: `every` times once in so many steps, else 0.

    Karras et al. 2020 (StyleGAN2), section 3.1: the weight makes up for the steps without it.
    """
    return every if step % every == 0 else 0


def _gradients(discriminator: Discriminator, images: Tensor) -> Tensor:
    """∇D(x) of each image, flat (B, C·H·W), itself differentiable."""
    images = images.detach().requires_grad_()
    with fast_penalties():
        scores = discriminator(images)
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.flatten(1)
