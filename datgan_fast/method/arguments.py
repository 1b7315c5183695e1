"""What an attack step is told and given, put together once and handed down from step.py and ops.py to the backends; and what
these arguments must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .formulas import FORMULATIONS, NORMS, OBJECTIVES, Bound

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Pair = tuple[Tensor, Tensor]  # (real, fake)
OptionalPair = tuple[Tensor | None, Tensor | None]


class Attack(NamedTuple):
    """How images are attacked; the fields are the arguments of `datgan_fast.attack_step`, in the operation's order."""

    eps: float
    objective: str
    formulation: str
    norm: str
    clip_min: Bound
    clip_max: Bound


class AttackInputs(NamedTuple):
    """The tensors an attack step reads."""

    x: Pair  # images
    v: Pair  # the discriminator's input gradients
    logits: Pair
    references: Pair  # the logits whose means are the targets
    weights: OptionalPair = (None, None)  # factors in the rows of v; None: 1


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_float(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be a float64, float32, float16 or bfloat16 tensor; got {_kind(tensor)}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got {tensor.layout}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}" + (
            "; scale pixels first: x / 127.5 - 1 for [0, 255]" if value.dtype == torch.uint8 else ""
        )
    return type(value).__name__ + ("; use torch.from_numpy" if isinstance(value, np.ndarray) else "")


def number(name: str, value: Any) -> float:
    """A Python number of what looks like one; a tensor of no dimensions is read back from its device."""
    if isinstance(value, (int, float, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if isinstance(value, (np.floating, np.integer)) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0):
        return float(value)
    got = f"one of shape {tuple(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else repr(value)
    raise TypeError(f"{name} must be a number; got {got}")


def check_logits(name: str, t: Tensor, device: torch.device) -> None:
    check_float(name, t)
    if t.dim() != 1:
        raise ValueError(f"{name} must have shape [batch], one logit per image; got {tuple(t.shape)}")
    if t.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors; got {t.device}")


def check_images(name: str, x: Tensor, grad: Tensor) -> None:
    check_float(name, x)
    check_float(f"the input gradient of {name}", grad)
    if x.dim() < 1 or grad.shape != x.shape:
        raise ValueError(
            f"{name} and its input gradient must have one shape [batch, ...]; got {tuple(x.shape)}, {tuple(grad.shape)}"
        )
    if grad.device != x.device:
        raise ValueError(f"{name} and its input gradient must be on one device; got {x.device}, {grad.device}")


def check_perturbation(eps: float, norm: str, clip_min: Bound, clip_max: Bound) -> None:
    if not -math.inf < eps < math.inf:  # math.isfinite cannot be traced with a symbolic eps
        raise ValueError(f"eps must be a finite number; got {eps}")
    check_choice("norm", norm, NORMS)
    if clip_min is None or clip_max is None or isinstance(clip_min, Tensor) or isinstance(clip_max, Tensor):
        return
    if clip_min > clip_max:
        raise ValueError(f"clip_min must not exceed clip_max; got {clip_min} and {clip_max}")


def check_bound(name: str, bound: Bound, x: Tensor) -> None:
    """Of bounds given as tensors: whether they belong to the images x."""
    if not isinstance(bound, Tensor):
        return
    check_float(name, bound)
    matches = bound.dim() <= x.dim() and all(
        b in (1, size) for b, size in zip(reversed(bound.shape), reversed(x.shape), strict=False)
    )
    if not matches:
        raise ValueError(
            f"{name} must be a number or broadcast to the images, such as [channels, 1, 1]; got {tuple(bound.shape)} for images "
            f"{tuple(x.shape)}"
        )
    if bound.device != x.device and bound.dim() > 0:
        raise ValueError(f"{name} must be on the images' device {x.device}; got {bound.device}")


def check_attack(attack: Attack) -> None:
    check_choice("objective", attack.objective, OBJECTIVES)
    check_choice("formulation", attack.formulation, FORMULATIONS)
    check_perturbation(attack.eps, attack.norm, attack.clip_min, attack.clip_max)


def check_step(inputs: AttackInputs, attack: Attack) -> None:
    check_attack(attack)
    x, v, logits, references, weights = inputs
    for side, images, gradient in zip(("real", "fake"), x, v, strict=True):
        check_images(f"x_{side}", images, gradient)
    device = x[0].device
    if x[1].device != device:
        raise ValueError(f"x_real and x_fake must be on one device; got {device}, {x[1].device}")
    for side, images, t, reference, weight in zip(("real", "fake"), x, logits, references, weights, strict=True):
        check_logits(f"{side}_logits", t, device)
        if len(t) != len(images):
            raise ValueError(f"{side}_logits must have one logit for each of the {len(images)} images; got {len(t)}")
        check_logits(f"reference_{side}_logits", reference, device)
        if weight is not None:
            check_logits(f"grad_weight_{side}", weight, device)
            if len(weight) != len(images):
                raise ValueError(
                    f"grad_weight_{side} must have one weight for each of the {len(images)} images; got {len(weight)}"
                )


def check_result(
    name: str, result: Tensor, shape: Sequence[int], dtype: torch.dtype | None, device: torch.device
) -> None:
    """Of memory that an operation writes: it must be there for all that is written. dtype None: any floating one."""
    check_float(name, result)
    if result.shape != shape or (dtype is not None and result.dtype != dtype):
        raise ValueError(
            f"{name} must be a {dtype or 'floating'} tensor of shape {tuple(shape)}; got {result.dtype}, {tuple(result.shape)}"
        )
    if result.device != device:
        raise ValueError(f"{name} must be on {device}; got {result.device}")
    if result.numel() and any(st == 0 and size > 1 for size, st in zip(result.shape, result.stride(), strict=True)):
        raise ValueError(f"{name} must have memory of its own for every element; got strides {result.stride()}")
