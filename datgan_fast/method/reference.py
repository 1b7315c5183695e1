"""Direct adversarial training in plain differentiable torch: the specification, the tests' oracle, the --no-fused path.

Source: Li, Xia, Li (2020), "Direct Adversarial Training for GANs". A discriminator D gives one logit per image; r are the
logits of m real images, f those of n generated ones; D maximises E[g1(r)] + E[g2(f)]. Of a map or tokens every position counts:
an image's attack loss is the mean over its positions, every other mean one over images and positions; scales are summed, each
with targets of its own. Half-precision inputs are computed in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Attack, Logits, Pair, Perturbation
from .autograd_graph import Graph, next_number
from .conditions import Beside, Call
from .differentiable import clipped_from
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
    weights_are_alike,
)
from .launchers import Backward, past_refusals, run_backward
from .module_state import one_power_iteration, unchanged_state
from .objective import Objective
from .penalty import applied, as_written
from .reference_operations import AttackStep, attack_loss, attack_step, attack_terms, differences, perturb, perturbed
from .scores import ScoredSides, Scores, by_scale, check_scales
from .step_arguments import (
    NO_GRADIENT,
    LossTerms,
    Penalty,
    StepArguments,
    check_graph,
    check_penalty,
    check_trainable,
    checked,
    checked_terms,
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


class DiscriminatorStep(NamedTuple):
    """What one discriminator step saw; every tensor is detached."""

    loss: Tensor  # 0-d: lambda_clean * loss_clean + lambda_adv * loss_adv + penalty
    loss_clean: Tensor  # 0-d: -(mean g1(r) + mean g2(f)) on the clean images
    loss_adv: Tensor  # 0-d: the same on the perturbed images; 0 where lambda_adv is 0
    penalty: Tensor  # 0-d; 0 without a penalty
    real_logits: Tensor  # [m], clean images; of maps the mean over an image's positions, summed over scales
    fake_logits: Tensor  # [n]
    wasserstein: Tensor  # 0-d: mean r - mean f
    # [m + n]: ||grad_x D(x)||; NaN, in the reference and in float16, for images that have no weight in the loss, and for maps
    # with an objective whose slope is not the same everywhere
    input_grad_norm: Tensor
    path: str  # "shared", "separate" or "reference"
    reason: str = ""  # why it is not "shared"


def adversarial_batch(
    discriminator: Callable[..., Any],
    x_real: Tensor,
    x_fake: Tensor,
    *,
    eps: float,
    objective: str | Objective = "vanilla",
    formulation: str = "eq10",
    norm: str = "none",
    steps: int = 1,
    alpha: float | None = None,
    random_start: bool = False,
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    condition_real: Any = None,
    condition_fake: Any = None,
    scores: Callable[[Any], Any] | None = None,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Perturbed real and generated images, with autograd through the whole attack loss; see `datgan_fast.adversarial_batch`."""
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    beside = Beside(condition_real, condition_fake, scores)
    given = checked("adversarial_batch", discriminator, x_real, x_fake, attack, steps, alpha, random_start, beside)
    if not differentiable:
        return _adversarial_batch(given)
    real, fake = _adversarial_batch(given, clipped=False)
    return clipped_from(x_real, real, clip_min, clip_max), clipped_from(x_fake, fake, clip_min, clip_max)


def _adversarial_batch(given: StepArguments, clipped: bool = True) -> Pair:
    """`clipped`: whether the last step is; every other one is."""
    attack, clean, (real, fake) = given.attack, (given.x_real, given.x_fake), given.calls.sides
    adv = random_points(clean, attack) if given.random_start else clean  # outside, where the random state moves on
    target: ScoredSides | None = None  # the clean batches' scores
    with unchanged_state(given.network.module), torch.enable_grad():
        if given.random_start:
            with torch.no_grad():
                target = real(clean[0].clone()), fake(clean[1].clone())
        for _ in range(given.steps):
            adv = adv[0].detach().requires_grad_(), adv[1].detach().requires_grad_()
            scores = _scores(real, adv[0], attack.objective), _scores(fake, adv[1], attack.objective)
            if target is None or attack.formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = scores[0].detach(), scores[1].detach()
            grads = _attack_gradients(adv, scores, target, attack)
            moved = _moved(given, adv[0], grads[0], clean[0]), _moved(given, adv[1], grads[1], clean[1])
            adv = _clipped(moved, attack)
    return adv if clipped else moved


def random_points(clean: Pair, attack: Attack) -> Pair:
    """Where an attack with a random start begins."""
    real, fake = (random_point(x, attack.eps, attack.norm) for x in clean)
    return _clipped((real, fake), attack)


def _clipped(x: Pair, attack: Attack) -> Pair:
    return clip(x[0], attack.clip_min, attack.clip_max), clip(x[1], attack.clip_min, attack.clip_max)


def _attack_gradients(x: Pair, scores: ScoredSides, target: ScoredSides, attack: Attack) -> list[Tensor]:
    """Of each scale's attack loss, in which an image counts by the mean over its positions (batch_mean: one mean over all)."""
    losses = []
    for own, targets, widths in by_scale(scores, target):
        sides = differences(Logits(own, targets), attack.objective, attack.formulation)
        for (difference, _), k in zip(sides, widths, strict=True):
            losses.append(difference.abs().sum() / (1 if attack.formulation == "batch_mean" else k))
    loss = torch.stack(losses).sum()
    return image_gradients([loss], x, [torch.ones_like(loss)])


def _moved(given: StepArguments, x: Tensor, grad: Tensor, clean: Tensor) -> Tensor:
    """One step of the attack before the clip; of several, each is projected first and clipped then."""
    attack = given.attack
    moved = perturbed(x.detach(), grad, Perturbation(given.alpha, attack.norm, None, None))
    return moved if given.single else project(moved, clean, attack.eps, attack.norm)


def _scores(call: Call, images: Tensor, objective: str | Objective) -> Scores:
    """D(images) with the graph to the leaf `images`; D is given a copy, which it may change."""
    begun = next_number()
    scores = call(images.clone())
    check_graph(Graph(scores.logits, begun), [images], objective)
    return scores


def _loss(scores: ScoredSides, objective: str | Objective) -> Tensor:
    """-(mean g1(r) + mean g2(f)), the means over images and positions, or the objective's loss; summed over the scales."""
    check_scales(*scores)
    real, fake = (t.scales() for t in scores)
    return torch.stack([discriminator_loss(r, f, objective) for r, f in zip(real, fake, strict=True)]).sum()


def discriminator_step(
    discriminator: Callable[..., Any],
    x_real: Tensor,
    x_fake: Tensor,
    *,
    eps: float,
    objective: str | Objective = "vanilla",
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
    condition_real: Any = None,
    condition_fake: Any = None,
    scores: Callable[[Any], Any] | None = None,
    backward: Backward | None = None,
) -> DiscriminatorStep:
    """Algorithm 1, lines 5-10, as the paper writes it; accumulates into the parameters' .grad.

    Spectral normalisation makes one power iteration, at the beginning; the attack leaves running statistics and the random
    state as it found them, so that the clean pass is the one the attack saw.

    backward: called once, with the whole loss times grad_scale, in place of the loss's own `.backward()`.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    beside = Beside(condition_real, condition_fake, scores)
    given = checked("discriminator_step", discriminator, x_real, x_fake, attack, steps, alpha, random_start, beside)
    check_trainable(given.network)
    terms = checked_terms(lambda_clean, lambda_adv, penalty, grad_scale, backward)
    return discriminator_step_checked(given, terms)


def discriminator_step_checked(
    given: StepArguments, terms: LossTerms, reason: str = "fused=False"
) -> DiscriminatorStep:
    objective, discriminator, sides = given.attack.objective, given.network.call, given.calls.sides
    launcher, module = terms.launcher, given.network.module
    with past_refusals(launcher, given.network), one_power_iteration(module), torch.enable_grad():
        if terms.lambda_adv:
            adv = _adversarial_batch(given)  # lines 6 to 8
        clean = [x.detach().requires_grad_() for x in (given.x_real, given.x_fake)]
        scores = _scores(sides[0], clean[0], objective), _scores(sides[1], clean[1], objective)
        logits = [t.logits for t in scores]
        for t in logits:
            t.retain_grad()
        loss_clean = _loss(scores, objective)
        loss, loss_adv, penalty = (torch.zeros_like(loss_clean) for _ in range(3))
        if terms.lambda_adv:
            loss_adv = _loss((sides[0](adv[0]), sides[1](adv[1])), objective)
        if terms.penalty is not None:
            written = as_written(terms.penalty)
            penalty = check_penalty(
                applied(written, discriminator, given.x_real, given.x_fake, given.calls.beside.given())
            )
        if terms.lambda_clean:
            loss = terms.lambda_clean * loss_clean
        loss = loss + terms.lambda_adv * loss_adv + penalty
        if not terms.lambda_clean:  # the clean images' gradients are wanted for their norms alone
            torch.autograd.backward(logits, [t.shares() for t in scores], inputs=[*logits, *clean])
        if loss.requires_grad:
            run_backward(loss * terms.grad_scale, launcher)  # line 10
    r, f = (t.detach().by_image() for t in scores)
    alike = weights_are_alike(objective, terms.lambda_clean)
    return DiscriminatorStep(
        loss=loss.detach(),
        loss_clean=loss_clean.detach(),
        loss_adv=loss_adv.detach(),
        penalty=penalty.detach(),
        real_logits=r,
        fake_logits=f,
        wasserstein=(r.mean(dtype=loss.dtype) - f.mean(dtype=loss.dtype)),
        input_grad_norm=torch.cat([_input_grad_norm(x, t, alike) for x, t in zip(clean, scores, strict=True)]),
        path="reference",
        reason=reason,
    )


def _input_grad_norm(x: Tensor, scores: Scores, alike: bool) -> Tensor:
    """||grad_x D(x)|| of each image, from what the backward of a loss left in both gradients."""
    gradient = scores.logits.grad
    if gradient is None:  # a loss that leaves this side out
        return torch.full((len(x),), torch.nan, dtype=as_float(scores.logits).dtype, device=x.device)
    if x.grad is None:
        raise ValueError(NO_GRADIENT)
    weights = scores.weights_by_image(as_float(gradient), alike)
    # Divided first: the squares of a saturated objective's small gradients would underflow.
    return image_norm(as_float(x.grad) / weights.view(-1, *[1] * (x.dim() - 1)))
