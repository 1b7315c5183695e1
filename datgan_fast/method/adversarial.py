"""The attack by itself: real and generated images pushed towards the other batch's mean score, in one step or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import Attack, AttackInputs, Pair
from .batches import Batches, merged_or_apart
from .buffered_ops import attack_step_into
from .conditions import Beside
from .differentiable import clipped_from
from .formulas import Bound, clip, project
from .independence import Forward
from .module_state import unchanged_state
from .nothing import say_nothing
from .objective import Objective
from .ops import attack_coefficients, perturb
from .reference import random_points
from .reference_operations import Aims, terms_towards
from .scores import ScoredSides, by_scale
from .step_arguments import StepArguments, Targets, checked, image_gradients
from .wrappers import as_its_module


# Long: its arguments, and what is said of them.
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
    """Real and generated images pushed towards the other batch's mean discriminator score.

    Args:
        discriminator: a module, or any callable, that gives scores: one logit per image, a map [n, 1, ...], tokens [n, t], or a
            list of such (scales). Its parameters' .grad and its buffers stay as they are.
        x_real, x_fake: [m, ...] and [n, ...] images, any float dtype and layout.
        eps: size of the perturbation, in units of x; with several steps the radius of the ball for norm "l2" and "linf".
        objective, formulation, norm, clip_min, clip_max: as in `attack_step`.
        steps: 1 is the paper's attack; more are PGD (Madry et al. 2018), towards the clean batches' mean scores
            ("batch_mean": the moving batches' means).
        alpha: size of each step; default eps for one step, 2.5 eps / steps in a ball, eps / steps for the other norms.
        random_start: begin at a random point of the ball (norm "l2" or "linf").
        condition_real, condition_fake: what the discriminator takes beside the images: a tensor, a tuple (positional arguments)
            or a dict (keywords). Tensors in it with one row per image travel with their images; the rest is handed on as it is.
        scores: callable from the discriminator's output to its scores; default: the output itself.
        group: a torch.distributed process group that shares the batch: each process gives its own images, of one side or none at
            all perhaps, and what the attack aims at is the mean over the images of all. Default: that of a discriminator in
            DistributedDataParallel or FSDP2, else none.
        differentiable: whether a gradient goes from the perturbed images back to x_real and x_fake and what they were made from;
            the perturbation is a constant, so that it is that of torch.clamp where the last step ended.

    Returns:
        (adv_real, adv_fake), like the images given, detached unless `differentiable`.

    Raises:
        ValueError: an argument has the wrong value, images lie outside [clip_min, clip_max] (looked at in a discriminator's first
            attack), or the discriminator does not give scores that depend on the image.
        TypeError: images or numbers are of another kind.
        RuntimeError: inside torch.inference_mode().

    Example:
        >>> D = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(D.weight)  # an image's score is the sum of its two pixels
        >>> x_real, x_fake = torch.tensor([[0.5, 0.25]]), torch.tensor([[-0.5, -0.25]])
        >>> dat.adversarial_batch(D, x_real, x_fake, eps=0.25, objective="wasserstein")
        (tensor([[0.2500, 0.0000]]), tensor([[-0.2500,  0.0000]]))

    Source: Li, Xia, Li (2020), Eq. 9 and 10, Algorithm 1 lines 5-8.
    """
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    beside = Beside(condition_real, condition_fake, scores)
    given = checked(
        "adversarial_batch", discriminator, x_real, x_fake, attack, steps, alpha, random_start, beside, group
    )
    with as_its_module(given.network):
        real, fake = adversarial_images(given, clipped=not differentiable)
    if not differentiable:
        return real, fake
    return clipped_from(x_real, real, clip_min, clip_max), clipped_from(x_fake, fake, clip_min, clip_max)


def adversarial_images(given: StepArguments, clipped: bool = True) -> Pair:
    """`clipped`: whether the last step is; every other one is."""
    start = (given.x_real, given.x_fake)
    if given.empty:
        say_nothing(given)
        return start
    if given.random_start:
        start = random_points(start, given.attack)  # here, where the random state moves on
    return merged_or_apart(given, lambda merge: _attacked(given, start, merge, clipped))


def _attacked(given: StepArguments, start: Pair, merge: bool, clipped: bool) -> Pair:
    attack = given.attack
    # Several steps are projected first and clipped then.
    at_once = given.single and clipped
    step = attack if at_once else attack._replace(eps=given.alpha, clip_min=None, clip_max=None)
    with unchanged_state(given.network.module), torch.enable_grad():
        batches = Batches(given, merge)
        adv = batches.join(*start)
        target: Targets | None = None  # the clean batches' scores
        if given.random_start:
            with torch.no_grad():
                clean = [batches.scores(k, images.clone()) for k, images in enumerate(batches.clean)]
                target = given.targets(batches.scored_sides(clean))
        for step_number in range(given.steps):
            x = leaves(adv)
            passes = [batches.forward(k, images) for k, images in enumerate(x)]
            scores = batches.scored_sides([p.scores.detach() for p in passes])
            if target is None or attack.formulation == "batch_mean":  # whose scalar has both batches' means in it
                target = given.targets(scores, step_number + given.random_start)
            moved_to = attack_backward(batches, x, scores, passes, step, target)
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
    scores: ScoredSides,
    passes: list[Forward],
    attack: Attack,
    target: Targets,
    retain_graph: bool = False,
) -> list[Tensor]:
    """One attack step by a backward of its own, from the graphs of `passes` to the leaves `x`."""
    logits = [p.logits for p in passes]
    if not isinstance(target, list) and all(p.why_not is None and not p.hooks.hung and p.scores.single for p in passes):
        # Each image's gradient is its own, so that its coefficient can come later.
        v = image_gradients(logits, x, [torch.ones_like(t) for t in logits], retain_graph)
        adv = [torch.empty_like(t, requires_grad=False) for t in x]
        own, others = ((a.logits, b.logits) for a, b in (scores, target))
        attack_step_into(AttackInputs(batches.sides(x), batches.sides(v), own, others), attack, batches.sides(adv))
        return adv
    gradients = image_gradients(logits, x, batches.join(*coefficients(scores, target, attack)), retain_graph)
    return moved(x, gradients, attack)


def coefficients_towards(own: Pair, aims: Aims, attack: Attack) -> Pair:
    """`attack_coefficients` where the means are known and not the logits."""
    with torch.no_grad():
        (_, real), (_, fake) = terms_towards(own, aims, attack.objective, attack.formulation)
    return real, fake


def moved(x: Sequence[Tensor], gradients: Sequence[Tensor], attack: Attack) -> list[Tensor]:
    return [
        perturb(images, gradient, attack.eps, norm=attack.norm, clip_min=attack.clip_min, clip_max=attack.clip_max)
        for images, gradient in zip(x, gradients, strict=True)
    ]


def coefficients(scores: ScoredSides, target: Targets, attack: Attack) -> Pair:
    """The attack loss's gradients with respect to the logits: of an image's mean over its positions, in each scale by itself;
    batch_mean's one scalar is a mean over them already."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    aims = target if isinstance(target, list) else None
    every = by_scale(scores, scores if isinstance(target, list) else target)
    for scale, (own, targets, widths) in enumerate(every):
        if aims is None:
            parts = attack_coefficients(own, targets, attack.objective, attack.formulation)
        else:
            parts = coefficients_towards(own, aims[scale], attack)
        for side, c, t, k in zip(found, parts, own, widths, strict=True):
            side.append((c if k == 1 or attack.formulation == "batch_mean" else c / k).to(t.dtype))
    return scores[0].join(found[0]), scores[1].join(found[1])
