"""Convolutions whose gradients are differentiated by convolutions: equal to PyTorch's own, to any order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from pipeline.gan import penalties
from pipeline.gan.convolution import fast_penalties

Layer = Callable[[], nn.Module]

LAYERS: dict[str, Layer] = {
    "3×3": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "1×1": lambda: nn.Conv2d(4, 6, 1, bias=False),
    "strided": lambda: nn.Conv2d(4, 6, 4, 2, 1),
    "strided, with pixels left over": lambda: nn.Conv2d(4, 6, 3, 2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "a channel each": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "one-sided": lambda: nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, bias=False),
}
MORE: dict[str, Layer] = {  # of which PyTorch's own has no second derivative
    "transposed, with pixels left over": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
}


@pytest.fixture(autouse=True)
def _exact() -> None:
    torch.manual_seed(0)


def _layer(name: str) -> tuple[nn.Module, Tensor]:
    return (LAYERS | MORE)[name]().double(), torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", LAYERS)
def test_first_second_and_third_derivatives_are_pytorchs_own(name: str) -> None:
    layer, images = _layer(name)

    def derivatives(block: AbstractContextManager[object]) -> list[Tensor]:
        with block:
            out = layer(images).square().sum()
        found = [out]
        for _ in range(3):
            of = [images, *layer.parameters()]
            gradients = torch.autograd.grad(found[-1], of, create_graph=True, materialize_grads=True)
            found += gradients
            found.append(sum((gradient.square().sum() for gradient in gradients), torch.zeros(())))
        return found

    for ours, theirs in zip(derivatives(fast_penalties()), derivatives(nullcontext()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS | MORE)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    layer, _ = _layer(name)
    images = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def convolved(images: Tensor) -> Tensor:
        with fast_penalties():
            found: Tensor = layer(images)
        return found

    assert torch.autograd.gradcheck(convolved, images)
    assert torch.autograd.gradgradcheck(convolved, images)


def test_a_penalty_of_a_network_is_what_it_is_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 4, 2, 1, groups=2), nn.Tanh(), nn.Flatten()
    ).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def learnt() -> list[Tensor]:
        penalty = penalties.r1(lambda shown: critic(shown).mean(1), images)
        return [penalty, *torch.autograd.grad(penalty, list(critic.parameters()), materialize_grads=True)]

    ours = learnt()
    monkeypatch.setattr(penalties, "fast_penalties", nullcontext)
    for one, other in zip(ours, learnt(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_outside_the_block_convolutions_are_pytorchs_own() -> None:
    layer, images = _layer("3×3")
    with fast_penalties():
        inside = layer(images)
    assert "ThirdOf" in str(inside.grad_fn.next_functions)
    assert layer(images).grad_fn.name() == "ConvolutionBackward0"
