"""Batches of real images, and the random numbers of a step.

Both are functions of (seed, step) alone: a resumed run needs no generator state, and draws are made for the whole
batch of all processes and then sliced, so that N processes draw what one would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.gan.pixels import to_float


class Draws(Protocol):
    """Random numbers for one batch, one row per image; every call draws anew."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 (B, *shape)."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32 (B, *shape)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images to learn from, or only their number and labels when a generator is asked for images like these."""

    images: Tensor  # float32 (B, C, H, W) in [-1, 1]
    labels: Tensor  # int64 (B,); -1 when there are none
    draws: Draws


class StepDraws:
    """The training draws of one step, on the device that trains."""

    def __init__(self, generator: torch.Generator, batch_size: int) -> None:
        self.generator, self.batch_size = generator, batch_size

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch_size, *shape, generator=self.generator, device=self.generator.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.batch_size, *shape, generator=self.generator, device=self.generator.device)


class Batches:
    """The training images as uint8 on the device; the batch of step k holds images drawn uniformly by (seed, k)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, batch_size: int, seed: int, device: torch.device):
        self.images = torch.tensor(
            images, device=device
        )  # uint8 (N, C, H, W); copied: the array may be a read-only map
        self.labels = torch.tensor(labels, device=device)  # int64 (N,)
        self.batch_size, self.seed = batch_size, seed
        self.generator = torch.Generator(device)

    def at(self, step: int) -> Batch:
        """The batch of this step and its random numbers."""
        (step_seed,) = np.random.SeedSequence((self.seed, step)).generate_state(1)
        self.generator.manual_seed(int(step_seed))
        rows = torch.randint(len(self.images), (self.batch_size,), generator=self.generator, device=self.images.device)
        draws = StepDraws(self.generator, self.batch_size)
        return Batch(images=to_float(self.images[rows]), labels=self.labels[rows], draws=draws)
