"""A release for torch: imported only where torch is installed. Tensors are uint8; the training loop scales them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pipeline.delivery.opening import Arrays, Stream


class TensorDataset(Dataset[tuple[Tensor, int]]):
    """Items by index: an image, uint8 (C, H, W), and its label."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.items = Arrays(images, labels)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.items[index]
        return torch.from_numpy(image), label


class TensorStream(IterableDataset[tuple[Tensor, int]]):
    """Items from the store; every image goes to one worker of one rank.

    Ranks get whole row groups, so some get more images than others: let DDP train on as many batches as the rank that
    has fewest, or within `join()`, for a rank that waits for one that has finished waits for ever.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream, self.place = stream, (0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "place": self._place()}  # for a spawned worker, which knows of no process group

    def set_epoch(self, epoch: int) -> None:
        """Shuffle another way from the next iteration on."""
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rank, ranks = self._place()
        for image, label in self.stream.consume(rank * workers + number, ranks * workers):
            yield torch.from_numpy(image), label

    def _place(self) -> tuple[int, int]:
        """This process's rank and how many there are; without a process group those where it was pickled."""
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return self.place
