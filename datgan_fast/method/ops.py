"""The public operations: torch.library registration and autograd. The kernels behind them are chosen by dispatch.py.

The registered operations write into tensors that the functions below allocate, so that no launcher allocates and the
perturbed real and generated images can lie in one buffer. They check what they are given themselves, because anybody can call
torch.ops.datgan_fast.* and no kernel knows where a tensor ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .arguments import (
    Attack,
    AttackInputs,
    OptionalPair,
    Pair,
    check_bound,
    check_choice,
    check_float,
    check_images,
    check_logits,
    check_perturbation,
    check_result,
    check_step,
    number,
)
from .formulas import FORMULATIONS, OBJECTIVES, Bound, clip
from .reference import AttackStep

_library = torch.library.Library("datgan_fast", "DEF")
_library.define(
    "attack_loss(Tensor real_logits, Tensor fake_logits, Tensor reference_real, Tensor reference_fake, str objective,"
    " str formulation, str impl) -> (Tensor losses, Tensor coefficient_real, Tensor coefficient_fake)"
)
_library.define(
    "perturb(Tensor x, Tensor grad, float eps, str norm, float? clip_min, float? clip_max, str impl, Tensor(a!) out) -> ()"
)
_library.define(
    "attack_step(Tensor x_real, Tensor x_fake, Tensor v_real, Tensor v_fake, Tensor real_logits, Tensor fake_logits,"
    " Tensor reference_real, Tensor reference_fake, Tensor? weight_real, Tensor? weight_fake, float eps, str objective,"
    " str formulation, str norm, float? clip_min, float? clip_max, str impl, Tensor(a!) adv_real, Tensor(b!) adv_fake,"
    " Tensor(c!)? grad_real, Tensor(d!)? grad_fake, Tensor(e!)? norm_real, Tensor(f!)? norm_fake, Tensor(g!) losses) -> ()"
)


def _loss_dtype(*logits: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in logits) else torch.float32


def _attack_loss_outputs(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _loss_dtype(real, fake)
    return tuple(torch.empty(n, dtype=dtype, device=real.device) for n in (2, len(real), len(fake)))  # type: ignore[return-value]


def _attack_loss(
    real: Tensor,
    fake: Tensor,
    reference_real: Tensor,
    reference_fake: Tensor,
    objective: str,
    formulation: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _attack_loss_fake(real, fake, reference_real, reference_fake, objective, formulation, impl)
    dispatch.backend(real.device, impl).attack_loss(
        real, fake, reference_real, reference_fake, objective, formulation, *outputs
    )
    return outputs


def _attack_loss_fake(
    real: Tensor,
    fake: Tensor,
    reference_real: Tensor,
    reference_fake: Tensor,
    objective: str,
    formulation: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_loss(real, fake, reference_real, reference_fake, objective, formulation)
    return _attack_loss_outputs(real, fake)


def _check_loss(
    real: Tensor, fake: Tensor, reference_real: Tensor, reference_fake: Tensor, objective: str, formulation: str
) -> None:
    check_choice("objective", objective, OBJECTIVES)
    check_choice("formulation", formulation, FORMULATIONS)
    check_float("real_logits", real)  # before its device is asked for
    for name, t in (
        ("real_logits", real),
        ("fake_logits", fake),
        ("reference_real_logits", reference_real),
        ("reference_fake_logits", reference_fake),
    ):
        check_logits(name, t, real.device)


def _perturb(
    x: Tensor,
    grad: Tensor,
    eps: float,
    norm: str,
    clip_min: float | None,
    clip_max: float | None,
    impl: str,
    out: Tensor,
) -> None:
    _perturb_fake(x, grad, eps, norm, clip_min, clip_max, impl, out)
    dispatch.backend(x.device, impl).perturb(x, grad, eps, norm, clip_min, clip_max, out)


def _perturb_fake(
    x: Tensor,
    grad: Tensor,
    eps: float,
    norm: str,
    clip_min: float | None,
    clip_max: float | None,
    impl: str,
    out: Tensor,
) -> None:
    check_images("x", x, grad)
    check_perturbation(eps, norm, clip_min, clip_max)
    check_result("out", out, x.shape, x.dtype, x.device)


def _step_arguments(
    *arguments: Any,
) -> tuple[AttackInputs, Attack, str, tuple[Pair, OptionalPair, OptionalPair, Tensor]]:
    """The registered operation's flat list as the records that the rest of the library hands around, checked."""
    x, v, logits, references, weights = (arguments[i : i + 2] for i in range(0, 10, 2))
    attack, impl = Attack(*arguments[10:16]), arguments[16]
    adv, grads, norms, losses = arguments[17:19], arguments[19:21], arguments[21:23], arguments[23]
    inputs = AttackInputs(x, v, logits, references, weights)
    check_step(inputs, attack)
    device = x[0].device
    for k, side in enumerate(("real", "fake")):
        check_result(f"adv_{side}", adv[k], x[k].shape, x[k].dtype, device)
        if grads[k] is not None:
            check_result(f"grad_{side}", grads[k], v[k].shape, v[k].dtype, device)
        if norms[k] is not None:
            check_result(f"norm_{side}", norms[k], logits[k].shape, None, device)
    check_result("losses", losses, (2,), _loss_dtype(*logits), device)
    return inputs, attack, impl, (adv, grads, norms, losses)


def _attack_step(*arguments: Any) -> None:
    inputs, attack, impl, outputs = _step_arguments(*arguments)
    dispatch.backend(inputs.x[0].device, impl).attack_step(inputs, attack, *outputs)


def _attack_step_fake(*arguments: Any) -> None:
    _step_arguments(*arguments)


for _name, _implementation, _fake in (
    ("attack_loss", _attack_loss, _attack_loss_fake),
    ("perturb", _perturb, _perturb_fake),
    ("attack_step", _attack_step, _attack_step_fake),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")  # every device: the reference runs on any
    torch.library.register_fake(f"datgan_fast::{_name}", _fake, lib=_library)


class _AttackLoss(torch.autograd.Function):
    """The loss and, from the same pass, its gradient; the other batch's logits are constants."""

    @staticmethod
    def forward(ctx, real, fake, reference_real, reference_fake, objective, formulation, impl):  # type: ignore[no-untyped-def]
        losses, coefficient_real, coefficient_fake = torch.ops.datgan_fast.attack_loss(
            real, fake, reference_real, reference_fake, objective, formulation, impl
        )
        ctx.save_for_backward(real, fake, coefficient_real, coefficient_fake)
        return losses[0], losses[1]

    @staticmethod
    def backward(ctx, grad_real, grad_fake):  # type: ignore[no-untyped-def]
        real, fake, coefficient_real, coefficient_fake = ctx.saved_tensors
        # torch refuses the second derivative of compiled functions by itself.
        create_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        scale = _FinalGradient.apply if create_graph else _scale
        return (
            scale(real, coefficient_real, grad_real) if ctx.needs_input_grad[0] else None,
            scale(fake, coefficient_fake, grad_fake) if ctx.needs_input_grad[1] else None,
            *[None] * 5,
        )


def _scale(logits: Tensor, coefficient: Tensor, grad: Tensor) -> Tensor:
    return (grad * coefficient).to(logits.dtype)


class _FinalGradient(torch.autograd.Function):
    """A gradient that depends on the logits and cannot be differentiated again. once_differentiable would take it for a
    constant wherever the incoming gradient is one, and a penalty on it would be wrong without a word."""

    @staticmethod
    def forward(ctx, logits, coefficient, grad):  # type: ignore[no-untyped-def]
        return _scale(logits, coefficient, grad)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        raise RuntimeError(
            "datgan_fast.attack_loss can be differentiated only once; "
            "datgan_fast.method.reference.attack_loss can be differentiated any number of times"
        )


def _detached(t: Tensor) -> Tensor:
    return t.detach() if t.requires_grad else t


def attack_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    objective: str = "vanilla",
    formulation: str = "eq10",
    reference_real_logits: Tensor | None = None,
    reference_fake_logits: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The attack losses (loss_real, loss_fake) of direct adversarial training, summed over the batch.

    Args:
        real_logits: [m], any float dtype and stride.
        fake_logits: [n].
        objective: "vanilla", "fgan", "wasserstein", "hinge" or "least_squares".
        formulation: "eq10" (Li, Xia, Li 2020, Eq. 9 and 10), "alg1" (Algorithm 1, lines 6-7) or "batch_mean" (released code).
        reference_real_logits, reference_fake_logits: the logits whose means are the targets; default: the batch's own.
            Under data parallelism pass those gathered from every process.
        impl: the backend's name; default: the best usable one.

    Returns:
        Two 0-d tensors, float32 (float64 for float64 logits), differentiable once with respect to the logits; the targets
        are constants. A side whose own or other batch is empty has loss 0.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.
    """
    reference_real = real_logits if reference_real_logits is None else reference_real_logits
    reference_fake = fake_logits if reference_fake_logits is None else reference_fake_logits
    _check_loss(real_logits, fake_logits, reference_real, reference_fake, objective, formulation)
    return _AttackLoss.apply(
        real_logits,
        fake_logits,
        reference_real.detach(),  # new tensors in any case: the compiler wants no input twice
        reference_fake.detach(),
        objective,
        formulation,
        impl or "",
    )


def perturb(
    x: Tensor,
    grad: Tensor,
    eps: float,
    *,
    norm: str = "none",
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
    impl: str | None = None,
) -> Tensor:
    """x_adv = clip(x - eps * n(grad), clip_min, clip_max), detached.

    Args:
        x: [m, ...], any float dtype and layout.
        grad: the attack loss's gradient, shape of x, any float dtype and layout.
        eps: step size in units of x (norm "l2": the length of each image's step; "linf": the step of each pixel).
        norm: "none" (the paper: the gradient itself), "l2" (unit length per image, floor 1e-12) or "linf" (sign).
        clip_min, clip_max: range of valid pixels: numbers, tensors that broadcast to x such as [channels, 1, 1], or None for no
            bound.
        impl: the backend's name; default: the best usable one.

    Returns:
        A tensor of x's shape, dtype and memory format. The arithmetic is float32, or float64 if x or grad is.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.
    """
    eps = number("eps", eps)
    check_images("x", x, grad)
    check_perturbation(eps, norm, clip_min, clip_max)
    out = torch.empty_like(x, requires_grad=False)
    low, high = _kernel_bounds(clip_min, clip_max, x)
    torch.ops.datgan_fast.perturb(_detached(x), _detached(grad), eps, norm, low, high, impl or "", out)
    return out if (low, high) == (clip_min, clip_max) else clip(out, clip_min, clip_max)


def _kernel_bounds(clip_min: Bound, clip_max: Bound, *images: Tensor) -> tuple[float | None, float | None]:
    """The bounds for a kernel, which knows numbers only: none where one is a tensor, and the clip comes afterwards."""
    if not isinstance(clip_min, Tensor) and not isinstance(clip_max, Tensor):
        return clip_min, clip_max
    for x in images:
        check_bound("clip_min", clip_min, x)
        check_bound("clip_max", clip_max, x)
    return None, None


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
    return_grad: bool = True,
    impl: str | None = None,
) -> AttackStep:
    """The attack in a single pass: losses, input gradients and perturbed images from logits and the discriminator's gradient.

    Args:
        x_real, x_fake: images, [m, ...] and [n, ...], any float dtype and layout.
        input_grad_real, input_grad_fake: d sum(D(x)) / dx, shapes of the images, any float dtype and layout.
        real_logits, fake_logits: D(x_real) [m] and D(x_fake) [n].
        eps, norm, clip_min, clip_max: as in `perturb`.
        objective, formulation, reference_real_logits, reference_fake_logits: as in `attack_loss`.
        grad_weight_real, grad_weight_fake: [m], [n]: the input gradients handed in are these times d D(x_i) / dx_i, as a
            backward of a weighted sum of logits leaves them. An image of weight 0 is not moved.
        return_grad: whether the attack loss's input gradients are wanted too (one more tensor of traffic).
        impl: the backend's name; default: the best usable one.

    Returns:
        AttackStep(adv_real, adv_fake, grad_real, grad_fake, loss_real, loss_fake), all detached: images like the images
        given, gradients (None without return_grad) like the gradients given, losses 0-d float32 or float64.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value.
        BackendError: `impl` names a backend that cannot be used.

    Source: Li, Xia, Li (2020), Algorithm 1, lines 5-8.
    """
    reference_real = real_logits if reference_real_logits is None else reference_real_logits
    reference_fake = fake_logits if reference_fake_logits is None else reference_fake_logits
    inputs = AttackInputs(
        (x_real, x_fake),
        (input_grad_real, input_grad_fake),
        (real_logits, fake_logits),
        (reference_real, reference_fake),
        (grad_weight_real, grad_weight_fake),
    )
    attack = Attack(number("eps", eps), objective, formulation, norm, clip_min, clip_max)
    check_step(inputs, attack)
    adv = torch.empty_like(x_real, requires_grad=False), torch.empty_like(x_fake, requires_grad=False)
    grads: OptionalPair = (None, None)
    if return_grad:
        grads = (
            torch.empty_like(input_grad_real, requires_grad=False),
            torch.empty_like(input_grad_fake, requires_grad=False),
        )
    losses = _run_step(inputs, attack, impl, *adv, *grads, None, None)
    return AttackStep(*adv, *grads, losses[0], losses[1])


def attack_step_into(
    inputs: AttackInputs,
    attack: Attack,
    adv: Pair,
    *,
    grads: OptionalPair = (None, None),
    norms: OptionalPair = (None, None),
    impl: str | None = None,
) -> Tensor:
    """`attack_step` into the caller's buffers; returns the two losses, [2].

    norms, [m] and [n], receive ||v_i|| of the gradients handed in.
    """
    check_step(inputs, attack)
    return _run_step(inputs, attack, impl, *adv, *grads, *norms)


def _run_step(inputs: AttackInputs, attack: Attack, impl: str | None, *outputs: Tensor | None) -> Tensor:
    """The operation itself, and the clip that no kernel has; returns the losses."""
    x, v, logits, references, weights = inputs
    low, high = _kernel_bounds(attack.clip_min, attack.clip_max, *x)
    losses = torch.empty(2, dtype=_loss_dtype(*logits), device=x[0].device)
    torch.ops.datgan_fast.attack_step(
        *map(_detached, (*x, *v, *logits, *references)),
        *(None if w is None else _detached(w) for w in weights),
        *attack._replace(clip_min=low, clip_max=high),
        impl or "",
        *outputs,
        losses,
    )
    if (low, high) != (attack.clip_min, attack.clip_max):
        for adv in outputs[:2]:
            assert adv is not None
            adv.copy_(clip(adv, attack.clip_min, attack.clip_max))
    return losses
