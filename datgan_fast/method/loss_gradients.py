"""The attack losses' gradients with respect to the logits, as autograd Functions around the registered operations: for a loss by
itself, and for the losses that a single pass has found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import registered  # noqa: F401  defines torch.ops.datgan_fast


class AttackLoss(torch.autograd.Function):
    """The loss and, from the same pass, its gradient; the other batch's logits are constants."""

    @staticmethod
    def forward(ctx, real, fake, target_real, target_fake, objective, formulation, impl):  # type: ignore[no-untyped-def]
        losses, coefficient_real, coefficient_fake = torch.ops.datgan_fast.attack_loss(
            real, fake, target_real, target_fake, objective, formulation, impl
        )
        ctx.save_for_backward(real, fake, coefficient_real, coefficient_fake)
        return losses[0], losses[1]

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        real, fake, *coefficients = ctx.saved_tensors
        return *_scaled("attack_loss", ctx.needs_input_grad, (real, fake), coefficients, grads), *[None] * 5


class StepLosses(torch.autograd.Function):
    """The losses that a single pass has found. Their gradient, one number for each logit, is computed when it is asked for."""

    @staticmethod
    def forward(ctx, real, fake, target_real, target_fake, losses, objective, formulation, impl):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(real, fake, target_real, target_fake)
        ctx.how = objective, formulation, impl
        return losses[0], losses[1]

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        logits = ctx.saved_tensors
        _, *coefficients = torch.ops.datgan_fast.attack_loss(*map(detached, logits), *ctx.how)
        return *_scaled("attack_step", ctx.needs_input_grad, logits, coefficients, grads), *[None] * 6


def _scaled(
    operation: str,
    needed: Sequence[bool],
    logits: Sequence[Tensor],
    coefficients: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradients of the real and of the generated logits, None where it is not needed."""
    # torch refuses the second derivative of compiled functions by itself.
    create_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return tuple(
        None
        if not needed[k]
        else _FinalGradient.apply(logits[k], coefficients[k], grads[k], operation)
        if create_graph
        else _scale(logits[k], coefficients[k], grads[k])
        for k in range(2)
    )


def _scale(logits: Tensor, coefficient: Tensor, grad: Tensor) -> Tensor:
    return (grad * coefficient).to(logits.dtype)


class _FinalGradient(torch.autograd.Function):
    """A gradient that depends on the logits and cannot be differentiated again. once_differentiable would take it for a
    constant wherever the incoming gradient is one, and a penalty on it would be wrong without a word."""

    @staticmethod
    def forward(ctx, logits, coefficient, grad, operation):  # type: ignore[no-untyped-def]
        ctx.operation = operation
        return _scale(logits, coefficient, grad)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        raise RuntimeError(
            f"a loss of datgan_fast.{ctx.operation} can be differentiated only once; one of "
            f"datgan_fast.reference.{ctx.operation} can be differentiated any number of times"
        )


def detached(t: Tensor) -> Tensor:
    return t.detach() if t.requires_grad else t
