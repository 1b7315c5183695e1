"""Direct adversarial training in plain differentiable torch: the specification, the tests' oracle, the --no-fused path.

Source: Li, Xia, Li (2020), "Direct Adversarial Training for GANs". A discriminator D gives one logit per image; r are the
logits of m real images, f those of n generated ones; D maximises E[g1(r)] + E[g2(f)]. Half-precision inputs are computed
in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .arguments import Attack
from .autograd_graph import Graph, next_number
from .formulas import (
    FORMULATIONS,
    NORMS,
    OBJECTIVES,
    Bound,
    as_float,
    clip,
    default_alpha,
    discriminator_loss,
    g1,
    g2,
    generator_loss,
    image_norm,
    normalise,
    project,
    random_point,
    slope1,
    slope2,
)
from .module_state import one_power_iteration, unchanged_state
from .step_arguments import (
    NO_GRADIENT,
    StepArguments,
    check_graph,
    check_lambda,
    check_penalty,
    check_trainable,
    checked,
    image_gradients,
    logits_of,
)

__all__ = [
    "FORMULATIONS",
    "NORMS",
    "OBJECTIVES",
    "AttackStep",
    "DiscriminatorStep",
    "Penalty",
    "adversarial_batch",
    "attack_loss",
    "attack_step",
    "attack_terms",
    "clip",
    "default_alpha",
    "discriminator_loss",
    "discriminator_step",
    "g1",
    "g2",
    "generator_loss",
    "image_norm",
    "logits_of",
    "normalise",
    "perturb",
    "project",
    "random_point",
    "slope1",
    "slope2",
]

Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]


class AttackStep(NamedTuple):
    """Result of the single pass: perturbed images, the attack loss's input gradients (None if not asked for), losses."""

    adv_real: Tensor  # like x_real
    adv_fake: Tensor  # like x_fake
    grad_real: Tensor | None  # [m, ...], dtype of input_grad_real
    grad_fake: Tensor | None  # [n, ...], dtype of input_grad_fake
    loss_real: Tensor  # 0-d, float32 or float64
    loss_fake: Tensor


class DiscriminatorStep(NamedTuple):
    """What one discriminator step saw; every tensor is detached."""

    loss: Tensor  # 0-d: lambda_clean * loss_clean + lambda_adv * loss_adv + penalty
    loss_clean: Tensor  # 0-d: -(mean g1(r) + mean g2(f)) on the clean images
    loss_adv: Tensor  # 0-d: the same on the perturbed images; 0 where lambda_adv is 0
    penalty: Tensor  # 0-d; 0 without a penalty
    real_logits: Tensor  # [m], clean images
    fake_logits: Tensor  # [n]
    wasserstein: Tensor  # 0-d: mean r - mean f
    input_grad_norm: Tensor  # [m + n]: ||grad_x D(x)||, NaN for images the clean loss gives no weight
    path: str  # "shared", "separate" or "reference"
    reason: str = ""  # why it is not "shared"


def attack_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    objective: str = "vanilla",
    formulation: str = "eq10",
    reference_real_logits: Tensor | None = None,
    reference_fake_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch-mean-referenced absolute difference, (loss_real, loss_fake), each 0-d, summed over the batch.

    `eq10` is Eq. 9 and 10, `alg1` Algorithm 1 lines 6-7, `batch_mean` the authors' later code. The target is a constant. A
    side with nothing to compare itself with (an empty batch) has loss 0.
    """
    sides = _attack_sides(
        real_logits, fake_logits, objective, formulation, reference_real_logits, reference_fake_logits
    )
    loss_real, loss_fake = (difference.abs().sum() for difference, _ in sides)
    return loss_real, loss_fake


def attack_terms(
    real_logits: Tensor,
    fake_logits: Tensor,
    objective: str,
    formulation: str,
    reference_real_logits: Tensor | None,
    reference_fake_logits: Tensor | None,
) -> list[tuple[Tensor, Tensor]]:
    """(loss, its gradient with respect to the side's logits in closed form) of the real and of the generated side."""
    sides = _attack_sides(
        real_logits.detach(),
        fake_logits.detach(),
        objective,
        formulation,
        reference_real_logits,
        reference_fake_logits,
    )
    return [(difference.abs().sum(), difference.sign() * slope()) for difference, slope in sides]


def _attack_sides(
    real_logits: Tensor,
    fake_logits: Tensor,
    objective: str,
    formulation: str,
    reference_real_logits: Tensor | None,
    reference_fake_logits: Tensor | None,
) -> list[tuple[Tensor, Callable[[], Tensor]]]:
    """(score - target, its slope) of each side: [m] and [m], or, where the batch has one score, [1] and [m]."""
    real, fake = as_float(real_logits), as_float(fake_logits)
    reference_real = as_float(real_logits if reference_real_logits is None else reference_real_logits).detach()
    reference_fake = as_float(fake_logits if reference_fake_logits is None else reference_fake_logits).detach()

    def side(
        t: Tensor, own: Tensor, other: Tensor, g: Callable, slope: Callable
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        if not (len(t) and len(own) and len(other)):
            return t[:0].sum().view(1), lambda: torch.zeros_like(t)
        if formulation == "eq10":
            return g(objective, t) - g(objective, other).mean(), lambda: slope(objective, t)
        if formulation == "alg1":
            return g(objective, t) - g(objective, other.mean()), lambda: slope(objective, t)
        if formulation == "batch_mean":
            # own.mean() carries the value and t the gradient, 1/len(own) for each logit
            mean = own.mean() + (t - t.detach()).sum() / len(own)
            return (mean - other.mean()).view(1), lambda: torch.ones_like(t) / len(own)
        raise ValueError(f"formulation must be one of {', '.join(FORMULATIONS)}; got {formulation!r}")

    scores = [(g1, slope1), (g2, slope2)]
    if formulation == "alg1":
        scores.reverse()
    return [
        side(real, reference_real, reference_fake, *scores[0]),
        side(fake, reference_fake, reference_real, *scores[1]),
    ]


def perturb(
    x: Tensor,
    grad: Tensor,
    eps: float,
    *,
    norm: str = "none",
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
) -> Tensor:
    """x_adv = clip(x - eps * n(grad)), shape and dtype of x; the perturbation is a constant."""
    images = as_float(x)
    grad = grad.detach().to(torch.promote_types(images.dtype, grad.dtype))
    return clip(images - eps * normalise(grad, norm), clip_min, clip_max).to(x.dtype)


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
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    reference_real_logits: Tensor | None = None,
    reference_fake_logits: Tensor | None = None,
    grad_weight_real: Tensor | None = None,
    grad_weight_fake: Tensor | None = None,
) -> AttackStep:
    """The single pass in separate steps; see `datgan_fast.attack_step` for the arguments."""
    (loss_real, coefficient_real), (loss_fake, coefficient_fake) = attack_terms(
        real_logits, fake_logits, objective, formulation, reference_real_logits, reference_fake_logits
    )

    def side(x: Tensor, v: Tensor, coefficient: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        if weight is not None:
            coefficient = torch.where(weight == 0, 0.0, coefficient / weight)
        grad = coefficient.view(-1, *[1] * (v.dim() - 1)) * as_float(v.detach())
        adv = perturb(x.detach(), grad, eps, norm=norm, clip_min=clip_min, clip_max=clip_max)
        return adv, grad.to(v.dtype)

    adv_real, grad_real = side(x_real, input_grad_real, coefficient_real, grad_weight_real)
    adv_fake, grad_fake = side(x_fake, input_grad_fake, coefficient_fake, grad_weight_fake)
    return AttackStep(adv_real, adv_fake, grad_real, grad_fake, loss_real, loss_fake)


def adversarial_batch(
    discriminator: nn.Module,
    x_real: Tensor,
    x_fake: Tensor,
    *,
    eps: float,
    objective: str = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    steps: int = 1,
    alpha: float | None = None,
    random_start: bool = False,
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
) -> tuple[Tensor, Tensor]:
    """Perturbed real and generated images, with autograd through the whole attack loss; see `datgan_fast.adversarial_batch`."""
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    return _adversarial_batch(
        discriminator, checked("adversarial_batch", discriminator, x_real, x_fake, attack, steps, alpha, random_start)
    )


def _adversarial_batch(discriminator: nn.Module, given: StepArguments) -> tuple[Tensor, Tensor]:
    attack = given.attack
    clean = (given.x_real, given.x_fake)
    adv = list(clean)
    if given.random_start:
        adv = [clip(random_point(x, attack.eps, attack.norm), attack.clip_min, attack.clip_max) for x in adv]
    target: tuple[Tensor, Tensor] | None = None  # the clean batches' logits
    with unchanged_state(discriminator), torch.enable_grad():
        if given.random_start:
            with torch.no_grad():
                target = logits_of(discriminator, clean[0].clone()), logits_of(discriminator, clean[1].clone())
        for _ in range(given.steps):
            adv = [x.detach().requires_grad_() for x in adv]
            r, f = (_scores(discriminator, x, attack.objective) for x in adv)
            if target is None or attack.formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = r.detach(), f.detach()
            losses = attack_loss(
                r,
                f,
                objective=attack.objective,
                formulation=attack.formulation,
                reference_real_logits=target[0],
                reference_fake_logits=target[1],
            )
            grads = image_gradients([losses[0] + losses[1]], adv, [torch.ones_like(losses[0])])
            adv = [
                perturb(x.detach(), grad, given.alpha, norm=attack.norm, clip_min=None, clip_max=None)
                for x, grad in zip(adv, grads, strict=True)
            ]
            if not given.single:
                adv = [project(x, x_clean, attack.eps, attack.norm) for x, x_clean in zip(adv, clean, strict=True)]
            adv = [clip(x, attack.clip_min, attack.clip_max) for x in adv]
    return adv[0], adv[1]


def _scores(discriminator: nn.Module, images: Tensor, objective: str) -> Tensor:
    """D(images) with the graph to the leaf `images`; D is given a copy, which it may change."""
    begun = next_number()
    logits = logits_of(discriminator, images.clone())
    check_graph(Graph(logits, begun), [images], objective)
    return logits


def discriminator_step(
    discriminator: nn.Module,
    x_real: Tensor,
    x_fake: Tensor,
    *,
    eps: float,
    objective: str = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    lambda_clean: float = 1.0,
    lambda_adv: float = 1.0,
    penalty: Penalty | None = None,
    steps: int = 1,
    alpha: float | None = None,
    random_start: bool = False,
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    grad_scale: float | Tensor = 1.0,
) -> DiscriminatorStep:
    """Algorithm 1, lines 5-10, as the paper writes it; accumulates into the parameters' .grad.

    Spectral normalisation makes one power iteration, at the beginning; the attack leaves running statistics and the random
    state as it found them, so that the clean pass is the one the attack saw.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    given = checked("discriminator_step", discriminator, x_real, x_fake, attack, steps, alpha, random_start)
    check_trainable(given.network)
    return discriminator_step_checked(
        discriminator,
        given,
        check_lambda("lambda_clean", lambda_clean),
        check_lambda("lambda_adv", lambda_adv),
        penalty,
        grad_scale,
    )


def discriminator_step_checked(
    discriminator: nn.Module,
    given: StepArguments,
    lambda_clean: float,
    lambda_adv: float,
    penalty: Penalty | None,
    grad_scale: float | Tensor,
    reason: str = "fused=False",
) -> DiscriminatorStep:
    objective = given.attack.objective
    with one_power_iteration(discriminator), torch.enable_grad():
        if lambda_adv:
            adv_real, adv_fake = _adversarial_batch(discriminator, given)
        clean = [x.detach().requires_grad_() for x in (given.x_real, given.x_fake)]
        r, f = (_scores(discriminator, x, objective) for x in clean)
        r.retain_grad()
        f.retain_grad()
        loss_clean = discriminator_loss(r, f, objective)
        loss = torch.zeros_like(loss_clean)
        if lambda_clean:
            loss = loss + lambda_clean * loss_clean
        loss_adv = torch.zeros_like(loss_clean)
        if lambda_adv:
            loss_adv = discriminator_loss(
                logits_of(discriminator, adv_real), logits_of(discriminator, adv_fake), objective
            )
            loss = loss + lambda_adv * loss_adv
        penalty_value = torch.zeros_like(loss_clean)
        if penalty is not None:
            penalty_value = check_penalty(penalty(discriminator, given.x_real, given.x_fake))
            loss = loss + penalty_value
        if not lambda_clean:  # the clean images' gradients are wanted for their norms alone
            torch.autograd.backward([r, f], [torch.ones_like(r), torch.ones_like(f)], inputs=[r, f, *clean])
        if loss.requires_grad:
            (loss * grad_scale).backward()

    norms = []
    for x, t in zip(clean, (r, f), strict=True):
        if x.grad is None:
            raise ValueError(NO_GRADIENT)
        assert t.grad is not None  # retained above
        # divided first: the squares of a saturated objective's small gradients would underflow
        norms.append(image_norm(as_float(x.grad) / as_float(t.grad).view(-1, *[1] * (x.dim() - 1))))
    return DiscriminatorStep(
        loss=loss.detach(),
        loss_clean=loss_clean.detach(),
        loss_adv=loss_adv.detach(),
        penalty=penalty_value.detach(),
        real_logits=r.detach(),
        fake_logits=f.detach(),
        wasserstein=(r.detach().mean(dtype=loss.dtype) - f.detach().mean(dtype=loss.dtype)),
        input_grad_norm=torch.cat(norms),
        path="reference",
        reason=reason,
    )
