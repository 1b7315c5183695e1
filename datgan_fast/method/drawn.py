"""Random numbers for the images of a batch, of which this process may hold a part.

Where processes share a run all draw the whole batch's numbers, from the same random state, and each keeps its own images'. What
is drawn, and the state afterwards, are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Of a batch of `whole` images those from `first` to before `end`; of real and generated images the same."""

    whole: int
    first: int
    end: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.end)


_part: ContextVar[Part | None] = ContextVar("_part", default=None)


@contextmanager
def drawing_for(part: Part) -> Iterator[None]:
    """Inside, what is drawn for this process's images is its part of what is drawn for all."""
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def drawn(own: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """`own`, [n, ...] and empty, filled with random numbers in place by `fill`.

    Of a part n is its number of images, or a multiple: batches one behind another, such as the real and the generated images.
    """
    part = _part.get()
    if part is None:
        return fill(own)
    batches = own.split(part.end - part.first)
    if len(batches[-1]) != len(batches[0]):
        raise RuntimeError(f"random numbers are drawn for whole batches of {len(batches[0])} images; got {len(own)}")
    rows = len(batches) * part.whole
    # Numbers are drawn in the order of memory, in which image lies behind image in every layout of images.
    each = own[0].numel()
    laid_out = own if own.stride(0) == each else own.contiguous()
    strides = (each, *laid_out.stride()[1:])
    whole = torch.empty_strided((rows, *own.shape[1:]), strides, dtype=own.dtype, device=own.device)
    for batch, everybodys in zip(batches, fill(whole).split(part.whole), strict=True):
        batch.copy_(everybodys[part.rows])
    return own
