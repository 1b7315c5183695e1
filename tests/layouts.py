"""Tensors of every dtype and memory layout, with NaN between and around what they hold."""

import math

import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
GUARD = 32  # elements around each output that must stay as they were


def name(dtype):
    return str(dtype).removeprefix("torch.")


def laid_out(t, layout):
    """The values as a view of the given layout; "expanded" repeats some. What lies between them is NaN."""
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return t.transpose(1, 3).contiguous().transpose(1, 3)
    if layout == "images last":
        return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1))
    if layout == "expanded":
        return t[:1, :, :1].expand(t.shape)
    if layout == "every second pixel":
        room, at = [2 * size + 1 for size in t.shape], tuple(slice(1, None, 2) for _ in t.shape)
    elif layout == "cropped":
        room, at = [*t.shape[:-1], t.shape[-1] + 3], (..., slice(1, -2))
    elif layout == "padded":  # each image dense, a gap between two
        room, at = [len(t), t[0].numel() + 3], (slice(None), slice(1, -2))
    elif layout == "misaligned":
        room, at = [t.numel() + 2 * GUARD + 1], slice(GUARD + 1, -GUARD)
    else:
        return t
    return t.new_full(room, math.nan)[at].view(t.shape).copy_(t)


LAYOUTS = (
    "contiguous",
    "misaligned",
    "channels_last",
    "every second pixel",
    "cropped",
    "padded",
    "transposed",
    "images last",
    "expanded",
)


def unwritten(like, layout=None):
    """NaN in the shape of `like`, with NaN around it; by default of the strides that the public functions choose."""
    if layout not in (None, "contiguous"):
        return laid_out(torch.full_like(like, math.nan), layout)
    room = like.new_full([like.numel() + 2 * GUARD], math.nan)
    return room[GUARD:].as_strided(like.shape, torch.empty_like(like).stride())


def assert_nothing_written_around(out, what):
    """Every element of `out` has been compared already: it is a number."""
    memory = out.new_empty(0).set_(out.untyped_storage())
    assert memory.isnan().logical_not().sum() == out.numel(), f"{what}: written outside"
