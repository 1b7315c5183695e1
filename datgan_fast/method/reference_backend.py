"""datgan_fast.reference as a backend: plain torch on any device, for every objective and norm in the tables, and any other
objective."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from . import reference_operations
from .arguments import (
    Attack,
    AttackInputs,
    Logits,
    LogitTerms,
    LossOutputs,
    Pair,
    Perturbation,
    StepOutputs,
    TermOutputs,
    check_index,
)
from .formulas import FORMULATIONS, NORMS, OBJECTIVES, as_float, image_norm, objective_of
from .objective import Objective


class ReferenceBackend:
    # The tables themselves, so that a row added to them is known.
    objectives: Collection[str] = OBJECTIVES
    formulations: Collection[str] = FORMULATIONS
    norms: Collection[str] = NORMS

    def attack_loss(self, logits: Logits, objective: str | Objective, formulation: str, out: LossOutputs) -> None:
        terms = reference_operations.attack_terms(logits, objective, formulation)
        for k, (loss, coefficient) in enumerate(terms):
            out.losses[k] = loss
            out.coefficients[k].copy_(coefficient)

    def logit_terms(self, logits: Pair, how: LogitTerms, out: TermOutputs) -> None:
        row, sums = objective_of(how.objective), out.sums
        sums.zero_()
        scores = logits[0].to(sums.dtype), logits[1].to(sums.dtype)
        sides = zip(scores, out.weights, (row.g1, row.g2), (row.slope1, row.slope2), (1, -1), strict=True)
        for t, weights, g, slope, sign in sides:
            if len(t):
                weight = slope(t) * (-how.weight / len(t))
                floor = torch.full_like(weight, how.floor / len(t))
                weights.copy_(torch.where(weight.abs() < floor, torch.where(weight < 0, -floor, floor), weight))
                sums[0] -= g(t).mean()
                sums[1] += sign * t.mean()
        real, fake = out.coefficients
        if real is not None and fake is not None:
            losses = LossOutputs(sums[2:], (real, fake))
            self.attack_loss(Logits(scores, scores), how.objective, how.formulation, losses)

    def perturb(self, x: Tensor, grad: Tensor, how: Perturbation, out: Tensor) -> None:
        out.copy_(reference_operations.perturbed(x, grad, how))

    def attack_step(self, inputs: AttackInputs, attack: Attack, out: StepOutputs) -> None:
        step = reference_operations.attack_step_of(inputs, attack)
        out.losses[0], out.losses[1] = step.loss_real, step.loss_fake
        wanted = (*out.adv, *out.grads, *out.norms)
        values = (*step[:4], *map(_unweighted_norm, inputs.v, inputs.weights))
        for tensor, value in zip(wanted, values, strict=True):
            if tensor is not None and value is not None:
                tensor.copy_(value)

    def sample_images(self, images: Tensor, index: Tensor, mirrored: Tensor | None, out: Tensor) -> None:
        if index.device.type == "cpu":
            check_index(index, len(images))
        batch = images.index_select(0, index.clamp(0, len(images) - 1))
        if mirrored is not None:
            batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(-1), batch)
        out.copy_(batch.float().div_(127.5).sub_(1))


def _unweighted_norm(v: Tensor, weight: Tensor | None) -> Tensor:
    """||v_i / weight_i||, divided first: the squares of a saturated objective's small gradients would underflow."""
    if weight is None:
        return image_norm(v)
    v, weight = as_float(v), as_float(weight)
    norm = image_norm(v / weight.view(-1, *[1] * (v.dim() - 1)))
    return torch.where(weight == 0, torch.nan, norm)
