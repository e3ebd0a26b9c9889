"""Batches of real images, and the random numbers of a step.

Both are functions of (seed, step) alone: a resumed run needs no generator state, and all is drawn for the whole batch
of all processes and then sliced, so that N processes draw what one would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.gan.distributed import share
from pipeline.gan.pixels import to_float


class Draws(Protocol):
    """Random numbers for one batch, one row per image; every call draws anew."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, floating (B, *shape)."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), floating (B, *shape)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images to learn from, or only their number and labels when a generator is asked for images like these."""

    images: Tensor  # floating (B, C, H, W) in [-1, 1]
    labels: Tensor  # int64 (B,); -1 when there are none
    draws: Draws


class StepDraws:
    """The training draws of one step, on the device that trains: this process's rows of the whole batch's."""

    def __init__(self, generator: torch.Generator, batch_size: int) -> None:
        self.generator, self.batch_size = generator, batch_size

    def normal(self, *shape: int) -> Tensor:
        return share(torch.randn(self.batch_size, *shape, generator=self.generator, device=self.generator.device))

    def uniform(self, *shape: int) -> Tensor:
        return share(torch.rand(self.batch_size, *shape, generator=self.generator, device=self.generator.device))


class Resident:
    """Rows of an array that is kept on the device as a whole."""

    def __init__(self, array: np.ndarray, device: torch.device) -> None:
        self.tensor = torch.tensor(array, device=device)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        return self.tensor[_sent(rows, self.tensor.device)]


class Mapped:
    """Rows of an array that stays where it is, on the host, and may be a memory map; only they go to the device."""

    def __init__(self, array: np.ndarray, device: torch.device) -> None:
        self.array, self.device = array, device

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        return _sent(self.array[rows], self.device)


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _fits(array: np.ndarray, device: torch.device) -> bool:
    """Whether it takes at most half of the GPU's free memory; the rest is for networks. A CPU reads the map itself."""
    return device.type == "cuda" and array.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


class Batches:
    """The training images as uint8; the batch of step k holds images drawn by (seed, k), uniformly or as follows.

    `balanced`: its labels are 0, 1, … by turns, drawn uniformly from each class; there are whole turns in a batch.
    `class_balance` β: where it is not balanced so, a class of n images is drawn in proportion to n^(1-β), and within it
    uniformly: at 0 all images are drawn equally often, at 1 all classes.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        balanced: bool = False,
        class_balance: float = 0.0,
    ):
        self.images = (Resident if _fits(images, device) else Mapped)(images, device)  # uint8 (N, C, H, W)
        self.labels = Resident(labels, device)  # int64 (N,)
        rows = np.arange(len(labels))
        self.parts = [rows[labels == label] for label in np.unique(labels)] if balanced else [rows]
        self.edges: np.ndarray | None = None  # (N,), cumulative probabilities of the images; none where all are equal
        if class_balance > 0 and not balanced:
            _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
            weights = np.cumsum(counts[classes] ** -class_balance)
            self.edges = weights / weights[-1]
        self.batch_size, self.seed = batch_size, seed
        self.generator = torch.Generator(device)

    def at(self, step: int) -> Batch:
        """This process's share of the batch of this step, and of its random numbers."""
        random = np.random.default_rng((self.seed, step))
        if self.edges is not None:
            rows = share(np.searchsorted(self.edges, random.random(self.batch_size), side="right"))
        else:
            turns = self.batch_size // len(self.parts)
            drawn = [part[random.integers(len(part), size=turns)] for part in self.parts]
            rows = share(np.stack(drawn, axis=1).reshape(-1))
        self.generator.manual_seed(int(random.integers(2**63)))
        draws = StepDraws(self.generator, self.batch_size)
        return Batch(images=to_float(self.images[rows]), labels=self.labels[rows], draws=draws)
