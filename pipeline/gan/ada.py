"""Adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676).

Real and fake images go through the same random transformations before the discriminator sees them, each with
probability p; p rises while the discriminator knows the training images too well, and falls while it does not. Below
p of about 0.8 the generator does not learn the transformations (section 2.1): their absence stays the likeliest case.

Appendix B of the paper in one warp and one colour matrix for each image; its wavelet filters around the warp and its
corruptions (filtering, noise, cutout) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.gan.batches import Draws
from pipeline.gan.distributed import all_mean

# The paper's pixel blitting is flip, rotate90 and the whole pixels of translation; its geometric transformations are
# scaling, rotation and the fractions of translation.
Transformation = Literal["flip", "rotate90", "translation", "scaling", "rotation", "color"]

_IMAGES_TO_FULL = 500_000  # in which p goes from 0 to 1, section 3


def adapted(strength: Tensor, real_scores: Tensor, target: float, images: int) -> Tensor:
    """The strength p (a scalar) after a step with so many images and raw scores (B,) of the real ones among them.

    Section 3: r = E[sign D(real)] above the target means overfitting, and p goes up; else down.
    """
    overfitting = all_mean(real_scores.detach().sign().mean())
    step = torch.sign(overfitting - target) * (images / _IMAGES_TO_FULL)
    return (strength + step).clamp(0, 1)


def augment(images: Tensor, allowed: Sequence[Transformation], strength: Tensor | float, draws: Draws) -> Tensor:
    """Images (B, C, H, W) of 1 or 3 channels and equal sides, each after its own random choice of what is allowed.

    An image for which nothing was chosen comes out as it was, bit for bit.
    """
    with torch.autocast(images.device.type, enabled=False):
        if any(name != "color" for name in allowed):
            images = _warped(images, allowed, strength, draws)
        return _colored(images, strength, draws) if "color" in allowed else images


def _warped(images: Tensor, allowed: Sequence[Transformation], strength: Tensor | float, draws: Draws) -> Tensor:
    """Sampled bilinearly, the image mirrored beyond its edges."""
    place = torch.eye(3, dtype=images.dtype, device=images.device).expand(len(images), 3, 3)
    any_chosen = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for matrix, probability in _moves(images.shape[-1], allowed, strength, draws):
        chosen = draws.uniform() < probability
        any_chosen = any_chosen | chosen
        place = torch.where(chosen[:, None, None], place @ matrix.to(images.dtype), place)
    grid = F.affine_grid(place[:, :2], list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return torch.where(any_chosen[:, None, None, None], warped, images)


def _moves(
    size: int, allowed: Sequence[Transformation], strength: Tensor | float, draws: Draws
) -> Iterator[tuple[Tensor, Tensor | float]]:
    """In their order, each as matrices (B, 3, 3) from a place afterwards to the place before, and its probability.

    Places are in [-1, 1]. As every amount is as likely as its opposite, none is inverted.
    """
    half = 1 - (1 - strength) ** 0.5  # of the two rotations, so that together they are as likely as the others
    if "flip" in allowed:
        flip = draws.uniform().mul(2).floor()
        yield _scaling(1 - 2 * flip, torch.ones_like(flip)), strength
    if "rotate90" in allowed:
        yield _rotation(draws.uniform().mul(4).floor() * (math.pi / 2)), strength
    if "translation" in allowed:
        yield _translation(draws.uniform(2).sub(0.5).mul(size / 4).round() * (2 / size)), strength
    if "scaling" in allowed:
        scale = torch.exp2(0.2 * draws.normal())
        yield _scaling(scale, scale), strength
    if "rotation" in allowed:
        yield _rotation(draws.uniform().sub(0.5) * (2 * math.pi)), half
    if "scaling" in allowed:
        scale = torch.exp2(0.2 * draws.normal())
        yield _scaling(scale, 1 / scale), strength
    if "rotation" in allowed:
        yield _rotation(draws.uniform().sub(0.5) * (2 * math.pi)), half
    if "translation" in allowed:
        yield _translation(draws.normal(2) / 4), strength


def _scaling(across: Tensor, down: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([across, down, torch.ones_like(down)], -1))


def _rotation(angles: Tensor) -> Tensor:
    cos, sin, zero, one = angles.cos(), angles.sin(), torch.zeros_like(angles), torch.ones_like(angles)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1).reshape(-1, 3, 3)


def _translation(moves: Tensor) -> Tensor:
    """By moves (B, 2) in halves of the image."""
    zero, one = torch.zeros_like(moves[:, 0]), torch.ones_like(moves[:, 0])
    return torch.stack([one, zero, moves[:, 0], zero, one, moves[:, 1], zero, zero, one], -1).reshape(-1, 3, 3)


def _colored(images: Tensor, strength: Tensor | float, draws: Draws) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation: of a gray image those that it has."""
    chosen = draws.uniform(5) < strength
    amounts, choices = draws.normal(3), draws.uniform(2)
    nothing = torch.zeros_like(amounts[:, 0])
    brightness = torch.where(chosen[:, 0], 0.2 * amounts[:, 0], nothing)
    contrast = torch.where(chosen[:, 1], torch.exp2(0.5 * amounts[:, 1]), nothing + 1)
    flip = torch.where(chosen[:, 2], choices[:, 0].mul(2).floor(), nothing)
    hue = torch.where(chosen[:, 3], choices[:, 1].sub(0.5) * (2 * math.pi), nothing)
    saturation = torch.where(chosen[:, 4], torch.exp2(amounts[:, 2]), nothing + 1)

    # Along the gray axis (1, 1, 1) / √3 contrast and flip act, across it contrast, hue and saturation.
    one = torch.eye(3, device=images.device)
    along = torch.full_like(one, 1 / 3)
    across = one - along
    turn = (one.roll(-1, 1) - one.roll(1, 1)) / math.sqrt(3)
    factors = [contrast * (1 - 2 * flip), contrast * saturation * hue.cos(), contrast * saturation * hue.sin()]
    parts = zip(factors, (along, across, turn), strict=True)
    matrices = sum((factor[:, None, None] * part for factor, part in parts), torch.zeros_like(along)).to(images.dtype)
    if images.shape[1] == 1:
        matrices = matrices.mean((1, 2), keepdim=True) * 3
    shifted = images + brightness[:, None, None, None]
    colored = torch.einsum("bij,bjhw->bihw", matrices, shifted)
    return torch.where(chosen.any(1)[:, None, None, None], colored, images)
