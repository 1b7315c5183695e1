"""One bfloat16 copy of a network's weights per update, in one multi-tensor call, so that autocast finds nothing to cast.

Autocast casts each weight in each forward and each of its gradients in each backward, a kernel apiece. Here the convolutions and
linear layers have bfloat16 weights of their own while a network computes; the float32 ones stay with the optimiser, the
checkpoints and the average. What is computed is autocast's, but that the gradients of several backwards are added in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .optimizers import laid_out_as

# Layers whose operands autocast casts, weights included, before anything else is done with them.
CAST = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class Place(NamedTuple):
    """Where a module keeps a weight."""

    parameters: dict[str, Any]  # the module's own table of them
    name: str
    master: nn.Parameter  # float32
    copy: nn.Parameter


class LowPrecision:
    """The copies of a network's weights, and when they are in the weights' place.

        with low.copies():
            loss = network(x).sum()  # under autocast
        loss.backward()
        low.hand_over()  # the gradients, to the weights' own .grad
        optimizer.step()
        low.refresh()

    dtype: of the copies; None: there are none, and nothing of this does anything. Weights that are parametrized, belong to
    layers of the user's own or have hooks stay as they are, for autocast to cast.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        self._places = _places(network, dtype) if dtype else []
        pairs = {place.master: place.copy for place in self._places}
        self._masters: list[Tensor] = list(pairs)
        self._copies: list[Tensor] = list(pairs.values())

    @contextmanager
    def copies(self) -> Iterator[None]:
        """Inside, the network computes with the copies, which are as the weights were when it was entered or last refreshed."""
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self._masters):
            yield  # a user's, which want the weights' own gradients
            return
        for master, copy in zip(self._masters, self._copies, strict=True):
            copy.requires_grad_(master.requires_grad)
        self.refresh()
        self._put(self._places, copies=True)
        try:
            yield
        finally:
            self._put(self._places, copies=False)

    @contextmanager
    def masters(self) -> Iterator[None]:
        """Inside, within copies(), the network computes with the weights themselves again."""
        put = [place for place in self._places if place.parameters[place.name] is place.copy]
        self._put(put, copies=False)
        try:
            yield
        finally:
            self._put(put, copies=True)

    @staticmethod
    def _put(places: list[Place], copies: bool) -> None:
        for parameters, name, master, copy in places:
            old, new = (master, copy) if copies else (copy, master)
            if parameters.get(name) is old:  # or the user has put something else there
                parameters[name] = new

    @torch.no_grad()
    def refresh(self) -> None:
        """After the weights have changed: the copies, rounded from them."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._masters)

    @torch.no_grad()
    def hand_over(self) -> None:
        """Adds the copies' gradients to the weights' .grad, and leaves the copies without."""
        masters = [m for m, c in zip(self._masters, self._copies, strict=True) if c.grad is not None]
        if not masters:
            return
        found = [c.grad for c in self._copies if c.grad is not None]
        full = [torch.empty_like(m) for m in masters]
        torch._foreach_copy_(full, [laid_out_as(m, g) for m, g in zip(masters, found, strict=True)])
        for copy in self._copies:
            copy.grad = None
        had: list[Tensor] = []
        added: list[Tensor] = []
        for master, gradient in zip(masters, full, strict=True):
            if master.grad is None:
                master.grad = gradient
            else:
                had.append(laid_out_as(master, master.grad))
                added.append(gradient)
        if had:
            torch._foreach_add_(had, added)


def _places(network: nn.Module, dtype: torch.dtype) -> list[Place]:
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((module, name))
    found = []
    for master, places in owners.items():
        if master.dtype == torch.float32 and all(_is_cast(module) for module, _ in places):
            copy = nn.Parameter(torch.empty_like(master, dtype=dtype), requires_grad=master.requires_grad)
            found += [Place(module._parameters, name, master, copy) for module, name in places]
    return found


def _is_cast(module: nn.Module) -> bool:
    forward = type(module).forward
    return (
        any(forward is kind.forward for kind in CAST)
        and "forward" not in vars(module)
        and not module._forward_pre_hooks  # which may make the weight from another
    )
