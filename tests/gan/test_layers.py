"""Shared layers against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from pipeline.gan.batches import StepDraws
from pipeline.gan.family import ImageSpec
from pipeline.gan.layers import (
    ConditionalBatchNorm2d,
    LabelJoin,
    ProjectionScore,
    SpectralNorm,
    ToMaps,
    ToVectors,
    channels_by_size,
    dropout,
)


def test_projection_is_the_linear_score_and_the_product_with_the_class_vector() -> None:
    score = ProjectionScore(5, classes=3).double()
    features, labels = torch.randn(4, 5, dtype=torch.float64), torch.tensor([2, 0, 2, 1])
    assert score.embedding is not None
    for i, label in enumerate(labels):
        vector = score.linear.weight[0] + score.embedding.weight[label]
        torch.testing.assert_close(score(features, labels)[i], vector @ features[i] + score.linear.bias[0])


def test_a_label_is_joined_as_its_embedding() -> None:
    join = LabelJoin(5, classes=3, embedding_size=2)
    joined = join(torch.zeros(4, 5), torch.tensor([2, 0, 2, 1]))
    assert joined.shape == (4, join.size) == (4, 7)
    assert torch.equal(joined[0], joined[2])
    assert not torch.equal(joined[0], joined[1])


def test_without_classes_labels_change_nothing() -> None:
    none = torch.full((4,), -1)
    vectors = torch.randn(4, 5)
    assert torch.equal(LabelJoin(5, classes=0, embedding_size=2)(vectors, none), vectors)
    assert ProjectionScore(5, classes=0)(vectors, none).shape == (4,)


def test_scores_are_made_in_the_precision_of_the_weights_under_autocast_too() -> None:
    score, labels = ProjectionScore(64, classes=3), torch.tensor([2, 0])
    features = torch.randn(2, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        scores = score(features, labels)
    assert torch.equal(scores, score(features.float(), labels))


def test_conditional_batch_norm_is_batch_norm_with_the_gain_and_bias_of_each_label() -> None:
    layer = ConditionalBatchNorm2d(3, classes=2)
    maps, labels = torch.randn(4, 3, 5, 5), torch.tensor([1, 0, 0, 1])
    normalized = (maps - maps.mean((0, 2, 3), keepdim=True)) / maps.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(layer(maps, labels), normalized, rtol=1e-4, atol=1e-4)
    assert layer.gain is not None
    assert layer.bias is not None
    nn.init.normal_(layer.gain.weight)
    nn.init.normal_(layer.bias.weight)
    for made, of, label in zip(layer(maps, labels), normalized, labels, strict=True):
        gain, bias = layer.gain.weight[label, :, None, None], layer.bias.weight[label, :, None, None]
        torch.testing.assert_close(made, gain * of + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [nn.Linear(20, 30), nn.Conv2d(4, 6, 3), nn.Embedding(5, 8)])
def test_spectral_norm_divides_by_the_largest_value_of_the_svd(layer: nn.Module) -> None:
    layer = layer.double()
    original: torch.Tensor = layer.weight.detach().clone()  # type: ignore[operator]
    parametrize.register_parametrization(layer, "weight", SpectralNorm(original))
    for _ in range(2000):  # each look at the weight is a power iteration
        normalized = layer.weight
    largest = torch.linalg.svdvals(original.flatten(1))[0]
    torch.testing.assert_close(normalized, original / largest)


def test_one_power_iteration_a_pass_follows_a_weight_that_moves() -> None:
    linear = nn.Linear(20, 30).double()
    parametrize.register_parametrization(linear, "weight", SpectralNorm(linear.weight))
    original: torch.Tensor = linear.parametrizations.weight.original  # type: ignore[union-attr,assignment]
    for step in range(200):
        with torch.no_grad():
            original += torch.randn(30, 20, generator=torch.Generator().manual_seed(step)).double() * 0.002
        assert torch.linalg.matrix_norm(linear.weight.detach(), 2).item() == pytest.approx(1, rel=0.1)


def test_spectral_norm_has_the_gradient_of_dividing_by_the_singular_value() -> None:
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    norm = SpectralNorm(weight).eval()
    exact_left, _, _ = torch.linalg.svd(weight.detach())
    norm.left = exact_left[:, 0]
    probe = torch.randn(5, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((norm(weight) * probe).sum(), weight)
    (exact,) = torch.autograd.grad((weight / torch.linalg.matrix_norm(weight, 2) * probe).sum(), weight)
    torch.testing.assert_close(gradient, exact)


def test_dropout_silences_its_share_and_keeps_the_mean() -> None:
    units = torch.ones(2000, 50)
    left = dropout(units, 0.3, StepDraws(torch.Generator().manual_seed(0), 2000))
    assert left.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert left.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout(units, 0, StepDraws(torch.Generator(), 2000)), units)


def test_vectors_and_maps_turn_into_each_other_without_a_copy() -> None:
    vectors = torch.randn(2, 4 * 4 * 3)
    maps = ToMaps(3, 4)(vectors)
    assert maps.shape == (2, 3, 4, 4)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    back = ToVectors()(maps)
    assert torch.equal(back, vectors)
    assert maps.data_ptr() == back.data_ptr() == vectors.data_ptr()


def test_channels_double_down_to_4x4_up_to_their_bound() -> None:
    def channels(size: int) -> list[int]:
        return channels_by_size(ImageSpec(channels=3, image_size=size, classes=2), 16, 100)

    assert channels(8) == [32, 16]
    assert channels(64) == [100, 100, 64, 32, 16]
    with pytest.raises(ValueError, match="96×96; needed a power of two from 8 to 256"):
        channels(96)
