"""The operations that the library's own step and sampler write into their buffers with, and what they have in common with the
public ones of ops.py.

torch's operations know an objective by its name. One that has none goes to the reference directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import (
    dispatch,
    registered,  # noqa: F401  defines torch.ops.datgan_fast
)
from .arguments import (
    Attack,
    AttackInputs,
    LogitTerms,
    OptionalPair,
    Pair,
    StepOutputs,
    TermOutputs,
    backend_name,
    check_bound,
    check_step,
    check_terms,
    loss_dtype,
    number,
)
from .formulas import Bound, clip, kernels_of
from .loss_gradients import detached
from .objective import Objective


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
    return step_into(inputs, attack, impl, adv, grads, norms)


def step_into(
    inputs: AttackInputs,
    attack: Attack,
    impl: str | None,
    adv: Pair,
    grads: Sequence[Tensor],
    norms: Sequence[Tensor],
) -> Tensor:
    """The operation itself, and the clip that no kernel has; returns the losses."""
    x, v, logits, targets, weights = inputs
    low, high = kernel_bounds(attack.clip_min, attack.clip_max, *x)
    losses = torch.empty(2, dtype=loss_dtype(logits), device=x[0].device)
    name = kernels_of(attack.objective)
    if name is None:
        out = StepOutputs(adv, _both(grads), _both(norms), losses)
        _own_step(inputs, attack._replace(clip_min=low, clip_max=high), impl, out)
    else:
        torch.ops.datgan_fast.attack_step(
            *([detached(t) for t in pair] for pair in (x, v, logits, targets)),
            [None if w is None else detached(w) for w in weights],
            attack.eps,  # one by one: torch 2.6's compiler cannot follow _replace
            name,
            attack.formulation,
            attack.norm,
            low,
            high,
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


def kernel_bounds(clip_min: Bound, clip_max: Bound, *images: Tensor) -> tuple[float | None, float | None]:
    """The bounds for a kernel, which knows numbers only: none where one is a tensor, and the clip comes afterwards."""
    if not isinstance(clip_min, Tensor) and not isinstance(clip_max, Tensor):
        return clip_min, clip_max
    for x in images:
        check_bound("clip_min", clip_min, x)
        check_bound("clip_max", clip_max, x)
    return None, None
