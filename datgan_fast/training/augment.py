"""Differentiable augmentation in front of the discriminator, for training on few images.

Zhao et al. (2020), "Differentiable Augmentation for Data-Efficient GAN Training": colour, translation and cutout, of whatever the
discriminator sees, real and generated images alike, in its own update and in the generator's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..method.drawn import drawn

AugmentName = Literal["none", "diffaugment"]

SHIFT = 1 / 8  # of the height and of the width, at most
CUTOUT = 1 / 2  # the side of the square that is cut out, of the image's


class Augmented(nn.Module):
    """D of augmented images: what is done to an image is drawn anew for each image in each forward, by torch's default generator
    on the images' device.

    Images [n, C, H, W], float; everything else that a call has is handed on to D. The result is differentiable in the images, as
    often as D is, and every image is treated by itself.

    In a discriminator step the attack goes through the augmentation. Its gradient is that of the clean pass, or, in the
    reference and in attacks with forwards of their own, of passes before it, after which the random numbers are rewound: the
    attack and the clean pass begin with the same draw. A CUDA graph cannot rewind them, so that those attacks see other draws in
    it. The perturbed images get a new draw.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, images: Tensor, *condition: Tensor) -> Tensor:
        return self.discriminator(diffaugment(images), *condition)


def diffaugment(images: Tensor) -> Tensor:
    """Images [n, C, H, W] with their colour changed, shifted, and with a square cut out, each differently."""
    return cut_out(shifted(recoloured(images)))


def recoloured(images: Tensor) -> Tensor:
    """Brightness plus -1/2 to 1/2, saturation times 0 to 2, contrast times 1/2 to 3/2, in this order."""
    brightness, saturation, contrast = (_uniform(images) for _ in range(3))
    x = images + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def shifted(images: Tensor) -> Tensor:
    """Moved by a whole number of pixels along both sides, at most SHIFT of them; zeros come in."""
    for dim in (2, 3):
        side = images.shape[dim]
        most = int(side * SHIFT + 0.5)
        source = _positions(images, dim) + _integers(images, -most, most + 1)
        inside = (source >= 0) & (source < side)
        images = images.gather(dim, source.clamp(0, side - 1).expand_as(images)) * inside
    return images


def cut_out(images: Tensor) -> Tensor:
    """Zero in a square of CUTOUT of the side, whose middle is anywhere in the image."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for dim in (2, 3):
        side = images.shape[dim]
        length = int(side * CUTOUT + 0.5)
        first = _integers(images, 0, side + 1 - length % 2) - length // 2
        position = _positions(images, dim)
        inside = inside & (position >= first) & (position < first + length)
    return images * ~inside


def _uniform(images: Tensor) -> Tensor:
    empty = torch.empty(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
    return drawn(empty, Tensor.uniform_)


def _integers(images: Tensor, low: int, high: int) -> Tensor:
    empty = torch.empty(len(images), 1, 1, 1, dtype=torch.int64, device=images.device)
    return drawn(empty, lambda t: t.random_(low, high))


def _positions(images: Tensor, dim: int) -> Tensor:
    """0, 1, ... along the dimension."""
    shape = [1] * images.dim()
    shape[dim] = -1
    return torch.arange(images.shape[dim], dtype=torch.int64, device=images.device).view(shape)
