"""Convolutions whose gradients are themselves differentiated fast, which is what a gradient penalty asks of them.

A convolution x * w is linear in x and in w. With g for the gradient of its output, ⟨g, x * w⟩ is linear in each of the
three: its derivative by g is the convolution, by x the gradient of the input, by w the gradient of the weight. Every
derivative of one of these is another of them, so that all orders are these three, for which libraries have kernels.
PyTorch's own derivative of the gradient convolves with kernels as large as the image instead, one group at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Geometry(NamedTuple):
    """What a convolution is given beside its tensors, and the shapes of its input and weight."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    images: Sequence[int]
    weight: Sequence[int]


class fast_penalties(TorchFunctionMode):  # noqa: N801  # stands in a `with`, as torch.no_grad does
    """In the block the convolutions of any network are such. Not under autocast, which does not see into them."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        ours = function
        if function is torch.conv2d:
            ours = _conv2d
        elif function is torch.conv_transpose2d:
            ours = _conv_transpose2d
        return ours(*args, **(kwargs or {}))


def _conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    of = Geometry(_pair(stride), _pair(padding), _pair(dilation), groups, images.shape, weight.shape)
    return _with_bias(_ThirdOf.apply(images, weight, None, of), bias)


def _conv_transpose2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """The gradient of the input of a convolution whose output has the gradient `images`."""
    stride, padding, more, dilation = map(_pair, (stride, padding, output_padding, dilation))
    sides = [
        (images.shape[2 + axis] - 1) * stride[axis]
        - 2 * padding[axis]
        + dilation[axis] * (weight.shape[2 + axis] - 1)
        + more[axis]
        + 1
        for axis in range(2)
    ]
    shape = [len(images), weight.shape[1] * groups, *sides]
    of = Geometry(stride, padding, dilation, groups, shape, weight.shape)
    return _with_bias(_ThirdOf.apply(None, weight, images, of), bias)


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def _with_bias(images: Tensor, bias: Tensor | None) -> Tensor:
    return images if bias is None else images + bias[:, None, None]


class _ThirdOf(torch.autograd.Function):
    """Of images, weight and the gradient of their convolution, the one that is None, from the other two."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor | None, weight: Tensor | None, gradient: Tensor | None, of: Geometry
    ) -> Tensor:
        ctx.save_for_backward(images, weight, gradient)
        ctx.of = of
        if gradient is None:
            assert images is not None
            assert weight is not None
            return torch.conv2d(images, weight, None, of.stride, of.padding, of.dilation, of.groups)
        asked = [images is None, weight is None, False]
        found: list[Tensor] = torch.ops.aten.convolution_backward(
            gradient,
            _shaped(of.images, gradient) if images is None else images,
            _shaped(of.weight, gradient) if weight is None else weight,
            None,
            of.stride,
            of.padding,
            of.dilation,
            False,
            [0, 0],
            of.groups,
            asked,
        )
        return found[asked.index(True)]

    @staticmethod
    def backward(ctx: Any, derivative: Tensor) -> tuple[Tensor | None, ...]:
        three = [derivative if each is None else each for each in ctx.saved_tensors]
        return *(
            _ThirdOf.apply(*(None if other == one else three[other] for other in range(3)), ctx.of) if needed else None
            for one, needed in enumerate(ctx.needs_input_grad[:3])
        ), None


def _shaped(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of which only the shape, the type and the memory format are looked at."""
    return torch.empty(*shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
