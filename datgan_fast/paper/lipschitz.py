"""How steep a discriminator can be and how steep it is: a bound of its Lipschitz constant, and slopes found near images.

Both are in logits per unit of the images' Euclidean length, and of the discriminator in evaluation mode: there it is a function
of one image, which in training mode BatchNorm makes one of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..method.formulas import image_norm

TOGETHER = 8  # vectors in a block of the power iteration
ROUNDS = 100  # of it, at most
TOLERANCE = 1e-5  # relative: it ends when a round changes less
WALKS = 3  # steps of the search for a steep place, up and down the discriminator each

_AT_MOST_1 = (nn.ReLU, nn.Tanh, nn.Identity, nn.Flatten, nn.Unflatten)  # of these the factor is 1
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def lipschitz_bound(discriminator: nn.Module, image: Tensor) -> float:
    """An upper bound: the product of the layers' Lipschitz constants, which no input need reach together.

    A convolution counts by its largest singular value at its input's size with its stride and padding, a linear layer by its
    weight's, BatchNorm by max |gain| / sqrt(running variance + eps), a leaky ReLU by 1 or its slope. Weights under spectral
    normalisation count as they act. Power iteration comes from below, to within about TOLERANCE.

    NaN for what is no plain chain of such layers, as a residual network or one with classes is none.

    Args:
        discriminator: in evaluation mode.
        image: [1, ...], of which only the shape counts.
    """
    layers = list(_chain(discriminator))
    bound = 1.0
    x = torch.zeros_like(image)
    with torch.no_grad():
        for layer in layers:
            factor = math.nan if layer is None else _factor(layer, x)
            if layer is None or math.isnan(factor):
                return math.nan
            bound *= factor
            x = layer(x.clone())
    return bound


def _chain(module: nn.Module) -> Iterator[nn.Module | None]:
    """Its layers in their order; None for what is more than a chain."""
    if isinstance(module, nn.Sequential):
        if type(module).forward is not nn.Sequential.forward:
            yield None
        for layer in module:
            yield from _chain(layer)
    else:
        yield module


def _factor(layer: nn.Module, x: Tensor) -> float:
    """The layer's Lipschitz constant, or a bound of it, on inputs of this shape; NaN for a layer that is not known."""
    if isinstance(layer, nn.Linear):
        return float(torch.linalg.matrix_norm(layer.weight, 2))
    if isinstance(layer, nn.Conv2d):
        return operator_norm(layer, x)
    if isinstance(layer, nn.LeakyReLU):
        return max(1.0, abs(layer.negative_slope))
    if isinstance(layer, _BATCH_NORMS) and layer.running_var is not None:
        scale = (layer.running_var + layer.eps).rsqrt()
        return float((scale if layer.weight is None else scale * layer.weight).abs().max())
    return 1.0 if isinstance(layer, _AT_MOST_1) else math.nan


def operator_norm(layer: nn.Module, x: Tensor) -> float:
    """The largest singular value of an affine layer's linear part on inputs like x, [1, ...], by block power iteration."""
    random = torch.Generator("cpu").manual_seed(0)
    count = min(TOGETHER, x.numel())
    block = torch.randn(x.numel(), count, generator=random, dtype=torch.float64, device="cpu").to(x)
    constant = layer(torch.zeros_like(x))
    found = 0.0
    for _ in range(ROUNDS):
        block = torch.linalg.qr(block).Q  # orthonormal, so that the others do not fall into the first
        inputs = block.T.reshape(count, *x.shape[1:]).requires_grad_()
        with torch.enable_grad():
            outputs = layer(inputs) - constant
            (block,) = torch.autograd.grad(outputs, inputs, outputs.detach())
        before, found = found, float(torch.linalg.matrix_norm(outputs.detach().flatten(1), 2))
        if abs(found - before) <= TOLERANCE * found:
            break
        block = block.flatten(1).T
    return found


def local_slope(
    discriminator: nn.Module, images: Tensor, condition: tuple[Tensor, ...] = (), *, radius: float
) -> float:
    """The largest ||grad_x D(x)|| that was found in the balls of this Euclidean radius around the images.

    Looked at are the images, and of each WALKS points on the ball's surface up D and as many down: the first in the direction
    of the gradient at the image, every other in that of the gradient at the point before it. These are power iterations of
    the largest difference quotient: a network of ReLUs has no curvature whose ascent would lead to steeper places.
    Points need not be images, as the constant is one over all inputs.
    """
    at_images = _gradient(discriminator, images, condition)
    largest = image_norm(at_images).max()
    for way in (1.0, -1.0):
        gradient = at_images
        for _ in range(WALKS):
            length = image_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
            step = gradient / length.view(-1, *[1] * (images.dim() - 1))
            gradient = _gradient(discriminator, images + way * radius * step, condition)
            largest = torch.maximum(largest, image_norm(gradient).max())
    return float(largest)


def _gradient(discriminator: nn.Module, images: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        # D is given a copy, which its first layer may change in place.
        (gradient,) = torch.autograd.grad(discriminator(x.clone(), *condition).sum(), x)
    return gradient
