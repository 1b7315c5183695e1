"""Perturbed images as functions of the images they came from, for what is trained through them."""

from __future__ import annotations

import torch
from torch import Tensor

from .formulas import Bound, clip


class _Moved(torch.autograd.Function):
    """moved = x + delta. The perturbation is a constant, so that the gradient goes on as it is, however often it is
    differentiated."""

    @staticmethod
    def forward(ctx, x, moved):  # type: ignore[no-untyped-def]
        return moved.detach()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


def clipped_from(x: Tensor, moved: Tensor, clip_min: Bound, clip_max: Bound) -> Tensor:
    """clip(x + delta), differentiable with respect to x, of `moved` = x + delta, which a kernel or several steps have found.

    torch's own clamp knows where the clip held: outside the bounds its gradient is 0, inside 1.
    """
    return clip(_Moved.apply(x, moved), clip_min, clip_max)
