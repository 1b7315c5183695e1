"""The kernels that reduce logits: the attack's terms and the objective's; formulas.py has the mathematics."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .formulas import attack_term, g, objective_weight, target_of_mean, target_term


class Vector(NamedTuple):
    data: Any
    stride: int
    count: int


class Batch(NamedTuple):
    """One side's logits and images."""

    logits: Vector
    targets: Vector  # the logits whose mean is the other side's target
    coefficient: Any  # Vector or None: d loss / d logits
    images: Any  # Images or None
    programs: int
    has_target: int  # 0 where a batch is empty: loss and coefficients are then 0


logit_block = tl.constexpr(1024)


@triton.jit
def load_vector(vector, index, dtype: tl.constexpr):
    offset = index.to(tl.int64) * vector.stride
    return tl.load(vector.data + offset, mask=index < vector.count, other=0).to(dtype)


@triton.jit
def store(pointers, value, mask):
    """Half-precision outputs are rounded from float32: the interpreter cannot round float64 to them."""
    if pointers.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    tl.store(pointers, value, mask=mask)


@triton.jit
def mean_target_term(
    other, dtype: tl.constexpr, objective: tl.constexpr, formulation: tl.constexpr, side: tl.constexpr
):
    # In float64: the mean of equal scores is that score, so that ties are ties.
    total = tl.zeros([logit_block], tl.float64)
    for start in range(0, other.count, logit_block):
        index = start + tl.arange(0, logit_block)
        term = target_term(load_vector(other, index, dtype), objective, formulation, side)
        total += tl.where(index < other.count, term.to(tl.float64), 0.0)
    return (tl.sum(total) / tl.maximum(other.count, 1).to(tl.float64)).to(dtype)


@triton.jit
def side_target(
    this, other, dtype: tl.constexpr, objective: tl.constexpr, formulation: tl.constexpr, side: tl.constexpr
):
    """(target, own_mean): what this side's scores are compared with, and for batch_mean the score itself."""
    mean = mean_target_term(other.targets, dtype, objective, formulation, side)
    own_mean = mean
    if formulation == "batch_mean":
        own_mean = mean_target_term(this.targets, dtype, objective, formulation, side)
    return target_of_mean(mean, objective, formulation, side), own_mean


@triton.jit
def side_term(
    this,
    index,
    target,
    own_mean,
    dtype: tl.constexpr,
    objective: tl.constexpr,
    formulation: tl.constexpr,
    side: tl.constexpr,
):
    """(loss, coefficient) of the images of these numbers."""
    logit = load_vector(this.logits, index, dtype)
    own_count = tl.maximum(this.targets.count, 1)
    loss, coefficient = attack_term(logit, target, own_mean, own_count, objective, formulation, side)
    has_target = this.has_target > 0
    return tl.where(has_target, loss, 0.0), tl.where(has_target, coefficient, 0.0)


@triton.jit
def write_loss(
    this,
    target,
    own_mean,
    loss_pointer,
    objective: tl.constexpr,
    formulation: tl.constexpr,
    side: tl.constexpr,
):
    """The side's loss and, where they are wanted, its coefficients; one program does it."""
    dtype: tl.constexpr = loss_pointer.dtype.element_ty
    total = tl.zeros([logit_block], dtype)
    for start in range(0, this.logits.count, logit_block):
        index = start + tl.arange(0, logit_block)
        loss, coefficient = side_term(this, index, target, own_mean, dtype, objective, formulation, side)
        # batch_mean has one scalar for the batch; every image shows it and image 0 contributes it.
        contributes = index < (1 if formulation == "batch_mean" else this.logits.count)
        total += tl.where(contributes, loss, 0.0)
        if this.coefficient is not None:
            offset = index.to(tl.int64) * this.coefficient.stride
            tl.store(this.coefficient.data + offset, coefficient, mask=index < this.logits.count)
    tl.store(loss_pointer, tl.sum(total))


@triton.jit
def attack_loss_side(this, other, loss_pointer, objective: tl.constexpr, formulation: tl.constexpr, side: tl.constexpr):
    dtype: tl.constexpr = loss_pointer.dtype.element_ty
    target, own_mean = side_target(this, other, dtype, objective, formulation, side)
    write_loss(this, target, own_mean, loss_pointer, objective, formulation, side)


@triton.jit
def attack_loss_kernel(real, fake, losses, objective: tl.constexpr, formulation: tl.constexpr):
    """Losses and coefficients; program 0 does the real side, program 1 the generated one."""
    if tl.program_id(0) == 0:
        attack_loss_side(real, fake, losses, objective, formulation, "real")
    else:
        attack_loss_side(fake, real, losses + 1, objective, formulation, "fake")


@triton.jit
def add_objective(
    logits,
    weight,
    factor,
    floor,
    dtype: tl.constexpr,
    objective: tl.constexpr,
    side: tl.constexpr,
):
    """Writes a side's weights; returns the mean of its g and of its logits, 0 where it has none."""
    scores, total = tl.zeros([logit_block], tl.float64), tl.zeros([logit_block], tl.float64)
    factor, floor = tl.full([], factor, dtype), tl.full([], floor, dtype)
    for start in range(0, logits.count, logit_block):
        index = start + tl.arange(0, logit_block)
        mask = index < logits.count
        t = load_vector(logits, index, dtype)
        scores += tl.where(mask, g(t, objective, side).to(tl.float64), 0.0)
        total += tl.where(mask, t.to(tl.float64), 0.0)
        value = objective_weight(t, factor, floor, objective, side)
        store(weight.data + index.to(tl.int64) * weight.stride, value, mask)
    count = tl.maximum(logits.count, 1).to(tl.float64)
    return tl.sum(scores) / count, tl.sum(total) / count


@triton.jit
def logit_terms_kernel(
    real,
    fake,
    weight_real,
    weight_fake,
    sums,
    factor_real: tl.float64,
    factor_fake: tl.float64,
    floor_real: tl.float64,
    floor_fake: tl.float64,
    objective: tl.constexpr,
    formulation: tl.constexpr,
):
    """All that a step wants of its logits. One program: the sides add up."""
    dtype: tl.constexpr = sums.data.dtype.element_ty
    score_real, mean_real = add_objective(real.logits, weight_real, factor_real, floor_real, dtype, objective, "real")
    score_fake, mean_fake = add_objective(fake.logits, weight_fake, factor_fake, floor_fake, dtype, objective, "fake")
    tl.store(sums.data, (-(score_real + score_fake)).to(dtype))
    tl.store(sums.data + sums.stride, (mean_real - mean_fake).to(dtype))
    if real.coefficient is not None:
        attack_loss_side(real, fake, sums.data + 2 * sums.stride, objective, formulation, "real")
        attack_loss_side(fake, real, sums.data + 3 * sums.stride, objective, formulation, "fake")
    else:
        tl.store(sums.data + 2 * sums.stride, tl.zeros([], dtype))
        tl.store(sums.data + 3 * sums.stride, tl.zeros([], dtype))
