"""How the Triton launchers share out work and merge dimensions, beyond 2^31 elements too."""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from datgan_fast.kernels.launch import LARGEST_GRID, merge_dimensions, split

BATCHES = (0, 1, 2, 64, 21845, 2**31 + 1)
PIXELS = (0, 1, 127, 128, 784, 3072, 4096, 4097, 3 * 512 * 512, 2**31 + 7)


@pytest.mark.parametrize("logits", [0, 2, 128, 43690])
@pytest.mark.parametrize("whole_images", [False, True])
def test_programs_cover_every_element(whole_images, logits):
    for images, numel in itertools.product(BATCHES, PIXELS):
        work = split(images, numel, whole_images, logits)
        assert work.items == images * work.items_per_image
        assert work.chunk * work.items_per_image >= numel > work.chunk * (work.items_per_image - 1) or numel == 0
        assert work.programs * work.items_per_program >= work.items
        assert (work.programs - 1) * work.items_per_program < max(1, work.items)
        assert 2 * work.programs < 2**31, "real and generated images share grid.x"
        assert work.block & (work.block - 1) == 0, "Triton wants powers of two"


def test_small_batches_get_a_program_per_image():
    work = split(64, 3 * 32 * 32, whole_images=False, logits=128)
    assert (work.programs, work.items_per_program, work.block) == (64, 1, 4096)


def test_large_batches_do_not_reread_the_logits_for_every_image():
    work = split(21845, 3072, whole_images=False, logits=2 * 21845)
    logits_read = 2 * 21845 * work.programs
    assert logits_read <= 0.3 * 2 * 21845 * 3072
    assert work.programs > 500, "enough to fill a large GPU"


def test_the_grid_stays_within_its_limit():
    assert split(2**40, 1, whole_images=True).programs <= LARGEST_GRID


def offsets(sizes, strides):
    """Element offsets in the order in which a kernel counts."""
    return [
        sum(i * s for i, s in zip(reversed(index), strides, strict=True))
        for index in itertools.product(*map(range, reversed(sizes)))
    ]


def layouts():
    x = torch.zeros(2, 3, 4, 5)
    yield "contiguous", x, 1
    yield "channels_last", x.contiguous(memory_format=torch.channels_last), 1
    yield "one image", torch.zeros(1, 3, 4, 5), 1
    yield "one channel", torch.zeros(2, 1, 4, 5).contiguous(memory_format=torch.channels_last), 1
    yield "transposed", x.transpose(2, 3), 1
    yield "columns left out", torch.zeros(2, 3, 4, 10)[..., ::2], 1
    yield "rows left out", torch.zeros(2, 3, 8, 5)[:, :, ::2], 2
    yield "part of each row", torch.zeros(2, 3, 4, 9)[..., 2:7], 2
    yield "expanded", torch.zeros(2, 1, 4, 5).expand(2, 3, 4, 5), 2
    yield "one scalar", torch.zeros(1).expand(2, 3, 4, 5), 1
    yield "no dimension", torch.zeros(7), 1
    yield "empty", torch.zeros(2, 0, 5), 1


@pytest.mark.parametrize(("name", "x", "dims"), list(layouts()), ids=[name for name, *_ in layouts()])
def test_merged_dimensions_reach_the_same_elements(name, x, dims):
    sizes, (strides,) = merge_dimensions(x.shape, x.stride())
    assert len(sizes) == len(strides) == dims
    numbered = torch.arange(x.untyped_storage().nbytes() // 4).as_strided(x.shape, x.stride())
    image = numbered[0].flatten().tolist() if x.dim() > 1 else [0]
    assert sorted(offsets(sizes, strides)) == sorted(image)


def test_operands_of_different_layouts_meet_at_the_same_element():
    x = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    v = torch.zeros(2, 3, 4, 10)[..., ::2]
    sizes, strides = merge_dimensions(x.shape, x.stride(), v.stride())
    place = [torch.arange(240).as_strided(t.shape, t.stride())[0].flatten().tolist() for t in (x, v)]  # logical order
    expected = dict(zip(*place, strict=True))
    assert dict(zip(*(offsets(sizes, s) for s in strides), strict=True)) == expected
    assert strides[0][0] == 1, "the first operand is walked in the order of its memory"


def test_dense_images_need_no_division():
    x = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert merge_dimensions(x.shape, x.stride(), x.stride()) == ((60,), ((1,), (1,)))
