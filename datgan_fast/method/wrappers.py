"""A discriminator in DistributedDataParallel: inside a step its forwards are its module's, and its gradients are reduced once.

DDP reduces in every backward that follows a forward of its own, and waits for each parameter in each; a step has several
backwards, and a gradient penalty's leaves parameters out. So the step goes by DDP, and a last backward of zeros takes what lies
in .grad through its reducer: with its buckets, communication hooks, unused parameters and no_sync().
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .module_state import Network

_learnt: WeakSet[DistributedDataParallel] = WeakSet()


@contextmanager
def as_its_module(network: Network) -> Iterator[None]:
    """Inside, wrappers that reduce gradients are the modules in them."""
    with ExitStack() as stack:
        for wrapper in network.replicas:
            stack.enter_context(_other_forward(wrapper, wrapper.module.__call__))
        yield


@contextmanager
def reduced_once(network: Network) -> Iterator[None]:
    """Around a step: buffers are broadcast before it and gradients reduced after it, by DDP, where it would have done so."""
    for wrapper in network.replicas:
        if wrapper.static_graph and wrapper not in _learnt:
            _learn(wrapper)
        with torch.no_grad():
            _through(wrapper, lambda: torch.zeros((), dtype=torch.float32, device="cpu"))
    with as_its_module(network):
        yield
    for wrapper in network.replicas:
        if wrapper.require_backward_grad_sync:  # not inside its no_sync()
            _reduce(wrapper)


def _reduce(wrapper: DistributedDataParallel) -> None:
    parameters = _carried(wrapper)
    with torch.enable_grad():
        _through(wrapper, lambda: _Nothing.apply(*parameters)).backward()


def _learn(wrapper: DistributedDataParallel) -> None:
    """With static_graph DDP notes in its first backward what it will reduce, and until the end of its second takes any backward
    for one to be reduced: both before the step's own, without what lies in .grad."""
    gradients = [(p, p.grad) for p in wrapper.module.parameters()]
    require, wrapper.require_backward_grad_sync = wrapper.require_backward_grad_sync, True
    for _ in range(2):
        for p, _ in gradients:
            p.grad = None
        _reduce(wrapper)
    for p, gradient in gradients:
        p.grad = gradient
    wrapper.require_backward_grad_sync = require
    _learnt.add(wrapper)


def _carried(wrapper: DistributedDataParallel) -> list[Tensor]:
    """The parameters whose gradients are to be reduced."""
    left_out = getattr(wrapper, "parameters_to_ignore", ())
    every = [p for name, p in wrapper.module.named_parameters() if p.requires_grad and name not in left_out]
    if not wrapper.find_unused_parameters or wrapper.static_graph:
        return every
    return [p for p in every if p.grad is not None] or every[:1]  # a graph has one at least


class _Nothing(torch.autograd.Function):
    """A zero that depends on the parameters."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple(p.new_zeros(()).expand(p.shape) for p in ctx.saved_tensors)


def _through(wrapper: DistributedDataParallel, run: Callable[[], Tensor]) -> Tensor:
    """DDP's own forward with this in place of its module."""
    module = wrapper.module
    wrapper.module = _InPlaceOf(module, run)
    try:
        return wrapper.forward()  # without hooks that wait for a real one
    finally:
        wrapper.module = module


class _InPlaceOf(nn.Module):
    """With a module's parts, whose buffers DDP broadcasts, and a forward of its own."""

    def __init__(self, module: nn.Module, run: Callable[[], Tensor]) -> None:
        super().__init__()
        self._modules, self._buffers, self._parameters = module._modules, module._buffers, module._parameters
        self.forward = run  # type: ignore[method-assign]


@contextmanager
def _other_forward(wrapper: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    wrapper.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del wrapper.forward
