"""The generator's loss and its slope at each logit in one launch: most are the discriminator's term of one side."""

from __future__ import annotations

import torch
from torch import Tensor

from .buffered_ops import logit_terms_into
from .formulas import objective_of
from .objective import Objective


def generator_terms(logits: Tensor, objective: str | Objective) -> tuple[Tensor, Tensor] | None:
    """`generator_loss` of the logits [n] and its derivative with respect to them, for their backward: 0-d, float32 (float64 for
    float64 logits), and [n] in their dtype. None where it is no term of the discriminator's loss."""
    side = objective_of(objective).generator_side
    if side is None:
        return None
    logits = logits.detach()
    weights, none = torch.empty_like(logits), logits[:0]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sums = torch.empty(4, dtype=dtype, device=logits.device)
    if side == "real":  # as if they were real
        logit_terms_into((logits, none), (weights, none), sums, weight=1.0, objective=objective)
        return sums[0], weights
    logit_terms_into((none, logits), (none, weights), sums, weight=-1.0, objective=objective)
    return -sums[0], weights
