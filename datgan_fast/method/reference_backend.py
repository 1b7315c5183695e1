"""datgan_fast.reference as a backend: plain torch on any device, for every objective and norm in the tables."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from . import reference
from .arguments import Attack, AttackInputs, Logits, LossOutputs, Perturbation, StepOutputs
from .formulas import FORMULATIONS, NORMS, OBJECTIVES, image_norm


class ReferenceBackend:
    # The tables themselves, so that a row added to them is known.
    objectives: Collection[str] = OBJECTIVES
    formulations: Collection[str] = FORMULATIONS
    norms: Collection[str] = NORMS

    def attack_loss(self, logits: Logits, objective: str, formulation: str, out: LossOutputs) -> None:
        terms = reference.attack_terms(logits, objective, formulation)
        for k, (loss, coefficient) in enumerate(terms):
            out.losses[k] = loss
            out.coefficients[k].copy_(coefficient)

    def perturb(self, x: Tensor, grad: Tensor, how: Perturbation, out: Tensor) -> None:
        out.copy_(reference.perturbed(x, grad, how))

    def attack_step(self, inputs: AttackInputs, attack: Attack, out: StepOutputs) -> None:
        step = reference.attack_step_of(inputs, attack)
        out.losses[0], out.losses[1] = step.loss_real, step.loss_fake
        wanted = (*out.adv, *out.grads, *out.norms)
        values = (*step[:4], *(image_norm(v) for v in inputs.v))
        for tensor, value in zip(wanted, values, strict=True):
            if tensor is not None and value is not None:
                tensor.copy_(value)
