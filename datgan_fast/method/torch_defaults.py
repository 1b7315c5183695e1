"""Networks and their optimisers are made in float32 on a named device, the CPU, whatever the process's own defaults are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_defaults(device: str = "cpu") -> Iterator[None]:
    """torch.set_default_device and set_default_dtype are without effect inside; also a decorator."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(dtype)
