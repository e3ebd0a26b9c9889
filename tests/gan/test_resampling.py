"""Resampling against interpolation, and against its own transpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pipeline.gan.resampling import downsample, smoothing, upsample


def test_upsampling_is_bilinear_interpolation_inside() -> None:
    images = torch.randn(2, 3, 6, 6)
    expected = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(images)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])


def test_downsampling_is_the_filter_at_every_other_place() -> None:
    images = torch.randn(2, 3, 8, 8)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    expected = F.conv2d(images, torch.outer(line, line).expand(3, 1, 4, 4), stride=2, padding=1, groups=3)
    torch.testing.assert_close(downsample(images), expected)


def test_each_is_the_others_transpose() -> None:
    small, large = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 8, 8)
    torch.testing.assert_close((upsample(small) * large).sum(), (small * downsample(large)).sum() * 4)


def test_a_smoothed_kernel_sums_to_what_it_did_and_convolves_like_the_two() -> None:
    kernel = torch.randn(3, 3)
    smooth = (kernel.flatten() @ smoothing(3)).reshape(1, 1, 6, 6)
    torch.testing.assert_close(smooth.sum(), kernel.sum())
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    images = torch.randn(1, 1, 12, 12)
    both = F.conv2d(F.conv2d(images, torch.outer(line, line)[None, None]), kernel[None, None])
    torch.testing.assert_close(F.conv2d(images, smooth), both)
