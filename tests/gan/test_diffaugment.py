"""DiffAugment against what each policy says of itself."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.gan.batches import StepDraws
from pipeline.gan.diffaugment import Policy, augment, color, cutout, translation


def _draws(count: int, seed: int = 0) -> StepDraws:
    return StepDraws(torch.Generator().manual_seed(seed), count)


@pytest.mark.parametrize("policy", get_args(Policy))
def test_gradients_reach_the_image_and_each_image_has_a_change_of_its_own(policy: Policy) -> None:
    images = torch.rand(1, 3, 16, 16).expand(32, -1, -1, -1).clone().requires_grad_()
    changed = augment(images, [policy], _draws(32))
    assert changed.shape == images.shape
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 8
    changed.sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_no_policy_changes_nothing() -> None:
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(augment(images, [], _draws(2)), images)


@pytest.mark.parametrize("size", [8, 32])
def test_translation_moves_a_point_by_at_most_an_eighth_and_reaches_every_place(size: int) -> None:
    images = torch.zeros(4000, 2, size, size)
    images[:, :, size // 2, size // 2] = 1
    moved = translation(images, _draws(4000))
    assert torch.equal(moved.sum((2, 3)), torch.ones(4000, 2))
    places = {tuple(place) for place in (moved[:, 0].nonzero()[:, 1:] - size // 2).tolist()}
    reach = size // 8
    each_way = range(-reach, reach + 1)
    assert places == {(row, column) for row in each_way for column in each_way}


def test_translation_fills_with_middle_gray() -> None:
    moved = translation(torch.ones(500, 1, 8, 8), _draws(500))
    assert set(moved.unique().tolist()) == {0.0, 1.0}


def test_cutout_is_a_gray_square_of_half_the_size() -> None:
    changed = cutout(torch.ones(2000, 1, 16, 16), _draws(2000))
    holes = (changed == 0).sum((1, 2, 3))
    assert holes.max() == 8 * 8
    assert holes.min() < 8 * 8  # partly outside
    assert set(changed.unique().tolist()) == {0.0, 1.0}


def test_color_keeps_what_it_must() -> None:
    images = torch.rand(200, 3, 8, 8, dtype=torch.float64)

    def gray(images: Tensor) -> Tensor:
        return images.mean(1)

    changed = color(images, _draws(200))
    shift = gray(changed).mean((1, 2)) - gray(images).mean((1, 2))  # only brightness moves the mean
    assert shift.abs().max() <= 0.5
    contrast = gray(changed).std((1, 2)) / gray(images).std((1, 2))  # saturation leaves the gray picture alone
    assert contrast.min() >= 0.5
    assert contrast.max() <= 1.5
    assert contrast.max() - contrast.min() > 0.8
