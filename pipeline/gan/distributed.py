"""The processes that train together, as torchrun starts them: each has its share of every batch.

Alone, a process has rank 0 of 1 and the mean over processes is the value itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """The number of this process, from 0; process 0 writes for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_mean(tensor: Tensor) -> Tensor:
    """The mean over processes of a floating tensor that has the same shape in each; every process must ask for it.

    Differentiable any number of times. Where each process takes the gradient of its own loss, the mean over processes
    of those gradients is the gradient of the mean loss, through this too.
    """
    if world_size() == 1:
        return tensor
    mean: Tensor = _AllMean.apply(tensor)
    return mean


class _AllMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The value reaches the losses of all processes equally, as 1/N of it did in each."""
        return all_mean(gradients[0])
