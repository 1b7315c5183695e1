"""Launches of the Triton kernels: a datgan_fast.method.backend.Backend.

Nothing here allocates on the device, synchronises or reads from it: every launch can be captured in a CUDA
graph. Devices, shapes and dtypes have been checked in registered.py.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..method.arguments import (
    Attack,
    AttackInputs,
    Logits,
    LogitTerms,
    LossOutputs,
    Pair,
    Perturbation,
    StepOutputs,
    TermOutputs,
)
from ..method.backend import Backend
from ..method.formulas import NORMS as NORM_TABLE
from .attack import Images, Operand, attack_step_kernel, perturb_kernel
from .formulas import FORMULATIONS, NORMS, OBJECTIVES
from .logits import Batch, Vector, attack_loss_kernel, logit_terms_kernel
from .sample import Bytes, Target, sample_kernel

INTERPRETED: bool = triton.knobs.runtime.interpret  # TRITON_INTERPRET was set when this module was imported

LARGEST_BLOCK = 4096  # elements a program holds at a time
ELEMENTS_PER_WARP = 512
LARGEST_GRID = 2**30  # programs of one side; grid.x ends at 2^31 - 1


class Split(NamedTuple):
    """How one side's images are shared out among programs."""

    block: int
    chunk: int  # elements of an item
    items_per_image: int
    items: int
    items_per_program: int
    programs: int


def split(images: int, numel: int, whole_images: bool, logits: int = 0) -> Split:
    """An item is a block, or an image where its norm is needed (`whole_images`).

    A program of attack_step reads all the logits; it takes items enough for that to be a quarter at most.
    """
    block = min(LARGEST_BLOCK, max(128, triton.next_power_of_2(numel)))
    chunk = numel if whole_images else block
    items_per_image = 1 if whole_images else -(-numel // block)
    items = images * items_per_image
    items_per_program = max(1, 2 * logits // max(1, min(chunk, numel)), -(-items // LARGEST_GRID))
    return Split(block, chunk, items_per_image, items, items_per_program, -(-items // items_per_program))


@lru_cache(maxsize=1024)
def merge_dimensions(
    shape: tuple[int, ...], *strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """(sizes, each tensor's strides) of the dimensions inside an image, merged where every tensor allows it.

    Fastest first, in the order of the first tensor's memory; csrc/tensor.h does the same.
    """
    dims = sorted((d for d in range(1, len(shape)) if shape[d] != 1), key=lambda d: (strides[0][d], -d))
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for d in dims:
        if sizes and all(s[d] == m[-1] * sizes[-1] for s, m in zip(strides, merged, strict=True)):
            sizes[-1] *= shape[d]
            continue
        sizes.append(shape[d])
        for s, m in zip(strides, merged, strict=True):
            m.append(s[d])
    return tuple(sizes) or (1,), tuple(tuple(m) or (1,) for m in merged)


def _vector(t: Tensor) -> Vector:
    return Vector(t, t.stride(0), len(t))


def _images(
    x: Tensor,
    v: Tensor,
    adv: Tensor,
    norm: str,
    grad: Tensor | None = None,
    norms: Tensor | None = None,
    weight: Tensor | None = None,
    logits: int = 0,
) -> tuple[Images, Split]:
    tensors = [adv, x, v] if grad is None else [adv, x, v, grad]
    sizes, strides = merge_dimensions(x.shape, *(t.stride() for t in tensors))
    operands = [Operand(t, t.stride(0), s) for t, s in zip(tensors, strides, strict=True)]
    numel = math.prod(x.shape[1:])
    work = split(len(x), numel, NORM_TABLE[norm].needs_image_norm or norms is not None, logits)
    images = Images(
        x=operands[1],
        v=operands[2],
        adv=operands[0],
        grad=None if grad is None else operands[3],
        norms=None if norms is None else _vector(norms),
        weight=None if weight is None else _vector(weight),
        sizes=sizes,
        numel=numel,
        items=work.items,
        chunk=work.chunk,
        items_per_image=work.items_per_image,
        items_per_program=work.items_per_program,
    )
    return images, work


def _bytes(images: Tensor, out: Tensor) -> tuple[Bytes, Target]:
    """Both walked in the order of the output's memory."""
    dims = sorted((1, 2, 3), key=lambda d: (out.stride(d), -d))
    strides = tuple(images.stride(d) for d in dims)
    mirrored = tuple(-s if d == 3 else s for d, s in zip(dims, strides, strict=True))
    start = (images.shape[3] - 1) * images.stride(3)
    source = Bytes(images, len(images), images.stride(0), strides, mirrored, start)
    sizes = tuple(out.shape[d] for d in dims)
    return source, Target(out, out.stride(0), tuple(out.stride(d) for d in dims), sizes, math.prod(sizes))


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device's current stream."""
    return nullcontext() if INTERPRETED else torch.cuda.device(device)


def _numbers(how: Perturbation) -> tuple[float, float, float]:
    """(eps, clip_min, clip_max)"""
    low = -math.inf if how.clip_min is None else float(how.clip_min)
    high = math.inf if how.clip_max is None else float(how.clip_max)
    return float(how.eps), low, high


def _shape(block: int) -> dict[str, int]:
    return {"block": block, "num_warps": min(8, max(1, block // ELEMENTS_PER_WARP))}


def _batch(
    logits: Tensor, targets: Pair, k: int, images: Images | None, programs: int, coefficient: Tensor | None = None
) -> Batch:
    has_target = all(len(t) > 0 for t in targets)
    coefficients = None if coefficient is None else _vector(coefficient)
    return Batch(_vector(logits), _vector(targets[k]), coefficients, images, programs, int(has_target))


class TritonBackend:
    """The operations on CUDA tensors (interpreted on any); outputs go into the caller's tensors."""

    objectives, formulations, norms = OBJECTIVES, FORMULATIONS, NORMS

    def attack_loss(self, logits: Logits, objective: str, formulation: str, out: LossOutputs) -> None:
        batches = [
            _batch(logits.own[k], logits.targets, k, None, programs=1, coefficient=out.coefficients[k])
            for k in range(2)
        ]
        with _on(logits.own[0].device):
            attack_loss_kernel[(2,)](
                *batches, out.losses, objective=objective, formulation=formulation, enable_fp_fusion=True
            )

    def logit_terms(self, logits: Pair, how: LogitTerms, out: TermOutputs) -> None:
        batches = [_batch(logits[k], logits, k, None, programs=1, coefficient=out.coefficients[k]) for k in range(2)]
        counts = [max(1, len(t)) for t in logits]
        with _on(logits[0].device):
            logit_terms_kernel[(1,)](
                *batches,
                *map(_vector, (*out.weights, out.sums)),
                *(-how.weight / count for count in counts),
                *(how.floor / count for count in counts),
                objective=how.objective,
                formulation=how.formulation,
                enable_fp_fusion=True,
            )

    def perturb(self, x: Tensor, grad: Tensor, how: Perturbation, out: Tensor) -> None:
        if x.numel() == 0:
            return
        images, work = _images(x, grad, out, how.norm)
        with _on(x.device):
            perturb_kernel[(work.programs,)](
                images, *_numbers(how), norm=how.norm, **_shape(work.block), enable_fp_fusion=True
            )

    def attack_step(self, inputs: AttackInputs, attack: Attack, out: StepOutputs) -> None:
        x, v, logits, targets, weights = inputs
        logits_read = sum(map(len, targets))
        batches, blocks = [], []
        for k in range(2):
            images, work = _images(
                x[k], v[k], out.adv[k], attack.norm, out.grads[k], out.norms[k], weights[k], logits_read
            )
            # The loss is written even where there are no images.
            batches.append(_batch(logits[k], targets, k, images, max(1, work.programs)))
            blocks.append(work.block)
        with _on(x[0].device):
            attack_step_kernel[(batches[0].programs + batches[1].programs,)](
                *batches,
                out.losses,
                *_numbers(attack.perturbation),
                objective=attack.objective,
                formulation=attack.formulation,
                norm=attack.norm,
                **_shape(max(blocks)),
                enable_fp_fusion=True,
            )

    def sample_images(self, images: Tensor, index: Tensor, mirrored: Tensor | None, out: Tensor) -> None:
        source, target = _bytes(images, out)
        block = min(LARGEST_BLOCK, max(128, triton.next_power_of_2(target.numel)))
        shares = -(-target.numel // block)
        # Byte tensors: what torch and Triton call a bool differs.
        mirror, stride = (None, 0) if mirrored is None else (mirrored.view(torch.uint8), mirrored.stride(0))
        with _on(images.device):
            sample_kernel[(len(out) * shares,)](
                source, index, index.stride(0), mirror, stride, target, shares, **_shape(block), enable_fp_fusion=True
            )


BACKEND: Backend = TritonBackend()
