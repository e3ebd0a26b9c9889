"""The processes that train together, as torchrun starts them: each has its share of every batch.

Alone, a process has rank 0 of 1; every function here then gives back what it was given.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import FailedError, UserError

T = TypeVar("T")
Rows = TypeVar("Rows", Tensor, np.ndarray)

_PATIENCE = timedelta(hours=2)  # the others wait this long while process 0 scores a snapshot
_GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL


def rank() -> int:
    """The number of this process, from 0; process 0 writes for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this process on its host, from 0."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def local_world_size() -> int:
    """How many of the processes are on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def share(rows: Rows) -> Rows:
    """This process's rows of the whole batch, whose length is a multiple of the number of processes."""
    count = len(rows) // world_size()
    return rows[rank() * count : (rank() + 1) * count]


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
        with _exchange():
            dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The value reaches the losses of all processes equally, as 1/N of it did in each."""
        return all_mean(gradients[0])


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Give each parameter the mean over processes of its gradient, in one exchange."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = all_mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    parts = torch.split(means, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is up in any process. Nobody goes on before all have asked."""
    if world_size() == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.uint8)
    with _exchange():
        dist.all_reduce(raised, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised)


def of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; every process must ask, each with equally many."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    with _exchange():
        dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def from_first(value: T) -> T:
    """Process 0's value, in every process."""
    if world_size() == 1:
        return value
    held = [value]
    with _exchange():
        dist.broadcast_object_list(held)
    return held[0]


@contextmanager
def first_of_host() -> Iterator[None]:
    """One process of each host runs the block before the others: what it leaves in a cache is there for them."""
    if local_rank():
        any_of(False)
    yield
    if not local_rank():
        any_of(False)


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # gloo and NCCL have no kind of their own for a peer that is gone
        raise FailedError(f"process {rank()} of {world_size()} lost the others: one of them has failed") from None


class SynchronizedBatchNorm(_BatchNorm):
    """Batch normalization (Ioffe & Szegedy 2015) over the images of all processes; torch's own wants a GPU.

    Running statistics are the same in every process. Statistics are at least float32.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        assert x.dim() >= 2

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dimensions = [0, *range(2, x.dim())]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = all_mean(exact.mean(dimensions))
        centered = exact - _per_channel(mean, x)
        variance = all_mean(centered.square().mean(dimensions))
        self._remember(mean.detach(), variance.detach(), world_size() * x.numel() // x.shape[1])
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalized = centered * _per_channel(scale, x)
        if self.affine:
            normalized = normalized + _per_channel(self.bias, x)
        return normalized.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Take the statistics of so many numbers per channel into the running ones."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            assert self.momentum is not None
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def synchronize_batch_norm(module: nn.Module) -> None:
    """Where several processes train, make each nn.BatchNorm of `module` a SynchronizedBatchNorm, its state as it is."""
    if world_size() > 1:
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                part.__class__ = SynchronizedBatchNorm  # as torch's parametrizations do it: hooks and state stay


@contextmanager
def together(processes: int) -> Iterator[None]:
    """Join the processes that torchrun or `launch` has started, for the length of the block."""
    if (found := int(os.environ.get("WORLD_SIZE", "1"))) != processes:
        raise UserError(f"train.processes is {processes}, and torchrun started {found}; needed the same number")
    if processes == 1:
        yield
        return
    if torch.cuda.is_available():
        if (needed := int(os.environ["LOCAL_WORLD_SIZE"])) > torch.cuda.device_count():
            raise UserError(f"{needed} processes on {torch.cuda.device_count()} GPUs; needed one GPU for each")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def launch(command: Sequence[str], processes: int, stopping: Callable[[], bool]) -> int:
    """Run `command` as the processes of one training on this host, as torchrun would; the exit status of process 0.

    When `stopping()`, or when one has failed, all are told to stop by SIGTERM, and are killed after a grace. Raises
    FailedError when one was killed.
    """
    meeting = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    environment = os.environ | {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),  # the meeting point is ours: no other port to find free
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    workers = [
        subprocess.Popen(command, env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)})
        for number in range(processes)
    ]
    ending = float("inf")
    while any(worker.poll() is None for worker in workers):
        if ending == float("inf") and (stopping() or any(worker.returncode for worker in workers)):
            ending = time.monotonic() + _GRACE_SECONDS
            for worker in workers:
                worker.terminate()
        if time.monotonic() > ending:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    for number, worker in enumerate(workers):
        if worker.returncode < 0 and not stopping():
            name = signal.Signals(-worker.returncode).name
            raise FailedError(f"process {number} of the {processes} that trained together was killed by {name}")
    status = workers[0].returncode
    return status if status >= 0 else 128 - status
