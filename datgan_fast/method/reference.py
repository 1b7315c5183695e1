"""Direct adversarial training in plain differentiable torch: the specification, the tests' oracle, the --no-fused path.

Source: Li, Xia, Li (2020), "Direct Adversarial Training for GANs". A discriminator D gives one logit per image; r are the
logits of m real images, f those of n generated ones; D maximises E[g1(r)] + E[g2(f)]. Of a map or tokens every position counts:
an image's attack loss is the mean over its positions, every other mean one over images and positions; scales are summed, each
with targets of its own. Half-precision inputs are computed in float32; float64 stays float64.

Example:
    >>> list(dat.reference.OBJECTIVES)
    ['vanilla', 'fgan', 'wasserstein', 'hinge', 'least_squares', 'relativistic']
    >>> dat.reference.FORMULATIONS, list(dat.reference.NORMS)
    (('eq10', 'alg1', 'batch_mean'), ['none', 'l2', 'linf', 'clamp'])
    >>> penalty: dat.reference.Penalty = lambda discriminator, x_real, x_fake: discriminator(x_real).square().mean()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .arguments import SIDES, Attack, Pair, Perturbation
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
    objective_of,
    project,
    random_point,
    slope1,
    slope2,
    weights_are_alike,
)
from .launchers import Backward, past_refusals, run_backward
from .module_state import one_power_iteration, unchanged_state
from .nothing import say_nothing, step_of_nothing
from .objective import Objective
from .penalty import applied, as_written, over, same_step, terms_of, with_images
from .processes import Processes, difference_of_means
from .records import DiscriminatorStep
from .reference_operations import (
    AttackStep,
    aims_of,
    attack_loss,
    attack_step,
    attack_terms,
    differences_towards,
    perturb,
    perturbed,
)
from .scores import ScoredSides, Scores, by_scale, check_scales
from .step_arguments import (
    NO_GRADIENT,
    LossTerms,
    Penalty,
    StepArguments,
    Targets,
    check_graph,
    check_penalty,
    check_trainable,
    checked,
    checked_terms,
    image_gradients,
    logits_of,
    sides_may_lack,
)
from .wrappers import as_its_module, reduced_once

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
    group: Any = None,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Perturbed real and generated images, with autograd through the whole attack loss; see `datgan_fast.adversarial_batch`.

    Example:
        >>> D = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(D.weight)  # an image's score is the sum of its two pixels
        >>> x_real, x_fake = torch.tensor([[0.5, 0.25]]), torch.tensor([[-0.5, -0.25]])
        >>> dat.reference.adversarial_batch(D, x_real, x_fake, eps=0.25, objective="wasserstein")
        (tensor([[0.2500, 0.0000]]), tensor([[-0.2500,  0.0000]]))
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    beside = Beside(condition_real, condition_fake, scores)
    given = checked(
        "adversarial_batch", discriminator, x_real, x_fake, attack, steps, alpha, random_start, beside, group
    )
    with as_its_module(given.network):
        real, fake = _adversarial_batch(given, clipped=not differentiable)
    if not differentiable:
        return real, fake
    return clipped_from(x_real, real, clip_min, clip_max), clipped_from(x_fake, fake, clip_min, clip_max)


def _adversarial_batch(given: StepArguments, clipped: bool = True) -> Pair:
    """`clipped`: whether the last step is; every other one is."""
    attack, clean, sides = given.attack, (given.x_real, given.x_fake), given.calls.sides
    if given.empty:
        say_nothing(given)
        return clean
    adv = random_points(clean, attack) if given.random_start else clean  # outside, where the random state moves on
    target: Targets | None = None  # the clean batches' scores
    with unchanged_state(given.network.module), torch.enable_grad():
        if given.random_start:
            with torch.no_grad():
                target = given.targets(_of_both(sides, clean, lambda call, images: call(images.clone())))
        for number in range(given.steps):
            adv = adv[0].detach().requires_grad_(), adv[1].detach().requires_grad_()
            scores = _of_both(sides, adv, lambda call, images: _scores(call, images, attack.objective))
            if target is None or attack.formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = given.targets((scores[0].detach(), scores[1].detach()), number + given.random_start)
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


def _attack_gradients(x: Pair, scores: ScoredSides, target: Targets, attack: Attack) -> list[Tensor]:
    """Of each scale's attack loss, in which an image counts by the mean over its positions (batch_mean: one mean over all)."""
    losses = []
    aims = target if isinstance(target, list) else None
    every = by_scale(scores, scores if isinstance(target, list) else target)
    for scale, (own, targets, widths) in enumerate(every):
        aim = aims_of(targets, attack.objective, attack.formulation) if aims is None else aims[scale]
        sides = differences_towards(own, aim, attack.objective, attack.formulation)
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


def _of_both(sides: Sequence[Call], x: Pair, run: Callable[[Call, Tensor], Scores]) -> ScoredSides:
    """D on both batches. An empty one, which a process may have, has no scores, which have the other's scales."""
    if len(x[0]) and len(x[1]):
        return run(sides[0], x[0]), run(sides[1], x[1])
    k = 0 if len(x[0]) else 1
    found, none = run(sides[k], x[k]), x[1 - k]
    others = found._replace(logits=found.logits[:0] + none.sum())
    return (found, others) if k == 0 else (others, found)


def _loss(scores: ScoredSides, objective: str | Objective, processes: Processes | None = None) -> Tensor:
    """-(mean g1(r) + mean g2(f)), the means over images and positions, or the objective's loss; summed over the scales. Of
    several processes this one's part of it."""
    check_scales(*scores)
    if processes is not None:
        return _part_of_loss(scores, objective, processes)
    real, fake = (t.scales() for t in scores)
    return torch.stack([discriminator_loss(r, f, objective) for r, f in zip(real, fake, strict=True)]).sum()


def _part_of_loss(scores: ScoredSides, objective: str | Objective, processes: Processes) -> Tensor:
    row = objective_of(objective)
    if row.loss is not None:
        return processes.part_of_loss(_loss(processes.everybodys(scores), objective))
    terms = [
        -processes.part(side, g(t).mean())
        for side, g, own in zip(SIDES, (row.g1, row.g2), scores, strict=True)
        for t in own.scales()
        if processes.counts(side)
    ]
    return torch.stack(terms).sum()


def _kept(images: Pair, wanted: bool) -> Pair:
    """Copies for D, which may change what it is given, where a penalty wants the images afterwards."""
    return (images[0].clone(), images[1].clone()) if wanted else images


def _penalty(given: StepArguments, terms: LossTerms, adv: Pair | None) -> Tensor:
    """On the clean images, or on both. Of several processes this one's part: each term of a sum is a mean over images of its
    own."""
    processes, beside = given.processes, given.calls.beside.given()
    parts = with_images(terms_of(terms.penalty), processes)

    def value(p: Penalty, x: Pair) -> Tensor:
        mean = check_penalty(applied(as_written(p), given.network.call, *x, beside))
        return mean if processes is None else processes.part(over(p), mean)

    with sides_may_lack(given):
        values = [value(p, (given.x_real, given.x_fake)) for p in parts]
        if terms.on_both and adv is not None:
            with same_step():
                values += [value(p, adv) for p in parts]
    return torch.stack(values).sum() if values else as_float(given.x_real).new_zeros(())


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
    penalty_on: Literal["clean", "both"] = "clean",
    steps: int = 1,
    alpha: float | None = None,
    random_start: bool = False,
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    grad_scale: float | Tensor = 1.0,
    condition_real: Any = None,
    condition_fake: Any = None,
    scores: Callable[[Any], Any] | None = None,
    group: Any = None,
    backward: Backward | None = None,
) -> DiscriminatorStep:
    """Algorithm 1, lines 5-10, as the paper writes it; accumulates into the parameters' .grad.

    Spectral normalisation makes one power iteration, at the beginning; the attack leaves running statistics and the random
    state as it found them, so that the clean pass is the one the attack saw.

    penalty_on: "both" adds penalty(D, x_real_adv, x_fake_adv) after the clean images' term.

    backward: called once, with the whole loss times grad_scale, in place of the loss's own `.backward()`.

    Example:
        >>> D = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(D.weight)  # an image's score is the sum of its two pixels
        >>> x_real, x_fake = torch.tensor([[0.5, 0.25]]), torch.tensor([[-0.5, -0.25]])
        >>> step = dat.reference.discriminator_step(D, x_real, x_fake, eps=0.25, objective="wasserstein")
        >>> step.loss_clean, step.loss_adv, step.path  # the perturbed images are harder to tell apart
        (tensor(-1.5000), tensor(-0.5000), 'reference')
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    beside = Beside(condition_real, condition_fake, scores)
    given = checked(
        "discriminator_step", discriminator, x_real, x_fake, attack, steps, alpha, random_start, beside, group
    )
    check_trainable(given.network)
    terms = checked_terms(lambda_clean, lambda_adv, penalty, grad_scale, backward, penalty_on)
    with reduced_once(given.network):
        return discriminator_step_checked(given, terms)


def discriminator_step_checked(
    given: StepArguments, terms: LossTerms, reason: str = "fused=False"
) -> DiscriminatorStep:
    objective, sides, processes = given.attack.objective, given.calls.sides, given.processes
    launcher, module = terms.launcher, given.network.module
    if given.empty:
        return step_of_nothing(given, terms)
    with past_refusals(launcher, given.network), one_power_iteration(module), torch.enable_grad():
        adv: Pair | None = None
        if terms.lambda_adv:
            adv = _adversarial_batch(given)  # lines 6 to 8
        clean = given.x_real.detach().requires_grad_(), given.x_fake.detach().requires_grad_()
        scores = _of_both(sides, clean, lambda call, images: _scores(call, images, objective))
        given.targets((scores[0].detach(), scores[1].detach()))  # without an attack nobody has asked yet
        logits = [t.logits for t in scores]
        for t in logits:
            t.retain_grad()
        loss_clean = _loss(scores, objective, processes)
        loss, loss_adv, penalty = (torch.zeros_like(loss_clean) for _ in range(3))
        if adv is not None:
            given_to_d = _kept(adv, terms.penalises_perturbed)
            loss_adv = _loss(_of_both(sides, given_to_d, lambda call, images: call(images)), objective, processes)
        if terms.penalty is not None:
            penalty = _penalty(given, terms, adv)
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
        wasserstein=difference_of_means(r.to(loss.dtype), f.to(loss.dtype), processes),
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
