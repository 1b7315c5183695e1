"""The public operations, attack_loss, perturb and attack_step, and those that the library's own step and sampler write into their
buffers with; loss_gradients.py has their gradients, registered.py what torch runs.

torch's operations know an objective by its name. One that has none goes to the reference directly.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    LogitTerms,
    OptionalPair,
    Pair,
    Perturbation,
    StepOutputs,
    TermOutputs,
    backend_name,
    check_attack,
    check_bound,
    check_float,
    check_loss,
    check_perturbation,
    check_step,
    check_terms,
    loss_dtype,
    number,
)
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


def logit_terms_into(
    logits: Pair,
    weights: Pair,
    sums: Tensor,
    *,
    weight: float,
    floor: float = 0.0,
    objective: str | Objective = "vanilla",
    formulation: str = "eq10",
    coefficients: OptionalPair = (None, None),
    impl: str | None = None,
) -> None:
    """All that a discriminator's step wants of its logits, in one launch and into the caller's tensors.

    Args:
        logits: real [m] and generated [n], any float dtype and stride. A side may be empty: it adds nothing to the sums, so that
            the sums of calls with one side each add up to those of one call with both.
        weights: receive, in the logits' dtypes, weight * d loss / d logits of the loss -(mean g1(r) + mean g2(f)).
        sums: [4], float32 (float64 for float64 logits); receive that loss without `weight`, the Wasserstein estimate mean r -
            mean f, and the attack losses real and fake.
        weight: factor in the weights.
        floor: no weight is smaller in magnitude than this over the side's number of logits; 0: none.
        coefficients: [m], [n], the dtype of sums; receive the attack losses' gradients with respect to the logits, as
            `attack_loss` has them. Without them the attack losses are 0, as they are where a side is empty.
        objective, formulation, impl: as in `attack_loss`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.
    """
    own = detached(logits[0]), detached(logits[1])
    if not isinstance(objective, str):
        how, out = LogitTerms(weight, floor, objective, formulation), TermOutputs(weights, sums, coefficients)
        check_terms(own, how, out)
        with torch.no_grad():
            dispatch.backend(sums.device, backend_name(impl), objective=objective).logit_terms(own, how, out)
        return
    torch.ops.datgan_fast.logit_terms(
        *own,
        number("weight", weight),
        number("floor", floor),
        objective,
        formulation,
        backend_name(impl),
        *weights,
        sums,
        *coefficients,
    )


def sample_images(
    images: Tensor, index: Tensor, mirrored: Tensor | None, out: Tensor, *, impl: str | None = None
) -> None:
    """A batch of images in [-1, 1] from bytes: out[b] = images[index[b]] / 127.5 - 1, rounded from float32 to out's dtype.

    Args:
        images: uint8 [number, channels, height, width], any strides.
        index: int64 [batch], on the images' device.
        mirrored: bool [batch], which of the batch's images are mirrored left to right; None: none is.
        out: [batch, channels, height, width], any float dtype and memory format.
        impl: the backend's name; default: the best usable one.

    Raises:
        IndexError: an index is none of an image. On a GPU, where looking would wait for it, the nearest image is taken instead.
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
        BackendError: `impl` names a backend that cannot be used.
    """
    torch.ops.datgan_fast.sample_images(images, index, mirrored, backend_name(impl), out)


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
    """
    eps = number("eps", eps)
    check_perturbation(Perturbation(eps, norm, clip_min, clip_max))
    check_float("x", x)  # what is asked of them here; the operation checks everything
    check_float("the input gradient of x", grad)
    out = torch.empty_like(x, requires_grad=False)
    low, high = _kernel_bounds(clip_min, clip_max, x)
    if differentiable:  # the same launch, which leaves the clip to torch
        low = high = None
    torch.ops.datgan_fast.perturb(detached(x), detached(grad), eps, norm, low, high, backend_name(impl), out)
    if differentiable:
        return clipped_from(x, out, clip_min, clip_max)
    return out if (low, high) == (clip_min, clip_max) else clip(out, clip_min, clip_max)


def _kernel_bounds(clip_min: Bound, clip_max: Bound, *images: Tensor) -> tuple[float | None, float | None]:
    """The bounds for a kernel, which knows numbers only: none where one is a tensor, and the clip comes afterwards."""
    if not isinstance(clip_min, Tensor) and not isinstance(clip_max, Tensor):
        return clip_min, clip_max
    for x in images:
        check_bound("clip_min", clip_min, x)
        check_bound("clip_max", clip_max, x)
    return None, None


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
        AttackStep(adv_real, adv_fake, grad_real, grad_fake, loss_real, loss_fake), all detached unless `differentiable`: images
        like the images given, gradients (None without return_grad) like the gradients given, losses 0-d float32 or float64.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.

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
        losses = _run_step(inputs, attack, impl, adv, grads, [])
        return AttackStep(*adv, grad_real, grad_fake, losses[0], losses[1])
    _kernel_bounds(clip_min, clip_max, x_real, x_fake)  # a tensor that is no bound is refused before the launch, too
    losses = _run_step(inputs, attack._replace(clip_min=None, clip_max=None), impl, adv, grads, [])
    targets = (t.detach() for t in inputs.targets)  # new tensors in any case: the compiler wants no input twice
    loss_real, loss_fake = StepLosses.apply(
        real_logits, fake_logits, *targets, losses, objective, formulation, backend_name(impl)
    )
    adv_real = clipped_from(x_real, adv[0], clip_min, clip_max)
    adv_fake = clipped_from(x_fake, adv[1], clip_min, clip_max)
    return AttackStep(adv_real, adv_fake, grad_real, grad_fake, loss_real, loss_fake)


def attack_step_into(
    inputs: AttackInputs,
    attack: Attack,
    adv: Pair,
    *,
    grads: Sequence[Tensor] = (),
    norms: Sequence[Tensor] = (),
    impl: str | None = None,
) -> Tensor:
    """`attack_step` into the caller's buffers; returns the two losses, [2].

    grads, where given, receive the attack loss's input gradients; norms, [m] and [n], ||v_i / weight_i|| of the
    gradients handed in, which is ||d D(x_i) / d x_i||; ||v_i|| without weights, and NaN for a weight of 0.
    """
    return _run_step(inputs, attack, impl, adv, grads, norms)


def _run_step(
    inputs: AttackInputs,
    attack: Attack,
    impl: str | None,
    adv: Pair,
    grads: Sequence[Tensor],
    norms: Sequence[Tensor],
) -> Tensor:
    """The operation itself, and the clip that no kernel has; returns the losses."""
    x, v, logits, targets, weights = inputs
    low, high = _kernel_bounds(attack.clip_min, attack.clip_max, *x)
    losses = torch.empty(2, dtype=loss_dtype(logits), device=x[0].device)
    name = kernels_of(attack.objective)
    if name is None:
        out = StepOutputs(adv, _both(grads), _both(norms), losses)
        _own_step(inputs, attack._replace(clip_min=low, clip_max=high), impl, out)
    else:
        torch.ops.datgan_fast.attack_step(
            *([detached(t) for t in pair] for pair in (x, v, logits, targets)),
            [None if w is None else detached(w) for w in weights],
            *attack._replace(objective=name, clip_min=low, clip_max=high),
            backend_name(impl),
            adv,
            grads,
            norms,
            losses,
        )
    if (low, high) != (attack.clip_min, attack.clip_max):
        for t in adv:
            t.copy_(clip(t, attack.clip_min, attack.clip_max))
    return losses


def _both(tensors: Sequence[Tensor]) -> OptionalPair:
    return (tensors[0], tensors[1]) if tensors else (None, None)


@torch.no_grad()
def _own_step(inputs: AttackInputs, attack: Attack, impl: str | None, out: StepOutputs) -> None:
    """With formulas of the user's own."""
    check_step(inputs, attack)
    backend = dispatch.backend(out.losses.device, backend_name(impl), objective=attack.objective, norm=attack.norm)
    backend.attack_step(inputs, attack, out)
