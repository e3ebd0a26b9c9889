"""Layers with equalized learning rate, pixel norm and minibatch deviation against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.gan.equalized import EqualizedConv2d, EqualizedLinear, EqualizedScore, pixel_norm, with_deviation


@pytest.mark.parametrize(
    ("layer", "fan_in", "shape"),
    [(EqualizedLinear(300, 400), 300, (64, 300)), (EqualizedConv2d(50, 400, 3, gain=2.0), 9 * 50 / 4, (4, 50, 9, 9))],
)
def test_weights_begin_as_unit_normal_and_act_as_if_drawn_by_fan_in(
    layer: nn.Module, fan_in: float, shape: tuple[int, ...]
) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    assert weight.std().item() == pytest.approx(1, rel=0.02)
    outputs: Tensor = layer(torch.randn(shape))
    center = outputs if outputs.ndim == 2 else outputs[:, :, 1:-1, 1:-1]
    assert center.std().item() == pytest.approx(math.sqrt(weight[0].numel() / fan_in), rel=0.05)


def test_a_layer_of_any_fan_in_or_rate_moves_in_proportion_to_its_scale() -> None:
    """One step of Adam changes each weight by the learning rate, and the layer's action by that times its scale."""
    for inputs, rate in ((4, 1.0), (400, 1.0), (400, 0.01)):
        layer = EqualizedLinear(inputs, 3, rate=rate)
        begun = F.linear(torch.eye(inputs), layer.weight * layer.scale).detach()
        assert begun.std().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.5)  # whatever the rate
        adam = torch.optim.Adam(layer.parameters(), lr=0.1)
        layer(torch.rand(8, inputs)).sum().backward()
        adam.step()
        moved = (F.linear(torch.eye(inputs), layer.weight * layer.scale) - begun).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * rate / math.sqrt(inputs)), rtol=1e-3, atol=1e-6)


def test_going_down_is_the_filter_and_then_the_convolution() -> None:
    for size in (1, 3):
        layer = EqualizedConv2d(2, 3, size, down=True).double()
        images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
        line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
        filter_ = torch.outer(line, line).expand(2, 1, 4, 4)
        pad = size // 2 + 1
        blurred = F.conv2d(F.pad(images, (pad, pad, pad, pad)), filter_, groups=2)
        expected = F.conv2d(blurred, layer.weight * layer.scale, layer.bias, stride=2)
        assert expected.shape == (2, 3, 4, 4)
        torch.testing.assert_close(layer(images), expected)


def test_pixel_norm_brings_the_mean_square_of_each_vector_to_1() -> None:
    features = torch.randn(2, 5, 3, 3) * 7
    normed = pixel_norm(features)
    torch.testing.assert_close(normed.square().mean(1), torch.ones(2, 3, 3))
    torch.testing.assert_close(F.cosine_similarity(normed, features), torch.ones(2, 3, 3))
    assert torch.equal(pixel_norm(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_deviation_is_that_of_each_run_of_images_meaned() -> None:
    features = torch.randn(6, 2, 3, 3)
    joined = with_deviation(features, 3)
    assert torch.equal(joined[:, :2], features)
    for group in (slice(0, 3), slice(3, 6)):
        deviation = features[group].numpy().std(0).mean()  # of the population
        torch.testing.assert_close(joined[group, 2], torch.full((3, 3, 3), float(deviation)))


def test_equal_images_have_no_deviation_and_finite_gradients() -> None:
    features = torch.ones(4, 2, 2, 2, requires_grad=True)
    deviation = with_deviation(features, 4)[:, 2]
    assert deviation.max() < 1e-3
    (gradient,) = torch.autograd.grad(deviation.sum(), features)
    assert gradient.isfinite().all()


def test_uneven_groups_are_refused_by_the_settings_names() -> None:
    with pytest.raises(UserError, match=r"^train\.batch_size .* 6 images; needed a multiple of deviation_group, 4$"):
        with_deviation(torch.zeros(6, 1, 2, 2), 4)


def test_the_score_is_a_linear_one_and_one_of_the_label() -> None:
    score = EqualizedScore(100, 3)
    assert score.embedding is not None
    features, labels = torch.randn(50, 100), torch.arange(50) % 3
    with torch.no_grad():
        plain = features @ score.linear.weight[0] / 10
        expected = plain + (features * score.embedding.weight[labels]).sum(1) / 10
    torch.testing.assert_close(score(features, labels), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert score(features.bfloat16(), labels).dtype == torch.float32
