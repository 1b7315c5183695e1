"""The public operations, attack_loss, perturb and attack_step; loss_gradients.py has their gradients, buffered_ops.py those that
write into the caller's tensors, registered.py what torch runs.

torch's operations know an objective by its name. One that has none goes to the reference directly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import (
    dispatch,
    reference_operations,
    registered,  # noqa: F401  defines torch.ops.datgan_fast
)
from .arguments import (
    Attack,
    AttackInputs,
    Logits,
    Pair,
    Perturbation,
    backend_name,
    check_attack,
    check_float,
    check_loss,
    check_perturbation,
    loss_dtype,
    number,
)
from .buffered_ops import kernel_bounds, step_into
from .differentiable import clipped_from
from .formulas import FORMULATIONS, Bound, check_choice, clip, kernels_of, named
from .loss_gradients import AttackLoss, StepLosses, detached
from .objective import Objective
from .reference_operations import AttackStep, attack_terms, logits_with_targets
from .renamed import targets_renamed


@targets_renamed
def attack_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    objective: str | Objective = "vanilla",
    formulation: str = "eq10",
    target_real_logits: Tensor | None = None,
    target_fake_logits: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The attack losses (loss_real, loss_fake) of direct adversarial training, summed over the batch.

    Args:
        real_logits: [m], any float dtype and stride.
        fake_logits: [n].
        objective: "vanilla", "fgan", "wasserstein", "hinge", "least_squares", "relativistic", or an `Objective` of your own.
        formulation: "eq10" (Li, Xia, Li 2020, Eq. 9 and 10), "alg1" (Algorithm 1, lines 6-7) or "batch_mean" (released code).
        target_real_logits, target_fake_logits: the logits whose means are the targets; default: the batch's own.
            Under data parallelism pass those gathered from every process.
        impl: the backend's name; default: the best usable one.

    Returns:
        Two 0-d tensors, float32 (float64 for float64 logits), differentiable once with respect to the logits, with formulas of
        your own any number of times; the targets are constants. A side whose own or other batch is empty has loss 0.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.

    Example:
        >>> real_logits, fake_logits = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.0])
        >>> dat.attack_loss(real_logits, fake_logits, objective="wasserstein")  # |2 + 0.5| + |1 + 0.5|, ...
        (tensor(4.), tensor(4.))
        >>> dat.attack_loss(real_logits, fake_logits, objective="wasserstein", formulation="batch_mean")
        (tensor(2.), tensor(2.))
    """
    target_real = real_logits if target_real_logits is None else target_real_logits
    target_fake = fake_logits if target_fake_logits is None else target_fake_logits
    objective = named(objective)
    check_choice("formulation", formulation, FORMULATIONS)
    check_float("real_logits", real_logits)  # what is asked of them here; the operation checks everything
    check_float("fake_logits", fake_logits)
    check_float("target_real_logits", target_real)
    check_float("target_fake_logits", target_fake)
    name = kernels_of(objective)
    if name is None:
        return _own_attack_loss((real_logits, fake_logits), (target_real, target_fake), objective, formulation, impl)
    return AttackLoss.apply(
        real_logits,
        fake_logits,
        target_real.detach(),  # new tensors in any case: the compiler wants no input twice
        target_fake.detach(),
        name,
        formulation,
        backend_name(impl),
    )


def _own_attack_loss(
    own: Pair, targets: Pair, objective: str | Objective, formulation: str, impl: str | None
) -> tuple[Tensor, Tensor]:
    """With formulas of the user's own, through which torch's autograd goes."""
    logits = Logits(own, targets)
    check_loss(logits, objective, formulation)
    _refuse_kernels(own[0].device, impl, objective)
    given = {"target_real_logits": targets[0], "target_fake_logits": targets[1]}
    real, fake = reference_operations.attack_loss(*own, objective=objective, formulation=formulation, **given)
    dtype = loss_dtype(own)
    return real.to(dtype), fake.to(dtype)


def _refuse_kernels(device: torch.device, impl: str | None, objective: str | Objective) -> None:
    """Raises BackendError where another backend than the reference was asked for by name."""
    if not torch.compiler.is_compiling():
        dispatch.backend(device, backend_name(impl), objective=objective)


def attack_coefficients(logits: Pair, targets: Pair, objective: str | Objective, formulation: str) -> Pair:
    """The attack loss's gradients with respect to the logits, [m] and [n], float32 (float64 for float64 logits)."""
    name = kernels_of(objective)
    if name is not None:
        _, *found = torch.ops.datgan_fast.attack_loss(*logits, *targets, name, formulation, "")
        return found[0], found[1]
    _refuse_kernels(logits[0].device, None, objective)
    with torch.no_grad():
        (_, real), (_, fake) = attack_terms(Logits(logits, targets), objective, formulation)
    return real, fake


def perturb(
    x: Tensor,
    grad: Tensor,
    eps: float,
    *,
    norm: str = "none",
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    differentiable: bool = False,
    impl: str | None = None,
) -> Tensor:
    """x_adv = clip(x - eps * n(grad), clip_min, clip_max), detached unless `differentiable`.

    Args:
        x: [m, ...], any float dtype and layout.
        grad: the attack loss's gradient, shape of x, any float dtype and layout.
        eps: step size in units of x (norm "l2": the length of each image's step; "linf": the step of each pixel).
        norm: "none" (the paper: the gradient itself), "l2" (unit length per image, floor 1e-12), "linf" (sign) or "clamp" (the
            released code: each element of the gradient cut to [-1, 1]).
        clip_min, clip_max: range of valid pixels: numbers, tensors that broadcast to x such as [channels, 1, 1], or None for no
            bound.
        differentiable: whether a gradient goes back to x, any number of times; the perturbation is a constant, so that the
            gradient is 1 where x - eps * n(grad), rounded to x's dtype, lies inside the range of valid pixels, 0 outside, and at
            a bound what torch.clamp's is.
        impl: the backend's name; default: the best usable one.

    Returns:
        A tensor of x's shape, dtype and memory format. The arithmetic is float32, or float64 if x or grad is.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.

    Example:
        >>> x, grad = torch.tensor([[0.5, -0.5]]), torch.tensor([[3.0, 4.0]])
        >>> dat.perturb(x, grad, 0.125)
        tensor([[ 0.1250, -1.0000]])
        >>> dat.perturb(x, grad, 0.5, norm="l2")
        tensor([[ 0.2000, -0.9000]])
        >>> dat.perturb(x, grad, 0.25, norm="linf", clip_min=None, clip_max=None)
        tensor([[ 0.2500, -0.7500]])
    """
    eps = number("eps", eps)
    check_perturbation(Perturbation(eps, norm, clip_min, clip_max))
    check_float("x", x)  # what is asked of them here; the operation checks everything
    check_float("the input gradient of x", grad)
    out = torch.empty_like(x, requires_grad=False)
    low, high = kernel_bounds(clip_min, clip_max, x)
    if differentiable:  # the same launch, which leaves the clip to torch
        low = high = None
    torch.ops.datgan_fast.perturb(detached(x), detached(grad), eps, norm, low, high, backend_name(impl), out)
    if differentiable:
        return clipped_from(x, out, clip_min, clip_max)
    return out if (low, high) == (clip_min, clip_max) else clip(out, clip_min, clip_max)


# Long: its arguments, and what is said of them.
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
    return_grad: bool = True,
    differentiable: bool = False,
    impl: str | None = None,
) -> AttackStep:
    """The attack in a single pass: losses, input gradients and perturbed images from logits and the discriminator's gradient.

    Args:
        x_real, x_fake: images, [m, ...] and [n, ...], any float dtype and layout.
        input_grad_real, input_grad_fake: d sum(D(x)) / dx, shapes of the images, any float dtype and layout.
        real_logits, fake_logits: D(x_real) [m] and D(x_fake) [n].
        eps, norm, clip_min, clip_max: as in `perturb`.
        objective, formulation, target_real_logits, target_fake_logits: as in `attack_loss`.
        grad_weight_real, grad_weight_fake: [m], [n]: the input gradients handed in are these times d D(x_i) / dx_i, as a
            backward of a weighted sum of logits leaves them. An image of weight 0 is not moved.
        return_grad: whether the attack loss's input gradients are wanted too (one more tensor of traffic).
        differentiable: whether the losses can be differentiated with respect to the logits, once, as `attack_loss`'s, and the
            perturbed images with respect to the images, as `perturb`'s; targets, perturbations and input gradients are constants.
        impl: the backend's name; default: the best usable one.

    Returns:
        AttackStep(adv_real, adv_fake, grad_real, grad_fake, loss_real, loss_fake), all detached unless `differentiable`. Images
        are like the images given, gradients (None without return_grad) like the gradients given, losses 0-d float32 or float64.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.

    Example:
        >>> D = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(D.weight)  # an image's score is the sum of its two pixels
        >>> x_real, x_fake = torch.tensor([[0.5, 0.25]]), torch.tensor([[-0.5, -0.25]])
        >>> ones = torch.ones(1, 2)  # d D(x) / dx
        >>> r, f = D(x_real).flatten(), D(x_fake).flatten()
        >>> step = dat.attack_step(x_real, x_fake, ones, ones, r, f, 0.25, objective="wasserstein")
        >>> step.adv_real, step.loss_real
        (tensor([[0.2500, 0.0000]]), tensor(1.5000))

    Source: Li, Xia, Li (2020), Algorithm 1, lines 5-8.
    """
    inputs = AttackInputs(
        (x_real, x_fake),
        (input_grad_real, input_grad_fake),
        *logits_with_targets(real_logits, fake_logits, target_real_logits, target_fake_logits),
        (grad_weight_real, grad_weight_fake),
    )
    attack = Attack(number("eps", eps), named(objective), formulation, norm, clip_min, clip_max)
    check_attack(attack)
    check_float("x_real", x_real)  # what is asked of them here; the operation checks everything
    check_float("x_fake", x_fake)
    check_float("the input gradient of x_real", input_grad_real)
    check_float("the input gradient of x_fake", input_grad_fake)
    check_float("real_logits", real_logits)
    check_float("fake_logits", fake_logits)
    for name, weight in (("grad_weight_real", grad_weight_real), ("grad_weight_fake", grad_weight_fake)):
        if weight is not None:
            check_float(name, weight)
    adv = torch.empty_like(x_real, requires_grad=False), torch.empty_like(x_fake, requires_grad=False)
    grads = [torch.empty_like(t, requires_grad=False) for t in inputs.v] if return_grad else []
    grad_real, grad_fake = grads or (None, None)
    if not differentiable:
        losses = step_into(inputs, attack, impl, adv, grads, [])
        return AttackStep(*adv, grad_real, grad_fake, losses[0], losses[1])
    kernel_bounds(clip_min, clip_max, x_real, x_fake)  # a tensor that is no bound is refused before the launch, too
    losses = step_into(inputs, Attack(*attack[:4], None, None), impl, adv, grads, [])
    targets = (t.detach() for t in inputs.targets)  # new tensors in any case: the compiler wants no input twice
    loss_real, loss_fake = StepLosses.apply(
        real_logits, fake_logits, *targets, losses, objective, formulation, backend_name(impl)
    )
    adv_real = clipped_from(x_real, adv[0], clip_min, clip_max)
    adv_fake = clipped_from(x_fake, adv[1], clip_min, clip_max)
    return AttackStep(adv_real, adv_fake, grad_real, grad_fake, loss_real, loss_fake)
