"""How many attack steps it takes to fool a discriminator: the measurement behind the paper's Figure 1.

Training (step.py) moves an image once, along the gradient of the attack loss of its objective. Here the discriminator is
fixed and an image is moved again and again, until its score is another image's score. The distance is that of the paper's
stopping rule, |sigmoid(D(x)) - target|: for the vanilla objective Equation 9 compares the logarithms of these scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..method.formulas import NORMS
from ..method.module_state import frozen, unchanged_state
from ..method.ops import perturb
from ..method.step_arguments import logits_of


class FoolingSteps(NamedTuple):
    """What an attack of several steps came to, image by image."""

    steps: Tensor  # [n] int64: 0 if the score was within the tolerance at once; the cap if it never was
    reached: Tensor  # [n] bool: whether it ever was
    images: Tensor  # [n, ...]: the image when it first was, or after the last step


def steps_to_fool(
    discriminator: nn.Module,
    images: Tensor,
    target: Tensor | float,
    *,
    rule: str = "none",
    step_size: float = 1.0,
    cap: int = 200,
    tolerance: float = 0.02,
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
    check_every: int | None = 20,
) -> FoolingSteps:
    """Moves each image until |sigmoid(D(x)) - target| <= tolerance: x <- clip(x - step_size * n(gradient of that distance)).

    An image that has arrived stops there. Everything stays on the device of the images; the host learns only every
    `check_every` steps whether all have arrived, to stop before the cap.

    Args:
        discriminator: any module that gives one logit per image, in the mode to be measured: with BatchNorm in training
            mode images move each other. Its parameters and buffers stay as they are.
        images: [n, ...], float16, bfloat16, float32 or float64.
        target: scores in [0, 1], one for each image ([n]) or one for all.
        rule: n(gradient), as in `perturb`: the gradient itself ("none"), made unit length ("l2"), its sign ("linf"), or its
            elements cut to [-1, 1] ("clamp").
        step_size: in units of the images; more than 0.
        cap: the most steps; at least 0.
        tolerance: of the score; at least 0.
        clip_min, clip_max: range of valid pixels, None for no bound.
        check_every: steps between the host's looks; None: it never looks and all `cap` steps are made.

    Raises:
        ValueError: an argument out of its range, or a discriminator that does not give one logit per image.
        TypeError: images that are not of a floating-point dtype.
    """
    target = _checked(images, target, rule, step_size, cap, tolerance, check_every)
    count = len(images)
    steps = torch.zeros(count, dtype=torch.int64, device=images.device)
    reached = torch.zeros(count, dtype=torch.bool, device=images.device)
    x = images.detach().clone()
    if not count:
        return FoolingSteps(steps, reached, x)
    column = (-1, *[1] * (x.dim() - 1))
    with unchanged_state(discriminator), frozen(discriminator), torch.enable_grad():
        for step in range(cap + 1):
            x.requires_grad_()
            logits = logits_of(discriminator, x)
            score = logits.to(target.dtype).sigmoid()
            distance = (score - target).abs()
            reached |= distance.detach() <= tolerance
            if step == cap or (check_every and step % check_every == 0 and bool(reached.all())):
                break
            (gradient,) = torch.autograd.grad(distance.sum(), x)
            x = x.detach()
            moved = perturb(x, gradient, step_size, norm=rule, clip_min=clip_min, clip_max=clip_max)
            x = torch.where(reached.view(column), x, moved)
            steps += ~reached
    return FoolingSteps(steps, reached, x.detach())


def _checked(
    images: Tensor,
    target: Tensor | float,
    rule: str,
    step_size: float,
    cap: int,
    tolerance: float,
    check_every: int | None,
) -> Tensor:
    """The target as a tensor of the scores' dtype; raises for arguments that make no attack."""
    if not images.is_floating_point():
        raise TypeError(f"images must be of a floating-point dtype; got {images.dtype}")
    if rule not in NORMS:
        raise ValueError(f"rule must be one of {', '.join(NORMS)}; got {rule!r}")
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size must be a finite number above 0; got {step_size}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0; got {tolerance}")
    if cap < 0:
        raise ValueError(f"cap must be at least 0; got {cap}")
    if check_every is not None and check_every < 1:
        raise ValueError(f"check_every must be at least 1, or None; got {check_every}")
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    scores = torch.as_tensor(target, dtype=dtype, device=images.device).detach()
    if scores.shape not in ((), (len(images),)):
        raise ValueError(
            f"target must be one score or one per image; got shape {tuple(scores.shape)} for {len(images)} images"
        )
    return scores
