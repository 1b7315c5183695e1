"""Weight gradients of convolutions, each computed in the way that is the fastest for it.

oneDNN's bfloat16 weight gradient of a layer with many weights takes a CPU up to twice as long as the same sums written as a
forward convolution with the batch as channels. On a CPU in bfloat16 large layers go that way; everything else goes torch's.
docs/performance.md has the times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LARGE = 2**18  # weights of a layer: measured to be faster from here, and slower in places below
convolution_backward = torch.ops.aten.convolution_backward.default


def weight_gradient(gradient: Tensor, images: Tensor, weight: Tensor, how: Sequence[Any]) -> Tensor:
    """The gradient of `weight` [out, in, ...] where `gradient` [n, out, ...] is that of convolution(images, weight).

    how: stride, padding, dilation, transposed, output_padding and groups.
    """
    if not _is_faster_as_convolution(images, weight, how):
        return convolution_backward(gradient, images, weight, None, *how, [False, True, False])[1]
    return _as_convolution(gradient, images, weight, *how[:3])


def _as_convolution(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """With the images' channels as batch, the images as channels, and stride and dilation in each other's place."""
    there = torch.ops.aten.convolution(
        *map(_channels_first, (images, gradient)), None, dilation, padding, stride, False, [0] * len(stride), 1
    )
    for k, size in enumerate(weight.shape[2:], 2):  # places of the images that no stride reaches come last
        there = there.narrow(k, 0, size)
    if weight.is_contiguous():
        return there.transpose(0, 1).contiguous()
    last = there.flatten(1).t().contiguous().unflatten(0, there.shape[1:]).movedim(-1, 1)
    return last if last.stride() == weight.stride() else torch.empty_like(weight).copy_(last)


def _channels_first(t: Tensor) -> Tensor:
    """[n, channels, ...] as [channels, n, ...], contiguous. Of channels_last it is a matrix to transpose, which torch does in
    blocks."""
    if t.is_contiguous():
        return t.transpose(0, 1).contiguous()
    rows = t.movedim(1, -1).flatten(0, -2)
    return rows.t().contiguous().view(t.shape[1], t.shape[0], *t.shape[2:])


def faster_weight_gradients(output: Tensor, compiled: bool) -> AbstractContextManager[object]:
    """Around a backward from `output`: torch's engine takes `weight_gradient` too, but for compiled code, which has its own."""
    asked = output.dtype == torch.bfloat16 and output.device.type == "cpu" and not compiled
    return _Mode() if asked else nullcontext()


def _is_faster_as_convolution(images: Tensor, weight: Tensor, how: Sequence[Any]) -> bool:
    *_, transposed, _, groups = how
    large = weight.numel() >= LARGE and groups == 1 and not transposed
    return large and images.dtype == torch.bfloat16 and images.device.type == "cpu"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        wanted = function is convolution_backward and args[10][1]
        if not wanted or not _is_faster_as_convolution(args[1], args[2], args[4:10]):
            return function(*args, **(kwargs or {}))
        gradient, images, weight, _, *how, (to_images, _, to_bias) = args
        there = function(gradient, images, weight, None, *how, [True, False, False])[0] if to_images else None
        # torch computes the weights' with a bias's
        bias = gradient.sum([0, *range(2, gradient.dim())]) if to_bias else None
        return there, weight_gradient(gradient, images, weight, how), bias
