"""The kernels that move images; logits.py reduces the logits, formulas.py has the mathematics.

Arguments travel in named tuples. An operand's image i begins at data + i * image_stride; inside an image,
element number k is found by counting through `sizes`, fastest first, with the operand's own `strides`.
Contiguous and equally channels_last images are one dimension of stride 1, so that nothing is divided and
loads are wide. Offsets are int64 throughout.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .formulas import clip, direction, step_size, unweighted, unweighted_norm
from .logits import load_vector, side_target, side_term, store, write_loss


class Operand(NamedTuple):
    data: Any
    image_stride: int
    strides: tuple


class Images(NamedTuple):
    """One side's images. An item is what is perturbed at a time: `chunk` elements of one image."""

    x: Operand
    v: Operand  # the gradient handed in
    adv: Operand
    grad: Any  # Operand or None: coefficient * v
    norms: Any  # Vector or None: ||v_i / weight_i||
    weight: Any  # Vector or None: v_i = weight_i * d D(x_i) / d x_i
    sizes: tuple
    numel: int  # of one image
    items: int
    chunk: int
    items_per_image: int
    items_per_program: int


@triton.jit
def address(operand, image, index, sizes):
    """Pointers to elements `index` of an image."""
    offset = image * operand.image_stride
    for d in tl.static_range(len(sizes) - 1):
        offset += index % sizes[d] * operand.strides[d]
        index = index // sizes[d]
    return operand.data + offset + index * operand.strides[len(sizes) - 1]


@triton.jit
def perturb_item(images, item, coefficient, eps, clip_min, clip_max, norm: tl.constexpr, block: tl.constexpr):
    """One item's perturbed elements; an item is a whole image where the image's norm is needed.

    A norm takes two passes over v; the second finds it in the cache unless the images in flight outgrow that.
    """
    is_double: tl.constexpr = (
        images.x.data.dtype.element_ty == tl.float64 or images.v.data.dtype.element_ty == tl.float64
    )
    dtype: tl.constexpr = tl.float64 if is_double else tl.float32
    image = item // images.items_per_image
    begin = item % images.items_per_image * images.chunk
    end = tl.minimum(begin + images.chunk, images.numel)
    coefficient = tl.full([], coefficient, dtype)

    v_norm = tl.zeros_like(coefficient)
    if norm == "l2" or images.norms is not None:
        # In float64: a gradient that carries a tiny weight has squares below float32's range.
        squares = tl.zeros([block], tl.float64)
        for start in range(begin, end, block):
            index = start + tl.arange(0, block)
            v = tl.load(address(images.v, image, index, images.sizes), mask=index < end, other=0).to(tl.float64)
            squares += v * v
        length = tl.sqrt(tl.sum(squares))
        v_norm = length.to(dtype)
        if images.norms is not None:
            if images.weight is not None:
                length = unweighted_norm(length, load_vector(images.weight, image, tl.float64))
            tl.store(images.norms.data + image * images.norms.stride, length)

    step = step_size(tl.full([], eps, dtype), coefficient, v_norm, norm)
    low, high = tl.full([], clip_min, dtype), tl.full([], clip_max, dtype)
    for start in range(begin, end, block):
        index = start + tl.arange(0, block)
        mask = index < end
        x = tl.load(address(images.x, image, index, images.sizes), mask=mask).to(dtype)
        v = tl.load(address(images.v, image, index, images.sizes), mask=mask).to(dtype)
        adv = clip(x - step * direction(v, coefficient, norm), low, high)
        store(address(images.adv, image, index, images.sizes), adv, mask)
        if images.grad is not None:
            store(address(images.grad, image, index, images.sizes), coefficient * v, mask)


@triton.jit
def perturb_kernel(
    images,
    eps: tl.float64,
    clip_min: tl.float64,
    clip_max: tl.float64,
    norm: tl.constexpr,
    block: tl.constexpr,
):
    """x_adv = clip(x - eps * n(v)), one item per program."""
    perturb_item(images, tl.program_id(0).to(tl.int64), 1.0, eps, clip_min, clip_max, norm, block)


@triton.jit
def attack_step_side(
    program,
    this,
    other,
    loss_pointer,
    eps,
    clip_min,
    clip_max,
    objective: tl.constexpr,
    formulation: tl.constexpr,
    norm: tl.constexpr,
    side: tl.constexpr,
    block: tl.constexpr,
):
    dtype: tl.constexpr = loss_pointer.dtype.element_ty
    images = this.images
    target, own_mean = side_target(this, other, dtype, objective, formulation, side)
    if program == 0:
        write_loss(this, target, own_mean, loss_pointer, objective, formulation, side)
    first = program.to(tl.int64) * images.items_per_program
    for item in range(first, tl.minimum(first + images.items_per_program, images.items)):
        image = item // images.items_per_image
        _, coefficient = side_term(this, image, target, own_mean, dtype, objective, formulation, side)
        if images.weight is not None:
            coefficient = unweighted(coefficient, load_vector(images.weight, image, dtype))
        perturb_item(images, item, coefficient, eps, clip_min, clip_max, norm, block)


@triton.jit
def attack_step_kernel(
    real,
    fake,
    losses,
    eps: tl.float64,
    clip_min: tl.float64,
    clip_max: tl.float64,
    objective: tl.constexpr,
    formulation: tl.constexpr,
    norm: tl.constexpr,
    block: tl.constexpr,
):
    """Losses, coefficients, gradients and perturbed images in one launch.

    The first programs do the real side, the others the generated one. Each reduces the logits for itself, so
    that no program waits for another, and then perturbs its share of the items.
    """
    program = tl.program_id(0)
    if program < real.programs:
        attack_step_side(
            program, real, fake, losses, eps, clip_min, clip_max, objective, formulation, norm, "real", block
        )
    else:
        attack_step_side(
            program - real.programs,
            fake,
            real,
            losses + 1,
            eps,
            clip_min,
            clip_max,
            objective,
            formulation,
            norm,
            "fake",
            block,
        )
