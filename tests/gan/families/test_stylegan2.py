"""What makes StyleGAN2 that family."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.gan import penalties
from pipeline.gan.batches import Batch, StepDraws
from pipeline.gan.families.stylegan2 import Config, Family, ModulatedConv2d
from pipeline.gan.family import ImageSpec, Progress

SPEC = ImageSpec(channels=1, image_size=16, classes=3)


def _family(**settings: float) -> Family:
    torch.manual_seed(0)
    return Family(Config(width=4, latent_size=8, style_size=8, **settings), SPEC)  # type: ignore[arg-type]


def _batch(count: int = 4, seed: int = 1) -> Batch:
    draws = StepDraws(torch.Generator().manual_seed(seed), count)
    return Batch(images=torch.rand(count, 1, 16, 16) * 2 - 1, labels=torch.arange(count) % 3, draws=draws)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_a_modulated_convolution_is_one_with_weights_of_its_own_for_each_image(up: bool, demodulate: bool) -> None:
    conv = ModulatedConv2d(3, 5, 3, 4, up=up, demodulate=demodulate).double()
    images, styles = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
    for image, style, made in zip(images, styles, conv(images, styles), strict=True):
        weight = conv.weight * conv.scale * conv.style(style)[:, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:  # between zeros, turned convolution, filter: Karras et al. 2020, appendix B
            between = F.conv_transpose2d(image[None], weight.transpose(0, 1), stride=2)
            expected = F.conv2d(between, torch.outer(line, line).expand(5, 1, 4, 4), padding=1, groups=5)
        else:
            expected = F.conv2d(image[None], weight, padding=1)
        torch.testing.assert_close(made, expected[0])


def test_demodulation_brings_unit_variance_back_whatever_the_style() -> None:
    conv = ModulatedConv2d(16, 32, 3, 8)
    styles = torch.randn(3, 8) * torch.tensor([[0.1], [1.0], [20.0]])
    made = conv(torch.randn(3, 16, 40, 40), styles)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(made.std((1, 2, 3)), torch.ones(3), rtol=0.1, atol=0)


def test_the_spread_of_styles_is_truncation() -> None:
    generator = _family().generator.eval()
    generator.average_style.copy_(torch.linspace(-1, 1, 8))
    whole, half, none = (generator.styles(_batch(), spread) for spread in (1.0, 0.5, 0.0))
    assert whole.std(0).min() > 0
    torch.testing.assert_close(half, (whole + generator.average_style) / 2)
    assert torch.equal(none, generator.average_style.expand_as(none))


def test_the_mean_style_is_followed_while_training_alone() -> None:
    generator = _family(style_mixing=0.0).generator
    styles = generator.styles(_batch())[:, 0]
    torch.testing.assert_close(generator.average_style, 0.002 * styles.mean(0))
    held = generator.eval().average_style.clone()
    generator.styles(_batch())
    assert torch.equal(generator.average_style, held)


def test_mixed_images_have_one_style_up_to_a_layer_and_another_from_there_on() -> None:
    generator = _family(style_mixing=0.9).generator
    with torch.no_grad():
        for layer in generator.mapping.layers:
            layer.bias.zero_()  # type: ignore[union-attr,operator]
    styles = generator.styles(_batch(3000))
    changes = (styles[:, 1:] != styles[:, :-1]).any(2)
    assert changes.sum(1).max() == 1
    assert changes.any(1).double().mean().item() == pytest.approx(0.9, abs=0.02)
    layers = changes.double().mean(0)
    torch.testing.assert_close(layers, torch.full_like(layers, 0.9 / len(layers)), rtol=0.15, atol=0)
    assert torch.equal(*generator.eval().styles(_batch())[:, [0, -1]].unbind(1))  # not in samples


def test_noise_of_its_own_for_each_image_acts_where_its_strength_is_not_0() -> None:
    generator = _family().generator.eval()
    styles = generator.styles(_batch(1)).expand(2, -1, -1)

    def made() -> Tensor:
        return generator.synthesis(styles, _batch(2).draws)

    assert torch.equal(*made())
    with torch.no_grad():
        generator.layers[-1].noise_strength.fill_(0.5)  # type: ignore[union-attr,operator]
    first, second = made()
    assert not torch.equal(first, second)
    assert torch.equal(made()[0], first)


def test_the_path_length_penalty_is_the_distance_from_the_mean_length() -> None:
    class Linear(torch.nn.Module):
        """x = A w: the length of A^T y has a closed form."""

        def styles(self, batch: Batch) -> Tensor:
            return torch.zeros(4, 2, 3, requires_grad=True)

        def synthesis(self, styles: Tensor, draws: StepDraws) -> Tensor:
            return (styles.sum(1) @ self.matrix.T).reshape(4, 1, 5, 5)

        matrix = torch.randn(25, 3, generator=torch.Generator().manual_seed(3))

    family = _family()
    family.generator = Linear()  # type: ignore[assignment]
    noise = _batch().draws.normal(1, 5, 5)
    lengths = (noise.reshape(4, 25) @ Linear.matrix / 5).norm(dim=1)
    for _ in range(2):
        family.mean_path_length.zero_()
        penalty = family._path_penalty(_batch())
        mean = lengths.mean() / 100
        torch.testing.assert_close(family.mean_path_length, mean)
        torch.testing.assert_close(penalty, (lengths - mean).square().mean())


def test_the_path_length_penalty_is_lazy_and_joins_the_generators_loss() -> None:
    def loss(step: int, weight: float) -> float:
        family = _family(path_weight=weight, path_every=4)
        progress = Progress(step=step, images_seen=4 * step, total_images=100)
        return dict(family.losses(_batch(), progress))["generator"].item()

    family, batch = _family(), _batch()
    list(family.losses(batch, Progress(step=1, images_seen=0, total_images=100)))  # the draws that come before
    penalty = family._path_penalty(batch).item()
    for step in range(6):
        expected = 4 * 3.0 * penalty if step % 4 == 0 else 0.0
        assert loss(step, 3.0) - loss(step, 0.0) == pytest.approx(expected, rel=1e-3)


def test_path_lengths_reach_all_layers_of_a_real_generator() -> None:
    generator = _family().generator
    styles = generator.styles(_batch())
    images = generator.synthesis(styles, _batch().draws)
    lengths = penalties.path_lengths(images, styles, torch.randn_like(images))
    assert lengths.shape == (4,)
    assert (lengths > 0).all()
    lengths.mean().backward()  # type: ignore[no-untyped-call]
    assert all(math.isfinite(p.grad.sum()) for p in generator.parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [8, 256])
def test_every_power_of_two_is_made_and_judged(size: int) -> None:
    config = Config(width=1, max_width=4, latent_size=4, style_size=4)
    family = Family(config, ImageSpec(channels=3, image_size=size, classes=2))
    none = torch.zeros(()).expand(4, 3, size, size)
    images = family.generator.sample_like(Batch(images=none, labels=torch.arange(4) % 2, draws=_batch().draws))
    assert images.shape == (4, 3, size, size)
    assert family.discriminator(images, torch.arange(4) % 2).shape == (4,)


@pytest.mark.parametrize(("name", "value"), [("style_mixing", 1.5), ("path_every", 0), ("deviation_group", 0)])
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}; needed at"):
        Config(**{name: value})  # type: ignore[arg-type]
