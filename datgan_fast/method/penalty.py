"""What a penalty is: a callable (discriminator, x_real, x_fake) -> 0-d tensor. Our own add up by `+`, with anybody's too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .step_arguments import Penalty


class Addable:
    """A penalty that knows how the field writes it, and can be added to another, or to a user's callable."""

    def __call__(self, discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        raise NotImplementedError

    def as_written(self, discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        """The same value and gradients with the same random draws, by plain autograd: what a user would write."""
        return self(discriminator, x_real, x_fake)

    def __add__(self, other: Penalty) -> Total:
        return Total(self, other) if callable(other) else NotImplemented

    def __radd__(self, other: Penalty | Literal[0]) -> Addable:
        if isinstance(other, int) and other == 0:  # where sum() begins
            return self
        return Total(other, self) if callable(other) else NotImplemented


@dataclass(frozen=True, init=False)
class Total(Addable):
    """The sum of penalties; a sum among them is taken apart."""

    parts: tuple[Penalty, ...]

    def __init__(self, *penalties: Penalty) -> None:
        for p in penalties:
            if not callable(p):
                raise TypeError(f"a penalty must be a callable (discriminator, x_real, x_fake); got {type(p).__name__}")
        parts = (q for p in penalties for q in (p.parts if isinstance(p, Total) else (p,)))
        object.__setattr__(self, "parts", tuple(parts))

    def __call__(self, discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        return torch.stack([p(discriminator, x_real, x_fake) for p in self.parts]).sum()

    def as_written(self, discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        return torch.stack([as_written(p)(discriminator, x_real, x_fake) for p in self.parts]).sum()


def total(*penalties: Penalty) -> Total | None:
    """The sum of several penalties, the library's own or anybody's callables; None for none."""
    return Total(*penalties) if penalties else None


def as_written(penalty: Penalty) -> Penalty:
    """What the reference runs: a built-in penalty by plain autograd, anybody else's as it is."""
    return penalty.as_written if isinstance(penalty, Addable) else penalty


def column(values: Tensor, images: Tensor) -> Tensor:
    """One number for each image, shaped to multiply the images."""
    return values.view(-1, *[1] * (images.dim() - 1))
