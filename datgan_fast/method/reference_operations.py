"""attack_loss, perturb and attack_step in plain differentiable torch: a part of reference.py, run by the reference backend.

Half-precision inputs are computed in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Attack, AttackInputs, Logits, Pair, Perturbation
from .formulas import FORMULATIONS, Bound, as_float, check_choice, clip, normalise, objective_of
from .objective import Formula, Objective
from .renamed import targets_renamed


class AttackStep(NamedTuple):
    """Result of the single pass: perturbed images, the attack loss's input gradients (None if not asked for), losses.

    Example:
        >>> x, grad, logits = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([1.0])
        >>> step = dat.attack_step(x, x, grad, grad, logits, -logits, 0.5, objective="wasserstein", return_grad=False)
        >>> step.adv_fake, step.loss_fake, step.grad_fake
        (tensor([[0.5000, 0.5000]]), tensor(2.), None)
    """

    adv_real: Tensor  #: like x_real
    adv_fake: Tensor  #: like x_fake
    grad_real: Tensor | None  #: [m, ...], dtype of input_grad_real
    grad_fake: Tensor | None  #: [n, ...], dtype of input_grad_fake
    loss_real: Tensor  #: 0-d, float32 or float64
    loss_fake: Tensor  #: the same


@targets_renamed
def attack_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    objective: str | Objective = "vanilla",
    formulation: str = "eq10",
    target_real_logits: Tensor | None = None,
    target_fake_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch-mean-referenced absolute difference, (loss_real, loss_fake), each 0-d, summed over the batch.

    `eq10` is Eq. 9 and 10, `alg1` Algorithm 1 lines 6-7, `batch_mean` the authors' later code. The target is a constant. A
    side with nothing to compare itself with (an empty batch) has loss 0.

    Example:
        >>> dat.reference.attack_loss(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.0]), objective="wasserstein")
        (tensor(4.), tensor(4.))
    """
    logits = logits_with_targets(real_logits, fake_logits, target_real_logits, target_fake_logits)
    (real, _), (fake, _) = differences(logits, objective, formulation)
    return real.abs().sum(), fake.abs().sum()


def logits_with_targets(
    real: Tensor, fake: Tensor, target_real: Tensor | None = None, target_fake: Tensor | None = None
) -> Logits:
    """The batch's own logits are the targets where no others are given."""
    return Logits(
        (real, fake), (real if target_real is None else target_real, fake if target_fake is None else target_fake)
    )


class Aims(NamedTuple):
    """Where a batch's images, in one scale, are pushed; all 0-d, without history."""

    towards: Pair  # what a real image's score is compared with, and a generated one's; of batch_mean the other side's mean logit
    counts: tuple[int | Tensor, int | Tensor]  # of the logits of each side, over which the means are


def attack_terms(logits: Logits, objective: str | Objective, formulation: str) -> list[tuple[Tensor, Tensor]]:
    """(loss, its gradient with respect to the side's logits in closed form) of the real and of the generated side.

    Example:
        >>> from datgan_fast.method.arguments import Logits
        >>> logits = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.0])
        >>> real, fake = dat.reference.attack_terms(Logits(logits, logits), "wasserstein", "eq10")
        >>> real
        (tensor(4.), tensor([1., 1.]))
    """
    return terms_towards(logits.own, aims_of(logits.targets, objective, formulation), objective, formulation)


def terms_towards(
    own: Pair, aims: Aims | None, objective: str | Objective, formulation: str
) -> list[tuple[Tensor, Tensor]]:
    """`attack_terms`, of logits whose aims are known; None: there is nothing to compare with."""
    sides = differences_towards((own[0].detach(), own[1].detach()), aims, objective, formulation)
    return [(difference.abs().sum(), difference.sign() * slope()) for difference, slope in sides]


def aims_of(targets: Pair, objective: str | Objective, formulation: str) -> Aims | None:
    """Of the logits whose means the other side is compared with; None where a side has none."""
    check_choice("formulation", formulation, FORMULATIONS)
    real, fake = (as_float(t).detach() for t in targets)
    if not (len(real) and len(fake)):
        return None
    real, fake = compared((real, fake), objective, formulation)
    return towards_means((real.mean(), fake.mean()), (len(real), len(fake)), objective, formulation)


def compared(logits: Pair, objective: str | Objective, formulation: str) -> Pair:
    """That of the logits whose means the aims are made of: eq10 takes the mean of scores, the others the mean logit."""
    row = objective_of(objective)
    return (row.g2(logits[0]), row.g1(logits[1])) if formulation == "eq10" else logits


def towards_means(
    means: Pair, counts: tuple[int | Tensor, int | Tensor], objective: str | Objective, formulation: str
) -> Aims:
    """The aims, from the means of `compared`."""
    row, (real, fake) = objective_of(objective), means
    return Aims((row.g2(fake), row.g1(real)) if formulation == "alg1" else (fake, real), counts)


Difference = tuple[Tensor, Callable[[], Tensor]]  # (score - target, the score's slope)


def differences(logits: Logits, objective: str | Objective, formulation: str) -> tuple[Difference, Difference]:
    """Of each side: [m] and [m], or, where the batch has one score, [1] and [m]."""
    return differences_towards(logits.own, aims_of(logits.targets, objective, formulation), objective, formulation)


def differences_towards(
    own: Pair, aims: Aims | None, objective: str | Objective, formulation: str
) -> tuple[Difference, Difference]:
    """`differences`, of logits whose aims are known; None: there is nothing to compare with."""
    row = objective_of(objective)
    real, fake = map(as_float, own)
    if aims is None:
        return _no_difference(real), _no_difference(fake)
    towards_real, towards_fake = aims.towards
    if formulation == "batch_mean":
        m, n = aims.counts
        return _mean_difference(real, towards_fake, towards_real, m), _mean_difference(
            fake, towards_real, towards_fake, n
        )
    first, second = (row.g1, row.slope1), (row.g2, row.slope2)
    if formulation == "alg1":
        first, second = second, first
    return _difference(real, towards_real, *first), _difference(fake, towards_fake, *second)


def _difference(t: Tensor, target: Tensor, g: Formula, slope: Formula) -> Difference:
    """eq10, alg1: each image's score, and the other side's mean score or the score of its mean logit."""
    return g(t) - target, lambda: slope(t)


def _mean_difference(t: Tensor, own: Tensor, other: Tensor, count: int | Tensor) -> Difference:
    """batch_mean: the two batches' mean logits."""
    if not len(t):
        return _no_difference(t)
    # own carries the value and t the gradient, 1/count for each logit
    mean = own + (t - t.detach()).sum() / count
    return (mean - other).view(1), lambda: torch.ones_like(t) / count


def _no_difference(t: Tensor) -> Difference:
    return t[:0].sum().view(1), lambda: torch.zeros_like(t)


def perturb(
    x: Tensor,
    grad: Tensor,
    eps: float,
    *,
    norm: str = "none",
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    differentiable: bool = False,
) -> Tensor:
    """x_adv = clip(x - eps * n(grad)), shape and dtype of x; the perturbation is a constant.

    Example:
        >>> dat.reference.perturb(torch.tensor([[0.5, -0.5]]), torch.tensor([[3.0, 4.0]]), 0.125)
        tensor([[ 0.1250, -1.0000]])
    """
    return perturbed(x if differentiable else x.detach(), grad, Perturbation(eps, norm, clip_min, clip_max))


def perturbed(x: Tensor, grad: Tensor, how: Perturbation) -> Tensor:
    """Differentiable with respect to x. Rounded before the clip: a bound that x's dtype has not is none to fall below."""
    images = as_float(x)
    grad = grad.detach().to(torch.promote_types(images.dtype, grad.dtype))
    return clip((images - how.eps * normalise(grad, how.norm)).to(x.dtype), how.clip_min, how.clip_max)


@targets_renamed
def attack_step(
    x_real: Tensor,
    x_fake: Tensor,
    input_grad_real: Tensor,
    input_grad_fake: Tensor,
    real_logits: Tensor,
    fake_logits: Tensor,
    eps: float,
    *,
    objective: str | Objective = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    target_real_logits: Tensor | None = None,
    target_fake_logits: Tensor | None = None,
    grad_weight_real: Tensor | None = None,
    grad_weight_fake: Tensor | None = None,
    differentiable: bool = False,
) -> AttackStep:
    """The single pass in separate steps; see `datgan_fast.attack_step` for the arguments.

    The losses are differentiable any number of times, where they are to be at all.

    Example:
        >>> x, grad, logits = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([1.0])
        >>> dat.reference.attack_step(x, x, grad, grad, logits, -logits, 0.5, objective="wasserstein").adv_real
        tensor([[-0.5000, -0.5000]])
    """
    inputs = AttackInputs(
        (x_real, x_fake),
        (input_grad_real, input_grad_fake),
        *logits_with_targets(real_logits, fake_logits, target_real_logits, target_fake_logits),
        (grad_weight_real, grad_weight_fake),
    )
    return attack_step_of(inputs, Attack(eps, objective, formulation, norm, clip_min, clip_max), differentiable)


def attack_step_of(inputs: AttackInputs, attack: Attack, differentiable: bool = False) -> AttackStep:
    real, fake = attack_terms(inputs.scores, attack.objective, attack.formulation)

    def side(k: int, coefficient: Tensor) -> tuple[Tensor, Tensor]:
        x, v, weight = inputs.x[k], inputs.v[k], inputs.weights[k]
        if weight is not None:
            weight = weight.detach()
            coefficient = torch.where(weight == 0, 0.0, coefficient / weight)
        grad = coefficient.view(-1, *[1] * (v.dim() - 1)) * as_float(v.detach())
        return perturbed(x if differentiable else x.detach(), grad, attack.perturbation), grad.to(v.dtype)

    (adv_real, grad_real), (adv_fake, grad_fake) = side(0, real[1]), side(1, fake[1])
    losses = real[0], fake[0]
    if differentiable:
        scores = differences(inputs.scores, attack.objective, attack.formulation)
        losses = scores[0][0].abs().sum(), scores[1][0].abs().sum()
    return AttackStep(adv_real, adv_fake, grad_real, grad_fake, *losses)
