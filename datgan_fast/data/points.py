"""Points in the plane whose distribution one can see: a ring and a grid of Gaussians, and a Swiss roll.

The three toy distributions of Gulrajani et al. (2017), "Improved Training of Wasserstein GANs", Figure 1, scaled into the square
[-1, 1]^2 and with one standard deviation of noise for all. Generated points may lie outside, where nothing clips them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COUNT = 50_000
RADIUS = 0.75  # of the ring and the roll; half the side of the grid
NOISE = 0.02


def ring_means() -> Tensor:
    """Of 8 Gaussians, evenly on a circle around 0: float32 [8, 2]."""
    angle = torch.arange(8, dtype=torch.float32, device="cpu") * (2 * math.pi / 8)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def grid_means() -> Tensor:
    """Of 25 Gaussians, 5 x 5, around 0: float32 [25, 2]."""
    side = torch.linspace(-RADIUS, RADIUS, 5, dtype=torch.float32, device="cpu")
    return torch.cartesian_prod(side, side)


def gaussians(means: Tensor, n: int = COUNT, seed: int = 0) -> Tensor:
    """n points of an equal mixture of Gaussians: float32 [n, 2] on the CPU, in random order; the same for the same seed.

    Raises ValueError for n < 1.
    """
    random, noise = _noise(n, seed)
    return means[torch.randint(len(means), (n,), generator=random, device="cpu")] + noise


def swissroll(n: int = COUNT, seed: int = 0) -> Tensor:
    """n points of a spiral of one and a half turns, uniform in the angle; otherwise as `gaussians`."""
    random, noise = _noise(n, seed)
    angle = math.pi * (1.5 + 3 * torch.rand(n, generator=random, dtype=torch.float32, device="cpu"))
    radius = RADIUS * angle / (4.5 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + noise


def _noise(n: int, seed: int) -> tuple[torch.Generator, Tensor]:
    """The noise of n points, and the generator that goes on from there."""
    if n < 1:
        raise ValueError(f"n: {n} should be at least 1.")
    random = torch.Generator("cpu").manual_seed(seed)
    return random, NOISE * torch.randn(n, 2, generator=random, dtype=torch.float32, device="cpu")
