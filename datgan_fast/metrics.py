"""Measures of a generator's images that need no other network."""

from __future__ import annotations

import torch
from torch import Tensor


def sliced_wasserstein(real: Tensor, fake: Tensor, projections: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of two equally large image sets [n, ...] in pixel space (Rabin et al. 2011).

    The images are projected on random unit directions; in one dimension the optimal transport matches sorted values.
    """
    if len(real) != len(fake):
        raise ValueError(f"sliced_wasserstein compares sets of one size; got {len(real)} and {len(fake)} images")
    x, y = real.flatten(1).float(), fake.flatten(1).float()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=generator).to(x.device)
    directions = directions / directions.norm(dim=0, keepdim=True)
    difference = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
    return difference.square().mean().sqrt().item()
