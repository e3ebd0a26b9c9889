"""Penalties against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.gan import penalties


def _images() -> Tensor:
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_r1_of_a_linear_discriminator_is_half_its_squared_norm() -> None:
    weight = torch.linspace(-1, 2, 48, dtype=torch.float64)
    penalty = penalties.r1(lambda images: images.flatten(1) @ weight + 3, _images())
    assert penalty.item() == pytest.approx((weight @ weight).item() / 2, rel=1e-12)


def test_r1_of_a_quadratic_discriminator_and_its_gradient() -> None:
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    images = _images()
    penalty = penalties.r1(lambda images: scale / 2 * images.square().flatten(1).sum(1), images)
    mean_square = images.square().flatten(1).sum(1).mean().item()
    assert penalty.item() == pytest.approx(1.5**2 / 2 * mean_square, rel=1e-12)
    (gradient,) = torch.autograd.grad(penalty, scale)
    assert gradient.item() == pytest.approx(1.5 * mean_square, rel=1e-12)


def test_r1_leaves_the_images_as_they_were() -> None:
    images = _images()
    penalties.r1(lambda images: images.flatten(1).sum(1), images)
    assert not images.requires_grad


def test_a_lazy_penalty_has_the_same_weight_over_time() -> None:
    assert [penalties.lazy(step, 4) for step in range(6)] == [4, 0, 0, 0, 4, 0]
    assert sum(penalties.lazy(step, 16) for step in range(160)) == 160
