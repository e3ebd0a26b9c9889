"""Adaptive augmentation: its rule in closed form, and each transformation against what it says of itself."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.gan.ada import Transformation, adapted, augment
from pipeline.gan.batches import StepDraws

ALL = get_args(Transformation)


def _draws(count: int, seed: int = 0) -> StepDraws:
    return StepDraws(torch.Generator().manual_seed(seed), count)


def _augment(images: Tensor, *allowed: Transformation, strength: float = 1.0) -> Tensor:
    return augment(images, allowed, torch.tensor(strength), _draws(len(images)))


def _changed(before: Tensor, after: Tensor) -> float:
    """The share of images that are not what they were."""
    return ((before - after).abs().amax((1, 2, 3)) > 1e-4).double().mean().item()


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_0_changes_no_bit(channels: int) -> None:
    images = torch.randn(64, channels, 9, 9)
    assert torch.equal(_augment(images, *ALL, strength=0.0), images)


@pytest.mark.parametrize("allowed", ALL)
def test_each_is_chosen_with_its_probability_and_is_differentiable(allowed: Transformation) -> None:
    images = torch.rand(3000, 3, 8, 8).requires_grad_()
    often, always = (_changed(images, _augment(images, allowed, strength=p)) for p in (0.3, 1.0))
    whole = {"flip": 1 / 2, "rotate90": 3 / 4}.get(allowed, 1.0)
    assert always == pytest.approx(whole, abs=0.03)
    alone = {  # translation, scaling and color are several, each with probability p
        "translation": 1 - 0.7 * (1 - 0.3 * 3 / 4),  # up to a pixel each way rounds to none half the time
        "scaling": 1 - 0.7**2,
        "color": 1 - 0.7**4 * (1 - 0.3 / 2),
    }
    assert often == pytest.approx(alone.get(allowed, 0.3 * whole), abs=0.03)
    (gradient,) = torch.autograd.grad(_augment(images, allowed).sum(), images)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_flips_and_quarter_turns_are_exact() -> None:
    images = torch.rand(200, 1, 6, 6)
    for allowed, made in (
        ("flip", [images, images.flip(3)]),
        ("rotate90", [images.rot90(turns, (2, 3)) for turns in range(4)]),
    ):
        changed = _augment(images, allowed)  # type: ignore[arg-type]
        near = torch.stack([(changed - known).abs().amax((1, 2, 3)) for known in made])
        assert near.amin(0).max() < 1e-5
        assert near.argmin(0).unique().numel() == len(made)


def test_moves_are_of_an_eighth_about_and_mirror_what_lies_outside() -> None:
    images = torch.zeros(4000, 1, 32, 32)
    images[:, :, 16, 16] = 1
    moved = _augment(images, "translation")[:, 0]
    inside = moved.sum((1, 2)) > 0.99
    places = torch.stack([(moved.sum(3 - axis) * torch.arange(32.0)).sum(1) for axis in (1, 2)])[:, inside] - 16
    expected = math.sqrt((0.125 * 32) ** 2 + ((0.125 * 32) ** 2 / 3))  # normal, and uniform rounded
    assert places.std(1) == pytest.approx([expected, expected], rel=0.06)
    assert torch.allclose(_augment(torch.ones(50, 1, 8, 8), *ALL[:-1]), torch.ones(()))


def test_scaling_and_rotation_keep_the_center() -> None:
    images = torch.rand(100, 1, 5, 5)
    changed = _augment(images, "scaling", "rotation")
    torch.testing.assert_close(changed[:, :, 2, 2], images[:, :, 2, 2])


def test_of_gray_images_and_gray_colors_color_moves_the_level_alone() -> None:
    gray = torch.rand(500, 1, 4, 4, dtype=torch.float64) * 2 - 1
    changed = _augment(gray, "color")
    slope = changed.flatten(1).std(1) / gray.flatten(1).std(1)
    assert slope.log2().std().item() == pytest.approx(0.5, abs=0.05)  # contrast
    flipped = ((changed - changed.mean((2, 3), keepdim=True)) * (gray - gray.mean((2, 3), keepdim=True))).sum((1, 2, 3))
    assert (flipped < 0).double().mean().item() == pytest.approx(0.5, abs=0.08)
    in_color = _augment(gray.expand(-1, 3, -1, -1), "color")
    torch.testing.assert_close(in_color, changed.expand(-1, 3, -1, -1))  # hue and saturation have nothing to change


def test_hue_and_saturation_leave_the_gray_part_to_contrast_and_brightness() -> None:
    images = torch.rand(300, 3, 4, 4, dtype=torch.float64)
    changed = _augment(images, "color")
    level = _augment(images.mean(1, keepdim=True), "color")
    torch.testing.assert_close(changed.mean(1, keepdim=True), level)


def test_the_strength_follows_its_rule() -> None:
    scores = torch.tensor([3.0, 0.1, -2.0, 5.0])  # three of four are positive: r = 0.5
    start = torch.tensor(0.25)
    assert adapted(start, scores, 0.4, 5_000).item() == pytest.approx(0.26)
    assert adapted(start, scores, 0.6, 5_000).item() == pytest.approx(0.24)
    assert adapted(start, scores, 0.5, 5_000).item() == 0.25
    strength = torch.tensor(0.0)
    for _ in range(500):
        strength = adapted(strength, scores, 0.4, 500)
    assert strength.item() == pytest.approx(0.5, abs=1e-4)  # 250,000 of the 500,000 images from 0 to 1
    assert adapted(torch.tensor(0.999), scores, 0.4, 5_000).item() == 1
    assert adapted(torch.tensor(0.001), scores, 0.6, 5_000).item() == 0
