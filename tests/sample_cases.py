"""What sample_images must do on every backend, against plain indexing; collected by the files that say where it runs."""

import math

import numpy as np
import pytest
import torch

from datgan_fast.method.buffered_ops import sample_images
from layouts import FLOATS, GUARD, assert_nothing_written_around, laid_out, name

LAYOUTS = ("contiguous", "misaligned", "channels_last", "every second pixel", "cropped", "padded", "transposed")


def bytes_of(target, *shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).to(target.device)


def plain(images, index, mirrored):
    """Image by image, pixel by pixel, in float32."""
    batch = []
    for b, i in enumerate(index.tolist()):
        image = images[i].cpu().numpy().astype(np.float32) / np.float32(127.5) - np.float32(1)
        batch.append(image[..., ::-1] if mirrored is not None and mirrored[b] else image)
    return torch.from_numpy(np.stack(batch))


def unwritten(shape, dtype, layout, device):
    out = torch.full(shape, math.nan, dtype=dtype, device=device)
    if layout != "contiguous":
        return laid_out(out, layout)
    return out.new_full([out.numel() + 2 * GUARD], math.nan)[GUARD:-GUARD].view(shape)


def check(target, images, index, mirrored, dtype=torch.float32, layout="contiguous"):
    out = unwritten((len(index), *images.shape[1:]), dtype, layout, target.device)
    strides = out.stride()
    sample_images(images, index, mirrored, out, impl=target.impl)
    expected = plain(images, index, mirrored).to(dtype)
    if dtype.itemsize == 2 and target.half_ulps != 0.5:
        off = (out.cpu().view(torch.int16).int() - expected.view(torch.int16).int()).abs()
        assert off.max() <= 1
    else:
        assert torch.equal(out.cpu(), expected)
    assert out.stride() == strides
    assert_nothing_written_around(out, "out")


def drawn(target, count, batch, seed=2):
    generator = np.random.default_rng(seed)
    index = torch.from_numpy(generator.integers(0, count, batch)).to(target.device)
    return index, torch.from_numpy(generator.random(batch) < 0.5).to(target.device)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_every_byte_is_torchs_to_the_bit(target, dtype):
    images = torch.arange(256, dtype=torch.uint8, device=target.device).view(1, 1, 16, 16)
    out = torch.full((1, 1, 16, 16), math.nan, dtype=dtype, device=target.device)
    index = torch.zeros(1, dtype=torch.int64, device=target.device)
    sample_images(images, index, None, out, impl=target.impl)
    expected = images.float().div_(127.5).sub_(1).to(dtype)
    if target.half_ulps == 0.5 or dtype.itemsize > 2:
        assert torch.equal(out, expected)
    else:
        assert (out.view(torch.int16).int() - expected.view(torch.int16).int()).abs().max() <= 1


@pytest.mark.parametrize("flips", [False, True], ids=["as they are", "mirrored"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_dtypes_and_memory_formats(target, dtype, layout, flips):
    images = bytes_of(target, 9, 3, 5, 7)
    index, mirrored = drawn(target, 9, 6)
    assert mirrored.any() and not mirrored.all()
    check(target, images, index, mirrored if flips else None, dtype, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_strided_images_and_indices(target, layout):
    images = bytes_of(target, 7, 11, 9, 8).permute(0, 3, 1, 2)[::2, 1:6:2, :, 2:]
    index, mirrored = drawn(target, len(images), 10)
    check(target, images, index[::3], mirrored[1::3][:4].repeat(2)[: len(index[::3])], layout=layout)
    check(target, images, index.repeat_interleave(2)[::2][:5], mirrored[::2], layout=layout)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (4, 1, 1, 9), (4, 2, 6, 1), (3, 4, 33, 31), (2, 3, 70, 65), (2, 0, 4, 4)], ids=str
)
def test_shapes(target, shape):
    images = bytes_of(target, *shape)
    index, mirrored = drawn(target, len(images), 3)
    check(target, images, index, mirrored)


def test_an_image_may_be_drawn_often_and_a_batch_be_empty(target):
    images = bytes_of(target, 3, 3, 4, 4)
    index = torch.tensor([2, 2, 2, 0, 2], device=target.device)
    check(target, images, index, torch.tensor([True, False, True, True, False], device=target.device))
    for count in (3, 0):
        out = torch.empty(0, 3, 4, 4, device=target.device)
        sample_images(images[:count], index[:0], None, out, impl=target.impl)
