"""sample_images, C++ and reference; what every backend must do stands in sample_cases.py."""

import pytest
import torch

from datgan_fast.method.buffered_ops import sample_images
from kernel_cases import Target
from sample_cases import *  # noqa: F403
from sample_cases import bytes_of, check, drawn


@pytest.fixture(params=["cpu", "reference"])
def target(request):
    return Target(request.param, "cpu")


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_an_index_that_is_none_is_refused_before_anything_is_written(target, wrong):
    out = torch.full((3, 3, 4, 4), 7.0)
    message = f"^index must be at least 0 and below the number of images, 5; got {wrong}$"
    with pytest.raises(IndexError, match=message):
        sample_images(bytes_of(target, 5, 3, 4, 4), torch.tensor([4, 0, wrong]), None, out, impl=target.impl)
    assert (out == 7).all()


def test_from_no_images_nothing_can_be_drawn(target):
    with pytest.raises(ValueError, match="at least one image to draw 2 from"):
        sample_images(
            bytes_of(target, 0, 3, 4, 4), torch.tensor([0, 0]), None, torch.empty(2, 3, 4, 4), impl=target.impl
        )


def test_a_batch_for_several_threads(target):
    images = bytes_of(target, 40, 3, 32, 32)
    index, mirrored = drawn(target, 40, 64)
    for layout in ("contiguous", "channels_last"):
        check(target, images, index, mirrored, layout=layout)


def test_the_chain_that_it_replaces(target):
    """Index, flip, normalise and cast as torch does them one by one."""
    images = bytes_of(target, 20, 3, 16, 16)
    index, mirrored = drawn(target, 20, 32)
    batch = images.index_select(0, index)
    batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(-1), batch).float().div_(127.5).sub_(1)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(batch.shape, dtype=dtype)
        sample_images(images, index, mirrored, out, impl=target.impl)
        assert torch.equal(out, batch.to(dtype))
