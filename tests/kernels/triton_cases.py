"""The Triton kernels under Triton's interpreter; test_triton_interpreted.py runs this in its own process."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
import triton
import triton.language as tl
from datgan_fast.kernels.attack import Operand, address

from kernel_cases import *  # noqa: F403
from kernel_cases import Target
from logit_cases import *  # noqa: F403
from sample_cases import *  # noqa: F403


@pytest.fixture
def target():
    return Target("triton", "cpu", half_ulps=1)  # the interpreter's bfloat16 stores truncate


@triton.jit
def offset_kernel(out, operand, image, begin, sizes):
    index = begin + tl.arange(0, 4)
    pointer = address(operand, image.to(tl.int64), index.to(tl.int64), sizes)
    tl.store(out + tl.arange(0, 4), (pointer.to(tl.int64) - operand.data.to(tl.int64)) // 4)


def test_offsets_beyond_32_bits():
    base, out = torch.zeros(1), torch.zeros(4, dtype=torch.int64)
    sizes, strides, image_stride = (3, 2**20, 2**13), (2**31, 7, 2**23), 2**33 + 1
    begin, image = 5 * 3 * 2**20 + 1, 2**20 + 3
    offset_kernel[(1,)](out, Operand(base, image_stride, strides), image, begin, sizes)
    expected = []
    for k in range(begin, begin + 4):
        i, rest = k % 3, k // 3
        expected.append(image * image_stride + i * 2**31 + rest % 2**20 * 7 + rest // 2**20 * 2**23)
    assert out.tolist() == expected
    assert min(expected) > 2**52
