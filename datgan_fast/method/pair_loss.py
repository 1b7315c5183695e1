"""A discriminator's loss that compares the scores of both batches: its value, and its slope at each score."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Pair
from .objective import Objective, as_float


def pair_terms(
    objective: Objective, scores: Pair, weight: float | Tensor, floors: tuple[float, float]
) -> tuple[Pair, Tensor]:
    """What a step wants of an objective with a `loss`.

    Args:
        objective: whose loss it is.
        scores: of the real and of the generated images; no gradient flows into them.
        weight: factor in the weights.
        floors: of each side: no weight is smaller in magnitude than this over the side's number of images; 0: none.

    Returns:
        The weights with which the scores go backward, weight times the loss's slopes and like the scores; and the loss without
        `weight` and the Wasserstein estimate mean r - mean f, [2], float32 (float64 for float64 scores).

    Raises:
        ValueError, TypeError: the loss is none of the scores, or no floating 0-d tensor.
    """
    assert objective.loss is not None
    real, fake = leaves = [as_float(t.detach()).requires_grad_() for t in scores]
    with torch.enable_grad():
        loss = objective.loss(real, fake)
    slopes = torch.autograd.grad(loss, leaves, materialize_grads=True)
    dtype = torch.promote_types(real.dtype, fake.dtype)
    sums = torch.stack([loss.detach().to(dtype), (real.mean(dtype=dtype) - fake.mean(dtype=dtype)).detach()])
    weights = [
        (_floored(slope, floor) * weight).to(own.dtype)
        for own, slope, floor in zip(scores, slopes, floors, strict=True)
    ]
    return (weights[0], weights[1]), sums


def _floored(slope: Tensor, floor: float) -> Tensor:
    if not floor:
        return slope
    least = torch.full_like(slope, floor / len(slope))
    return torch.where(slope.abs() < least, least.copysign(slope), slope)
