"""The operations as torch knows them, torch.ops.datgan_fast.*: their schemas, checks and implementations.

They write into tensors that the callers made, so that no launcher allocates and the perturbed real and generated images can lie
in one buffer. They check what they are given themselves, because anybody can call them and no kernel knows where a tensor ends.
The kernels behind them are chosen by dispatch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .arguments import (
    Attack,
    AttackInputs,
    Logits,
    LogitTerms,
    LossOutputs,
    OptionalPair,
    Pair,
    Perturbation,
    StepOutputs,
    TermOutputs,
    check_images,
    check_loss,
    check_perturbation,
    check_result,
    check_samples,
    check_step,
    check_step_outputs,
    check_terms,
    loss_dtype,
)
from .formulas import objective_of

# attack_step's lists hold the real side's tensor and then the generated side's; of results that nobody wants they are empty.
# The others have few tensors, and each list costs a call about two microseconds.
_library = torch.library.Library("datgan_fast", "DEF")
_library.define(
    "attack_loss(Tensor real_logits, Tensor fake_logits, Tensor target_real, Tensor target_fake, str objective,"
    " str formulation, str impl) -> (Tensor losses, Tensor coefficient_real, Tensor coefficient_fake)"
)
_library.define(
    "logit_terms(Tensor real_logits, Tensor fake_logits, float weight, float floor, str objective, str formulation, str impl,"
    " Tensor(a!) weight_real, Tensor(b!) weight_fake, Tensor(c!) sums, Tensor(d!)? coefficient_real,"
    " Tensor(e!)? coefficient_fake) -> ()"
)
_library.define(
    "perturb(Tensor x, Tensor grad, float eps, str norm, float? clip_min, float? clip_max, str impl, Tensor(a!) out) -> ()"
)
_library.define(
    "attack_step(Tensor[] x, Tensor[] v, Tensor[] logits, Tensor[] targets, Tensor?[] weights, float eps, str objective,"
    " str formulation, str norm, float? clip_min, float? clip_max, str impl, Tensor(a!)[] adv, Tensor(b!)[] grads,"
    " Tensor(c!)[] norms, Tensor(d!) losses) -> ()"
)
_library.define("sample_images(Tensor images, Tensor index, Tensor? mirrored, str impl, Tensor(a!) out) -> ()")


def _loss_arguments(
    real: Tensor, fake: Tensor, target_real: Tensor, target_fake: Tensor, objective: str, formulation: str
) -> tuple[Logits, LossOutputs]:
    """The registered operation's arguments as records, checked, and memory for its results."""
    logits = Logits((real, fake), (target_real, target_fake))
    check_loss(logits, objective, formulation)
    dtype, device = loss_dtype(logits.own), real.device
    losses = torch.empty(2, dtype=dtype, device=device)
    coefficients = torch.empty_like(real, dtype=dtype), torch.empty_like(fake, dtype=dtype)
    return logits, LossOutputs(losses, coefficients)


def _attack_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, out = _loss_arguments(*arguments[:-1])
    objective, formulation, impl = arguments[-3:]
    objective = objective_of(objective).kernels
    dispatch.backend(out.losses.device, impl, objective=objective).attack_loss(logits, objective, formulation, out)
    return out.losses, *out.coefficients


def _attack_loss_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, out = _loss_arguments(*arguments[:-1])
    return out.losses, *out.coefficients


def _term_arguments(
    real: Tensor,
    fake: Tensor,
    weight: float,
    floor: float,
    objective: str,
    formulation: str,
    impl: str,
    weight_real: Tensor,
    weight_fake: Tensor,
    sums: Tensor,
    coefficient_real: Tensor | None,
    coefficient_fake: Tensor | None,
) -> tuple[Pair, LogitTerms, TermOutputs]:
    logits, how = (real, fake), LogitTerms(weight, floor, objective, formulation)
    out = TermOutputs((weight_real, weight_fake), sums, (coefficient_real, coefficient_fake))
    check_terms(logits, how, out)
    return logits, how, out


def _logit_terms(*arguments: Any) -> None:
    logits, how, out = _term_arguments(*arguments)
    dispatch.backend(out.sums.device, arguments[6], objective=how.objective).logit_terms(logits, how, out)


def _logit_terms_fake(*arguments: Any) -> None:
    _term_arguments(*arguments)


def _perturb(*arguments: Any) -> None:
    (x, grad, *_), impl, out = arguments, arguments[-2], arguments[-1]
    how = _perturbation(*arguments)
    dispatch.backend(x.device, impl, norm=how.norm).perturb(x, grad, how, out)


def _perturb_fake(*arguments: Any) -> None:
    _perturbation(*arguments)


def _perturbation(
    x: Tensor,
    grad: Tensor,
    eps: float,
    norm: str,
    clip_min: float | None,
    clip_max: float | None,
    impl: str,
    out: Tensor,
) -> Perturbation:
    """The registered operation's arguments as a record, checked."""
    how = Perturbation(eps, norm, clip_min, clip_max)
    check_images("x", x, grad)
    check_perturbation(how)
    check_result("out", out, x.shape, x.dtype, x.device)
    return how


def _pair(name: str, tensors: Sequence[Tensor]) -> Pair:
    if len(tensors) != 2:
        raise ValueError(f"{name} must be two tensors, of the real and of the generated images; got {len(tensors)}")
    return tensors[0], tensors[1]


def _optional_pair(name: str, tensors: Sequence[Tensor | None]) -> OptionalPair:
    return (None, None) if not tensors else _pair(name, tensors)  # type: ignore[arg-type]


def _step_arguments(
    x: Sequence[Tensor],
    v: Sequence[Tensor],
    logits: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    eps: float,
    objective: str,
    formulation: str,
    norm: str,
    clip_min: float | None,
    clip_max: float | None,
    impl: str,
    adv: Sequence[Tensor],
    grads: Sequence[Tensor],
    norms: Sequence[Tensor],
    losses: Tensor,
) -> tuple[AttackInputs, Attack, str, StepOutputs]:
    """The registered operation's arguments as the records that the rest of the library hands around, checked."""
    inputs = AttackInputs(
        _pair("x", x),
        _pair("v", v),
        _pair("logits", logits),
        _pair("targets", targets),
        _optional_pair("weights", weights),
    )
    attack = Attack(eps, objective, formulation, norm, clip_min, clip_max)
    out = StepOutputs(_pair("adv", adv), _optional_pair("grads", grads), _optional_pair("norms", norms), losses)
    check_step(inputs, attack)
    check_step_outputs(out, inputs)
    return inputs, attack, impl, out


def _attack_step(*arguments: Any) -> None:
    inputs, attack, impl, out = _step_arguments(*arguments)
    attack = attack._replace(objective=objective_of(attack.objective).kernels)
    backend = dispatch.backend(inputs.x[0].device, impl, objective=attack.objective, norm=attack.norm)
    backend.attack_step(inputs, attack, out)


def _attack_step_fake(*arguments: Any) -> None:
    _step_arguments(*arguments)


def _sample_images(images: Tensor, index: Tensor, mirrored: Tensor | None, impl: str, out: Tensor) -> None:
    check_samples(images, index, mirrored, out)
    if out.numel():
        dispatch.backend(images.device, impl).sample_images(images, index, mirrored, out)


def _sample_images_fake(images: Tensor, index: Tensor, mirrored: Tensor | None, impl: str, out: Tensor) -> None:
    check_samples(images, index, mirrored, out)


for _name, _implementation, _fake in (
    ("attack_loss", _attack_loss, _attack_loss_fake),
    ("logit_terms", _logit_terms, _logit_terms_fake),
    ("perturb", _perturb, _perturb_fake),
    ("attack_step", _attack_step, _attack_step_fake),
    ("sample_images", _sample_images, _sample_images_fake),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")  # every device: the reference runs on any
    torch.library.register_fake(f"datgan_fast::{_name}", _fake, lib=_library)
