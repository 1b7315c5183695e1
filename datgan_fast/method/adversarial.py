"""The attack by itself: real and generated images pushed towards the other batch's mean score, in one step or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .arguments import Attack, AttackInputs, Pair
from .batches import Batches, merged_or_apart
from .differentiable import clipped_from
from .formulas import Bound, clip, project
from .independence import Forward
from .module_state import unchanged_state
from .ops import attack_step_into, perturb
from .reference import random_points
from .step_arguments import StepArguments, checked, image_gradients, logits_of


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
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Real and generated images pushed towards the other batch's mean discriminator score.

    Args:
        discriminator: any module that gives one logit per image. Its parameters' .grad and its buffers stay as they are.
        x_real, x_fake: [m, ...] and [n, ...] images, any float dtype and layout.
        eps: size of the perturbation, in units of x; with several steps the radius of the ball for norm "l2" and "linf".
        objective, formulation, norm, clip_min, clip_max: as in `attack_step`.
        steps: 1 is the paper's attack; more are PGD (Madry et al. 2018), towards the clean batches' mean scores
            ("batch_mean": the moving batches' means).
        alpha: size of each step; default eps for one step, 2.5 eps / steps in a ball, eps / steps for the other norms.
        random_start: begin at a random point of the ball (norm "l2" or "linf").
        differentiable: whether a gradient goes from the perturbed images back to x_real and x_fake and what they were made from;
            the perturbation is a constant, so that it is that of torch.clamp where the last step ended.

    Returns:
        (adv_real, adv_fake), like the images given, detached unless `differentiable`.

    Raises:
        ValueError: an argument has the wrong value, images lie outside [clip_min, clip_max] (looked at in a discriminator's first
            attack), or the discriminator does not give one logit per image that depends on the image.
        TypeError: images or numbers are of another kind.
        RuntimeError: inside torch.inference_mode().

    Source: Li, Xia, Li (2020), Eq. 9 and 10, Algorithm 1 lines 5-8.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    given = checked("adversarial_batch", discriminator, x_real, x_fake, attack, steps, alpha, random_start)
    if not differentiable:
        return adversarial_images(given)
    real, fake = adversarial_images(given, clipped=False)
    return clipped_from(x_real, real, clip_min, clip_max), clipped_from(x_fake, fake, clip_min, clip_max)


def adversarial_images(given: StepArguments, clipped: bool = True) -> Pair:
    """`clipped`: whether the last step is; every other one is."""
    start = (given.x_real, given.x_fake)
    if given.random_start:
        start = random_points(start, given.attack)  # here, where the random state moves on
    return merged_or_apart(given, lambda merge: _attacked(given, start, merge, clipped))


def _attacked(given: StepArguments, start: Pair, merge: bool, clipped: bool) -> Pair:
    discriminator, attack = given.network.module, given.attack
    # Several steps are projected first and clipped then.
    at_once = given.single and clipped
    step = attack if at_once else attack._replace(eps=given.alpha, clip_min=None, clip_max=None)
    with unchanged_state(discriminator), torch.enable_grad():
        batches = Batches(given, merge)
        adv = batches.join(*start)
        target: Pair | None = None  # the clean batches' logits
        if given.random_start:
            with torch.no_grad():
                target = batches.sides([logits_of(discriminator, images.clone()) for images in batches.clean])
        for _ in range(given.steps):
            x = leaves(adv)
            passes = [batches.forward(images) for images in x]
            logits = batches.sides([p.logits.detach() for p in passes])
            if target is None or attack.formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = logits
            moved_to = attack_backward(batches, x, logits, passes, step, target)
            del passes
            if not given.single:
                moved_to = [
                    project(t, clean, attack.eps, attack.norm) for t, clean in zip(moved_to, batches.clean, strict=True)
                ]
            adv = moved_to if at_once else [clip(t, attack.clip_min, attack.clip_max) for t in moved_to]
    return batches.sides(adv if clipped else moved_to)


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def attack_backward(
    batches: Batches,
    x: list[Tensor],
    logits: Pair,
    passes: list[Forward],
    attack: Attack,
    target: Pair,
    retain_graph: bool = False,
) -> list[Tensor]:
    """One attack step by a backward of its own, from the graphs of `passes` to the leaves `x`."""
    scores = [p.logits for p in passes]
    if all(p.why_not is None and not p.hooks.hung for p in passes):
        # Each image's gradient is its own, so that its coefficient can come later.
        v = image_gradients(scores, x, [torch.ones_like(t) for t in scores], retain_graph)
        adv = [torch.empty_like(t, requires_grad=False) for t in x]
        attack_step_into(AttackInputs(batches.sides(x), batches.sides(v), logits, target), attack, batches.sides(adv))
        return adv
    gradients = image_gradients(scores, x, batches.join(*coefficients(logits, target, attack)), retain_graph)
    return moved(x, gradients, attack)


def moved(x: Sequence[Tensor], gradients: Sequence[Tensor], attack: Attack) -> list[Tensor]:
    return [
        perturb(images, gradient, attack.eps, norm=attack.norm, clip_min=attack.clip_min, clip_max=attack.clip_max)
        for images, gradient in zip(x, gradients, strict=True)
    ]


def coefficients(logits: Pair, target: Pair, attack: Attack) -> tuple[Tensor, ...]:
    """The attack loss's gradients with respect to the logits."""
    _, *found = torch.ops.datgan_fast.attack_loss(*logits, *target, attack.objective, attack.formulation, "")
    return tuple(c.to(t.dtype) for c, t in zip(found, logits, strict=True))
