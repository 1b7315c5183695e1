"""Launch geometry, work split and offsets of the CUDA kernels, at sizes that no test machine could hold."""

from __future__ import annotations

import ctypes
import math

import pytest

from emulated_cuda import CTensor, emulated_cuda

WORKS = [  # images and slots of both sides
    ((64, 64), (768, 768)),
    ((64, 1), (768, 1)),
    ((0, 5), (0, 49)),
    ((3, 4), (769, 100)),
    ((7, 7), (196608, 49152)),
    ((2**20, 2**20), (768, 768)),
    ((1, 1), (2**33 + 1, 3)),
    ((2**33, 5), (1, 2**20)),
    ((2**31, 2**31), (2**12, 2**12)),
]


@pytest.fixture
def cuda():
    library = emulated_cuda()
    library.reset()
    return library


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize(("images", "slots"), WORKS)
@pytest.mark.parametrize("limits", [{}, {"cluster": 1}, {"shared": 48 * 1024}, {"threads": 64}], ids=str)
def test_the_tasks_cover_every_slot_within_the_devices_limits(cuda, images, slots, reduce, limits):
    plan = cuda.plan(images, slots, reduce=reduce, **limits)
    for side in range(2):
        assert plan.tasks[side] == images[side] * plan.slices[side]
        assert plan.slices[side] * plan.share[side] >= slots[side]
        assert plan.share[side] <= max(slots[side], 1)
        if not reduce and images[side]:
            assert plan.share[side] <= plan.threads * 4, "a task without a norm is a single tile"
    assert plan.threads % 32 == 0
    assert 32 <= plan.threads <= limits.get("threads", 192)
    assert plan.cluster in (1, 2, 4, 8)
    assert plan.cluster <= limits.get("cluster", 8)
    assert plan.grid == min(sum(plan.tasks), (2**31 - 1) // plan.cluster * plan.cluster)
    assert plan.grid % plan.cluster == 0
    assert plan.shared == 1024 + plan.kept * 16 <= limits.get("shared", 227 * 1024)
    assert plan.kept % (plan.threads * 4) == 0
    assert plan.kept < max(1, *plan.share) + plan.threads * 4


def test_a_cifar_batch_is_one_block_per_image_with_one_tile(cuda):
    for reduce in (False, True):
        plan = cuda.plan((64, 64), (768, 768), reduce=reduce)
        assert (plan.grid, plan.threads, plan.cluster, plan.kept) == (128, 192, 1, 0)
    assert cuda.plan((64, 64), (384, 384), reduce=True).threads == 96  # half precision


def test_images_of_256_pixels_are_read_once_by_a_cluster(cuda):
    plan = cuda.plan((64, 64), (3 * 256 * 256 // 4,) * 2, reduce=True)
    assert plan.cluster == 8
    assert plan.kept >= plan.share[0] - plan.threads * 4


def test_small_images_get_small_blocks(cuda):
    assert cuda.plan((64, 64), (1, 1), reduce=False).threads == 32
    assert cuda.plan((64, 64), (196, 196), reduce=False).threads == 64


@pytest.mark.parametrize(
    ("numel", "slot", "aligned", "expected"),
    [
        (0, 4, 1, 0),
        (1, 4, 1, 1),
        (8, 4, 1, 2),
        (8, 4, 0, 3),
        (1, 4, 0, 1),
        (2, 4, 0, 2),
        (2**33 + 1, 8, 1, 2**30 + 1),
    ],
)
def test_slots(cuda, numel, slot, aligned, expected):
    assert cuda.library.slots_of(numel, slot, aligned) == expected


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 3, 5, 7), (105, 35, 7, 1)),
        ((2, 3, 5, 7), (500, 1, 60, 5)),
        ((1, 3, 2**16, 2**15), (0, 2**33, 2**17, 3)),
        ((1, 3, 2**17, 2**16), (0, 1, 3 * 2**17, 4)),
        ((1, 2**34, 3), (0, 7, 2)),
    ],
)
def test_offsets_of_strided_elements(cuda, shape, strides):
    """Elements are walked in the order of their memory; all offsets that occur are those of the tensor."""
    tensor = CTensor(16, 1, len(shape), (ctypes.c_int64 * 8)(*shape), (ctypes.c_int64 * 8)(*strides))
    order = sorted(range(1, len(shape)), key=lambda d: strides[d])
    numel = math.prod(shape[1:])
    for element in {0, 1, 2, 6, numel // 3, numel // 2 + 1, numel - 2, numel - 1}:
        rest, expected = element, 0
        for d in order:
            expected += rest % shape[d] * strides[d]
            rest //= shape[d]
        assert cuda.library.element_offset(ctypes.addressof(tensor), element) == expected
