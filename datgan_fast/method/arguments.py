"""What an attack step is told and given, put together once and handed down from step.py and ops.py to the backends; and what
these arguments must be."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .formulas import FORMULATIONS, NORMS, Bound, check_choice, named, objective_of
from .objective import Objective

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Pair = tuple[Tensor, Tensor]  # (real, fake)
OptionalPair = tuple[Tensor | None, Tensor | None]
Side = Literal["real", "fake"]
SIDES: tuple[Side, Side] = ("real", "fake")


class Perturbation(NamedTuple):
    """How images are moved along a gradient."""

    eps: float
    norm: str
    clip_min: Bound
    clip_max: Bound


class Attack(NamedTuple):
    """How images are attacked; the fields are the arguments of `datgan_fast.attack_step`, in the operation's order."""

    eps: float
    objective: str | Objective  # a name wherever it has one
    formulation: str
    norm: str
    clip_min: Bound
    clip_max: Bound

    @property
    def perturbation(self) -> Perturbation:
        return Perturbation(self.eps, self.norm, self.clip_min, self.clip_max)


class Logits(NamedTuple):
    """What an attack loss compares."""

    own: Pair  # of the images
    targets: Pair  # those whose means the other side is compared with


class LogitTerms(NamedTuple):
    """What a discriminator's step makes of its logits."""

    weight: float  # of the loss -(mean g1(r) + mean g2(f)) in the weights
    floor: float  # over a side's number of logits: the least magnitude of a weight; 0: none
    objective: str | Objective
    formulation: str  # of the attack loss, where its terms are wanted


class AttackInputs(NamedTuple):
    """The tensors an attack step reads."""

    x: Pair  # images
    v: Pair  # the discriminator's input gradients
    logits: Pair
    targets: Pair  # the logits whose means the other side is compared with
    weights: OptionalPair = (None, None)  # factors in the rows of v; None: 1

    @property
    def scores(self) -> Logits:
        return Logits(self.logits, self.targets)


class LossOutputs(NamedTuple):
    """What the attack loss writes."""

    losses: Tensor  # [2]: real, fake
    coefficients: Pair  # [m], [n]: the losses' gradients with respect to the logits


class TermOutputs(NamedTuple):
    """What logit_terms writes."""

    weights: Pair  # like the logits: weight * the loss's gradient with respect to them
    sums: Tensor  # [4]: the loss, mean r - mean f, the attack losses real and fake
    coefficients: OptionalPair  # [m], [n]: the attack losses' gradients; None: not wanted, the attack losses are then 0


class StepOutputs(NamedTuple):
    """What an attack step writes; None: not wanted."""

    adv: Pair  # like x
    grads: OptionalPair  # like v
    norms: OptionalPair  # [m], [n]: ||v_i / weight_i||, NaN for a weight of 0
    losses: Tensor  # [2]: real, fake


def check_float(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be a float64, float32, float16 or bfloat16 tensor; got {_kind(tensor)}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got {tensor.layout}")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise TypeError(
            f"{name} is inside a torch.func transform (vmap, grad, ...), through which kernels cannot be followed; "
            "the operations of datgan_fast.reference can"
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}" + (
            "; scale pixels first: x / 127.5 - 1 for [0, 255]" if value.dtype == torch.uint8 else ""
        )
    return type(value).__name__ + (
        "; use torch.from_numpy" if _is_array(value) and not isinstance(value, Tensor) else ""
    )


def _is_array(value: Any) -> bool:
    """Whether it is a tensor or one of numpy's, which is not imported here: nothing in this folder needs it."""
    return isinstance(value, Tensor) or (type(value).__module__, type(value).__name__) == ("numpy", "ndarray")


def number(name: str, value: Any) -> float:
    """A Python number of what looks like one; a tensor of no dimensions is read back from its device."""
    if isinstance(value, (int, float, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise ValueError(f"{name} must be a number that a float can hold; got a larger one")
        return value  # type: ignore[return-value]
    if _is_array(value):
        if value.ndim == 0:
            return float(value)
        raise TypeError(f"{name} must be a number; got one of shape {tuple(value.shape)}")
    if isinstance(value, Real) and not isinstance(value, bool):  # numpy's numbers are Real
        return float(value)
    raise TypeError(f"{name} must be a number; got {value!r}")


def backend_name(impl: Any) -> str:
    """As an operation takes it: "" for the best usable one."""
    if impl is None or isinstance(impl, str):
        return impl or ""
    raise TypeError(f"impl must be the name of a backend or None; got {type(impl).__name__}")


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


def check_perturbation(how: Perturbation) -> None:
    eps, norm, clip_min, clip_max = how
    if not -math.inf < eps < math.inf:  # math.isfinite cannot be traced with a symbolic eps
        raise ValueError(f"eps must be a finite number; got {eps}")
    check_choice("norm", norm, NORMS)
    for name, bound in (("clip_min", clip_min), ("clip_max", clip_max)):
        if bound is not None and not isinstance(bound, Tensor) and number(name, bound) != bound:
            raise ValueError(f"{name} must be a number, a tensor or None; got {bound}")
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
    named(attack.objective)
    check_choice("formulation", attack.formulation, FORMULATIONS)
    # Not attack.perturbation: torch 2.6's compiler cannot follow a named tuple's property.
    check_perturbation(Perturbation(attack.eps, attack.norm, attack.clip_min, attack.clip_max))


def check_loss(logits: Logits, objective: str | Objective, formulation: str) -> None:
    _check_compared(logits.own, objective, formulation)
    target_real, target_fake = logits.targets
    check_logits("target_real_logits", target_real, logits.own[0].device)
    check_logits("target_fake_logits", target_fake, logits.own[0].device)


def _check_compared(logits: Pair, objective: str | Objective, formulation: str) -> None:
    named(objective)
    check_choice("formulation", formulation, FORMULATIONS)
    real, fake = logits
    check_float("real_logits", real)  # before its device is asked for
    check_logits("real_logits", real, real.device)
    check_logits("fake_logits", fake, real.device)


def check_step(inputs: AttackInputs, attack: Attack) -> None:
    check_attack(attack)
    (x_real, x_fake), (v_real, v_fake), (real, fake), (target_real, target_fake), (weight_real, weight_fake) = inputs
    check_images("x_real", x_real, v_real)
    check_images("x_fake", x_fake, v_fake)
    device = x_real.device
    if x_fake.device != device:
        raise ValueError(f"x_real and x_fake must be on one device; got {device}, {x_fake.device}")
    check_one_per_image("real_logits", "logit", real, x_real)
    check_one_per_image("fake_logits", "logit", fake, x_fake)
    check_logits("target_real_logits", target_real, device)
    check_logits("target_fake_logits", target_fake, device)
    if weight_real is not None:
        check_one_per_image("grad_weight_real", "weight", weight_real, x_real)
    if weight_fake is not None:
        check_one_per_image("grad_weight_fake", "weight", weight_fake, x_fake)


def check_one_per_image(name: str, what: str, t: Tensor, images: Tensor) -> None:
    check_logits(name, t, images.device)
    if t.shape[0] != images.shape[0]:
        raise ValueError(f"{name} must have one {what} for each of the {len(images)} images; got {len(t)}")


def check_step_outputs(out: StepOutputs, inputs: AttackInputs) -> None:
    device = inputs.x[0].device
    for k, side in enumerate(SIDES):
        x, v, logits = inputs.x[k], inputs.v[k], inputs.logits[k]
        check_result(f"adv_{side}", out.adv[k], x.shape, x.dtype, device)
        if (grad := out.grads[k]) is not None:
            check_result(f"grad_{side}", grad, v.shape, v.dtype, device)
        if (norm := out.norms[k]) is not None:
            check_result(f"norm_{side}", norm, logits.shape, None, device)
    check_result("losses", out.losses, (2,), loss_dtype(inputs.logits), device)


def loss_dtype(logits: Pair) -> torch.dtype:
    return torch.float64 if torch.float64 in (logits[0].dtype, logits[1].dtype) else torch.float32


def check_terms(logits: Pair, how: LogitTerms, out: TermOutputs) -> None:
    _check_compared(logits, how.objective, how.formulation)
    if (row := objective_of(how.objective)).loss is not None:
        raise ValueError(
            f"objective {row.name!r} compares the scores of both batches, so that no score has a loss of its own"
        )
    if not math.isfinite(how.weight):
        raise ValueError(f"weight must be a finite number; got {how.weight}")
    if not 0 <= how.floor < math.inf:
        raise ValueError(f"floor must be a finite number of at least 0; got {how.floor}")
    dtype, device = loss_dtype(logits), logits[0].device
    for side, t, weight in zip(SIDES, logits, out.weights, strict=True):
        check_result(f"weight_{side}", weight, t.shape, t.dtype, device)
    if (out.coefficients[0] is None) != (out.coefficients[1] is None):
        raise ValueError("coefficients are written for both sides or for none; got one tensor")
    for side, t, coefficient in zip(SIDES, logits, out.coefficients, strict=True):
        if coefficient is not None:
            check_result(f"coefficient_{side}", coefficient, t.shape, dtype, device)
    check_result("sums", out.sums, (4,), dtype, device)


def check_samples(images: Tensor, index: Tensor, mirrored: Tensor | None, out: Tensor) -> None:
    check_kind("images", images, torch.uint8, 4, "[number, channels, height, width]", images.device)
    check_kind("index", index, torch.int64, 1, "[batch]", images.device)
    if mirrored is not None:
        check_kind("mirrored", mirrored, torch.bool, 1, "[batch]", images.device)
        if len(mirrored) != len(index):
            raise ValueError(f"mirrored must have one entry for each of the {len(index)} images; got {len(mirrored)}")
    check_result("out", out, (len(index), *images.shape[1:]), None, images.device)
    if not len(images) and len(index):
        raise ValueError(f"images must hold at least one image to draw {len(index)} from; got none")


def check_kind(name: str, t: Tensor, dtype: torch.dtype, dims: int, shape: str, device: torch.device) -> None:
    if t.dtype != dtype or t.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense {dtype} tensor; got {t.dtype}, {t.layout}")
    if t.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(t.shape)}")
    if t.device != device:
        raise ValueError(f"{name} must be on {device} like the images; got {t.device}")


def check_index(index: Tensor, count: int) -> None:
    """Of an index on the CPU."""
    wrong = index[(index < 0) | (index >= count)]
    if len(wrong):
        raise IndexError(f"index must be at least 0 and below the number of images, {count}; got {wrong[0].item()}")


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
    if result.is_contiguous():
        return
    if result.numel() and any(st == 0 and size > 1 for size, st in zip(result.shape, result.stride(), strict=True)):
        raise ValueError(f"{name} must have memory of its own for every element; got strides {result.stride()}")
