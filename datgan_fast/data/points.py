"""Points in the plane whose distribution one can see: a ring and a grid of Gaussians, and a Swiss roll.

The three toy distributions of Gulrajani et al. (2017), "Improved Training of Wasserstein GANs", Figure 1, scaled into the square
[-1, 1]^2 and with one standard deviation of noise for all. Generated points may lie outside, where nothing clips them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOY_DATASETS = ("ring", "grid", "swissroll")
POINTS = 50_000
EXTENT = 0.75  # radius of the ring and the roll, half the side of the grid
NOISE = 0.02


def toy_points(dataset: str, n: int = POINTS, seed: int = 0) -> Tensor:
    """n points of a toy distribution, float32 [n, 2] on the CPU, in random order; the same for the same seed.

    ring       8 Gaussians, evenly on a circle around 0
    grid       25 Gaussians, 5 x 5, around 0
    swissroll  a spiral of one and a half turns, uniform in the angle

    Raises ValueError for another data set or n < 1.
    """
    if n < 1:
        raise ValueError(f"n: {n} should be at least 1.")
    random = torch.Generator("cpu").manual_seed(seed)
    noise = NOISE * torch.randn(n, 2, generator=random, dtype=torch.float32, device="cpu")
    if dataset == "swissroll":
        angle = math.pi * (1.5 + 3 * torch.rand(n, generator=random, dtype=torch.float32, device="cpu"))
        radius = EXTENT * angle / (4.5 * math.pi)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + noise
    centres = toy_modes(dataset)
    return centres[torch.randint(len(centres), (n,), generator=random, device="cpu")] + noise


def toy_modes(dataset: str) -> Tensor:
    """The Gaussians' means, float32 [modes, 2]. Raises ValueError for a data set that has none."""
    if dataset == "ring":
        angle = torch.arange(8, dtype=torch.float32, device="cpu") * (2 * math.pi / 8)
        return EXTENT * torch.stack([angle.cos(), angle.sin()], 1)
    if dataset == "grid":
        side = torch.linspace(-EXTENT, EXTENT, 5, dtype=torch.float32, device="cpu")
        return torch.cartesian_prod(side, side)
    raise ValueError(f"dataset: {dataset!r} should be ring or grid.")
