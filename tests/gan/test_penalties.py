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


def test_r2_asks_of_generated_images_what_r1_asks_of_real_ones() -> None:
    fakes = _images()
    penalty = penalties.r2(lambda images: images.square().flatten(1).sum(1) / 2, fakes)
    assert penalty.item() == pytest.approx(fakes.square().flatten(1).sum(1).mean().item() / 2, rel=1e-12)


def test_the_gradient_penalty_of_a_linear_critic_is_the_squared_distance_of_its_norm_from_1() -> None:
    weight = torch.linspace(-1, 2, 48, dtype=torch.float64)
    epsilon = torch.rand(5, 1, 1, 1, dtype=torch.float64)
    images = _images()
    penalty = penalties.gradient_penalty(lambda x: x.flatten(1) @ weight + 3, images, -images, epsilon)
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2, rel=1e-12)


def test_the_gradient_penalty_of_a_quadratic_critic_is_taken_at_each_images_own_place_between_real_and_fake() -> None:
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    real, fake = _images(), _images().flip(0)
    epsilon = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    penalty = penalties.gradient_penalty(
        lambda x: scale / 2 * x.square().flatten(1).sum(1), real, fake, epsilon[:, None, None, None]
    )
    norms = torch.stack([(e * r + (1 - e) * f).norm() for e, r, f in zip(epsilon, real, fake, strict=True)])
    assert penalty.item() == pytest.approx((1.5 * norms - 1).square().mean().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(penalty, scale)
    assert gradient.item() == pytest.approx((2 * (1.5 * norms - 1) * norms).mean().item(), rel=1e-12)


def test_the_gradient_penalty_of_a_flat_critic_is_1_and_pulls_nowhere() -> None:
    weight = torch.zeros(48, dtype=torch.float64, requires_grad=True)
    penalty = penalties.gradient_penalty(
        lambda x: x.flatten(1) @ weight, _images(), _images(), torch.full((5, 1, 1, 1), 0.5, dtype=torch.float64)
    )
    assert penalty.item() == 1
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert torch.equal(gradient, torch.zeros_like(weight))


@pytest.mark.parametrize("layers", [1, 3])
def test_path_lengths_of_a_linear_generator_are_the_norms_of_its_transposed_map(layers: int) -> None:
    random = torch.Generator().manual_seed(2)
    maps = torch.randn(layers, 6, 48, generator=random, dtype=torch.float64, requires_grad=True)
    styles = torch.randn(5, layers, 6, generator=random, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(5, 3, 4, 4, generator=random, dtype=torch.float64)
    images = torch.einsum("bls,lsp->bp", styles, maps).view(5, 3, 4, 4)
    lengths = penalties.path_lengths(images, styles, noise)
    projected = torch.einsum("lsp,bp->bls", maps, noise.flatten(1)) / 4  # 4 is the root of 4×4 pixels
    torch.testing.assert_close(lengths, projected.square().sum(2).mean(1).sqrt())
    (gradient,) = torch.autograd.grad(lengths.sum(), maps)
    assert (gradient != 0).any()


def test_path_lengths_of_one_style_per_image() -> None:
    matrix = torch.randn(6, 48, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    styles, noise = torch.ones(5, 6, dtype=torch.float64, requires_grad=True), _images()
    lengths = penalties.path_lengths((styles @ matrix).view(5, 3, 4, 4), styles, noise)
    torch.testing.assert_close(lengths, (noise.flatten(1) @ matrix.T).norm(dim=1) / 4)


def test_a_lazy_penalty_has_the_same_weight_over_time() -> None:
    assert [penalties.lazy(step, 4) for step in range(6)] == [4, 0, 0, 0, 4, 0]
    assert sum(penalties.lazy(step, 16) for step in range(160)) == 160
