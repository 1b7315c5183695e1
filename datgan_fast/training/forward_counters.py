"""How often a BatchNorm has run, counted on the host and added on the device once per iteration.

torch adds 1 to each layer's num_batches_tracked in each forward, a kernel apiece. Only a layer without a momentum reads it.
An iteration runs each layer a number of times that the recording of a CUDA graph knows, so that there too it is a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .sync_batch_norm import SyncBatchNorm

COUNTER = "num_batches_tracked"
_COUNTING = (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward)


class HostCount(int):
    """A layer's count, an attribute in its buffer's place. A number, so that what remembers a module's state and puts it back
    does so with it too (method/module_state.py)."""

    layer: nn.Module

    def add_(self, number: int) -> None:
        vars(self.layer)[COUNTER] = host_count(self.layer, self + number)


def host_count(layer: nn.Module, value: int) -> HostCount:
    count = HostCount(value)
    count.layer = layer
    return count


@contextmanager
def counted_on_the_host(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the networks' BatchNorm layers count on the host; at its end their buffers are what they would have been."""
    layers: dict[nn.Module, Tensor] = {}
    for module in (m for network in networks for m in network.modules()):
        if (buffer := _counter(module)) is not None:
            layers[module] = buffer
    for layer in layers:
        layer._buffers[COUNTER] = None
        vars(layer)[COUNTER] = host_count(layer, 0)
    try:
        yield
    finally:
        counts = [int(vars(layer).pop(COUNTER)) for layer in layers]
        for layer, buffer in layers.items():
            layer._buffers[COUNTER] = buffer
    if any(counts):
        torch._foreach_add_(list(layers.values()), counts)


def share_counters(copy: nn.Module, network: nn.Module) -> None:
    """A copy that never trains has the counters of its original, rather than equal ones."""
    for own, module in zip(copy.modules(), network.modules(), strict=True):
        if (buffer := _counter(module)) is not None:
            own._buffers[COUNTER] = buffer


def _counter(module: nn.Module) -> Tensor | None:
    """Of a layer that adds to it and does not read it."""
    if not isinstance(module, _BatchNorm) or type(module).forward not in _COUNTING or module.momentum is None:
        return None
    return module._buffers.get(COUNTER)
