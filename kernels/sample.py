"""The kernel that draws a batch: gather, mirror, normalise and cast."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .logits import store


class Bytes(NamedTuple):
    """uint8 images, whose pixels are found by counting through the output's `sizes` with strides of their own."""

    data: Any
    count: int
    image_stride: int
    strides: tuple
    mirrored_strides: tuple  # of an image that is mirrored, whose first pixel lies at mirrored_start
    mirrored_start: int


class Target(NamedTuple):
    data: Any
    image_stride: int
    strides: tuple
    sizes: tuple  # of an image, fastest first in memory
    numel: int


@triton.jit
def sample_kernel(images, index, index_stride, mirrored, mirrored_stride, out, shares, block: tl.constexpr):
    """out[b] = images[index[b]] / 127.5 - 1, a block of one image's elements per program.

    An index that is none of an image is taken for the nearest that is: nothing else is ours to read.
    """
    b = tl.program_id(0).to(tl.int64) // shares
    element = (tl.program_id(0) % shares).to(tl.int64) * block + tl.arange(0, block)
    mask = element < out.numel
    image = tl.load(index + b * index_stride)
    image = tl.minimum(tl.maximum(image, 0), images.count - 1)
    flip = tl.zeros([], tl.int1)
    if mirrored is not None:
        flip = tl.load(mirrored + b * mirrored_stride) != 0
    source = image * images.image_stride + tl.where(flip, images.mirrored_start, 0)
    target = b * out.image_stride
    for d in tl.static_range(3):
        i = element % out.sizes[d] if d < 2 else element
        source += i * tl.where(flip, images.mirrored_strides[d], images.strides[d])
        target += i * out.strides[d]
        element = element // out.sizes[d]
    byte = tl.load(images.data + source, mask=mask, other=0)
    store(out.data + target, tl.div_rn(byte.to(tl.float32), 127.5) - 1, mask)
