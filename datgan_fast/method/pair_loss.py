"""A discriminator's loss that compares the scores of both batches: its value, and its slope at each score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import Pair
from .objective import Objective, as_float
from .scores import ScoredSides, check_scales


def pair_terms(
    objective: Objective, scores: ScoredSides, weight: float | Tensor, floors: tuple[float, float]
) -> tuple[Pair, Tensor]:
    """What a step wants of an objective with a `loss`, which of several scales is the sum over them.

    Args:
        objective: whose loss it is.
        scores: of the real and of the generated images; no gradient flows into them.
        weight: factor in the weights.
        floors: of each side: no weight is smaller in magnitude than this over the side's number of images; 0: none.

    Returns:
        The weights with which the scores go backward, weight times the loss's slopes and like the logits; and the loss without
        `weight` and the Wasserstein estimate mean r - mean f, [2], float32 (float64 for float64 scores).

    Raises:
        ValueError, TypeError: the loss is none of the scores, or no floating 0-d tensor.
    """
    assert objective.loss is not None
    check_scales(*scores)
    found = [_slopes(objective.loss, *pair) for pair in zip(*(t.scales() for t in scores), strict=True)]
    real, fake = (
        (_floored(side.join(list(slopes)), floor) * weight).to(side.logits.dtype)
        for side, slopes, floor in zip(scores, zip(*(slopes for slopes, _ in found), strict=True), floors, strict=True)
    )
    sums = [sums for _, sums in found]
    return (real, fake), sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


def _slopes(loss: Callable[[Tensor, Tensor], Tensor], real: Tensor, fake: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Of one scale."""
    real, fake = (as_float(t.detach()).requires_grad_() for t in (real, fake))
    with torch.enable_grad():
        value = loss(real, fake)
    slopes = torch.autograd.grad(value, (real, fake), materialize_grads=True)
    dtype = torch.promote_types(real.dtype, fake.dtype)
    estimate = real.detach().mean(dtype=dtype) - fake.detach().mean(dtype=dtype)
    return slopes, torch.stack([value.detach().to(dtype), estimate])


def _floored(slopes: Tensor, floor: float) -> Tensor:
    if not floor:
        return slopes
    least = torch.full_like(slopes, floor / len(slopes))
    return torch.where(slopes.abs() < least, least.copysign(slopes), slopes)
