"""Means over processes, and gradients through them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.gan.distributed import SynchronizedBatchNorm, all_mean, of_all, rank, world_size


def _uneven(points: Tensor, weight: Tensor) -> Tensor:
    """A mean over images of something in which every image meets the mean of all."""
    values = weight * points
    return (values * all_mean(values.mean()) + values.sin()).mean()


def _second_order(points: Tensor, weight: Tensor) -> Tensor:
    """The gradient with respect to `weight` of a penalty on the gradient with respect to the points, as R1 has it."""
    points = points.clone().requires_grad_()
    values = weight * points
    scores = values.cos() * all_mean((values**2).mean())
    (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().mean(), weight)
    return second


def _gradients(points: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(_uneven(points, weight), weight)
    return first, _second_order(points, weight)


POINTS = torch.linspace(-1, 3, 8, dtype=torch.float64)


def _be_process(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    assert (rank(), world_size()) == (number, 2)
    assert all_mean(torch.tensor([1.0, 5.0]) * (number + 1)).tolist() == [1.5, 7.5]
    assert of_all(POINTS.view(2, 4).T.chunk(2)[number]).equal(POINTS.view(2, 4).T)
    first, second = (all_mean(gradient) for gradient in _gradients(POINTS.chunk(2)[number]))
    torch.save((first, second), folder / str(number))
    dist.destroy_process_group()


def test_two_processes_have_the_mean_and_the_first_and_second_gradients_of_one(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, __file__, str(number), str(tmp_path)]) for number in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    for number in range(2):
        for found, alone in zip(torch.load(tmp_path / str(number)), _gradients(POINTS), strict=True):
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 4)])
def test_synchronized_batch_normalization_of_one_process_is_that_of_torch(shape: tuple[int, ...]) -> None:
    kind = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    theirs, ours = kind(3, momentum=0.3).double(), kind(3, momentum=0.3).double()
    ours.__class__ = SynchronizedBatchNorm
    torch.manual_seed(0)
    torch.nn.init.normal_(theirs.weight)
    torch.nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    points = torch.randn(shape, dtype=torch.float64) * 3 + 5
    gradients = []
    for layer in (theirs, ours):
        mine = points.clone().requires_grad_()
        layer(mine).pow(3).mean().backward()
        gradients.append((mine.grad, layer.weight.grad, layer.bias.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict())
    torch.testing.assert_close(theirs.eval()(points), ours.eval()(points))
    assert ours.train().float()(points.bfloat16()).dtype == torch.bfloat16


def test_alone_the_mean_is_the_value_itself() -> None:
    value = torch.tensor([1.0, 2.0])
    assert all_mean(value) is value
    assert (rank(), world_size()) == (0, 1)
    with pytest.raises(ValueError, match="initialized"):
        dist.get_rank()


if __name__ == "__main__":
    _be_process(int(sys.argv[1]), Path(sys.argv[2]))
