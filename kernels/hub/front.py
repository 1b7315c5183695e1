"""The attack of direct adversarial training (Li, Xia, Li 2020) in Triton, as a kernel of a hub: this file is its `__init__.py`.

The operations are datgan_fast's of the same names, without its choice of backends, its autograd and its torch.ops.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .kernels import BACKEND
from .method.arguments import (
    Attack,
    AttackInputs,
    Perturbation,
    StepOutputs,
    check_images,
    check_perturbation,
    check_step,
    loss_dtype,
)

__all__ = ["AttackStep", "attack_step", "perturb"]


class AttackStep(NamedTuple):
    """Perturbed images like x, and both sides' attack losses, 0-d."""

    adv_real: Tensor
    adv_fake: Tensor
    loss_real: Tensor
    loss_fake: Tensor


def attack_step(
    x_real: Tensor,
    x_fake: Tensor,
    input_grad_real: Tensor,
    input_grad_fake: Tensor,
    real_logits: Tensor,
    fake_logits: Tensor,
    eps: float,
    *,
    objective: str = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
) -> AttackStep:
    """Moves images [m, ...] and [n, ...] along the discriminator's input gradients towards the other batch's mean score.

    input_grad_real, input_grad_fake    the logits' own gradients with respect to their images, shapes of x
    real_logits, fake_logits            [m] and [n]
    eps                                 step size in units of x; its length per image with norm="l2"
    objective                           vanilla, fgan, wasserstein, hinge or least_squares
    formulation                         eq10, alg1 or batch_mean
    norm                                none, l2, linf or clamp

    One launch on the tensors' CUDA device. Raises ValueError or TypeError for what these cannot be.
    """
    x, logits = (x_real, x_fake), (real_logits, fake_logits)
    inputs = AttackInputs(x, (input_grad_real, input_grad_fake), logits, logits)
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    check_step(inputs, attack)
    losses = torch.empty(2, dtype=loss_dtype(logits), device=x_real.device)
    out = StepOutputs((torch.empty_like(x_real), torch.empty_like(x_fake)), (None, None), (None, None), losses)
    BACKEND.attack_step(inputs, attack, out)
    return AttackStep(*out.adv, losses[0], losses[1])


def perturb(
    x: Tensor,
    grad: Tensor,
    eps: float,
    *,
    norm: str = "none",
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
) -> Tensor:
    """clip(x - eps * n(grad), clip_min, clip_max) of images [n, ...] along a gradient of their shape; see attack_step."""
    how = Perturbation(eps, norm, clip_min, clip_max)
    check_images("x", x, grad)
    check_perturbation(how)
    out = torch.empty_like(x)
    BACKEND.perturb(x, grad, how, out)
    return out
