"""A launcher's own backward (Lightning's Fabric, Accelerate, DeepSpeed) in place of autograd's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .formulas import as_float
from .module_state import Network

Backward = Callable[..., object]  # (loss) -> anything; runs the backward of a 0-d loss
NO_BACKWARD = (
    "backward must run the backward of the loss that it is given, as loss.backward() does; nothing has gone through it"
)


class Launcher:
    """Calls it, and knows when it runs."""

    def __init__(self, backward: Backward) -> None:
        if not callable(backward):
            raise TypeError(f"backward must be a callable that takes a loss, such as fabric.backward; got {backward!r}")
        self._backward, self._running = backward, False

    def __call__(self, loss: Tensor, **options: Any) -> None:
        self._running = True
        try:
            self._backward(loss, **options)
        finally:
            self._running = False

    def of_loss(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        """loss.backward(), and the factor that the launcher has put on gradients (a loss scale, one over the batches to
        accumulate): it is the gradient of a number that is added to the loss."""
        factor = torch.zeros_like(loss, requires_grad=True)
        self(loss + factor, **({"retain_graph": True} if retain_graph else {}))
        if factor.grad is None:
            raise ValueError(NO_BACKWARD)
        return factor.grad

    def of_scores(
        self, output: Tensor, images: Tensor | None, seed: Tensor | None, retain_graph: bool
    ) -> Tensor | None:
        """output.backward(seed) as the backward of a loss, and the part of `images`, a leaf, without the launcher's factor."""
        factor = self.of_loss(output if seed is None else (as_float(output) * as_float(seed)).sum(), retain_graph)
        if images is None or images.grad is None:
            return None
        return as_float(images.grad) / factor  # in float16 it might be nothing without the factor

    @contextmanager
    def past_refusals(self, network: Network) -> Iterator[None]:
        """Inside, what is no training backward (an attack's, a penalty's gradient) may pass hooks on the network's output that
        refuse all but the launcher's, as Fabric's do in mixed precision."""
        module = network.module
        if network.hangs_no_hooks or hasattr(module, "_orig_mod"):  # a compiled one would be compiled anew
            yield
            return
        handle = module.register_forward_hook(lambda module, x, output: self._let_pass(output))
        try:
            yield
        finally:
            handle.remove()

    def _let_pass(self, output: Any) -> None:
        if isinstance(output, Tensor):
            hooks = output._backward_hooks or {}
            hooks.update({key: self._permissive(hook) for key, hook in hooks.items()})
        elif isinstance(output, dict):
            self._let_pass(list(output.values()))
        elif isinstance(output, (list, tuple)):
            for part in output:
                self._let_pass(part)

    def _permissive(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        def permissive(gradient: Tensor) -> Tensor | None:
            try:
                return hook(gradient)
            except RuntimeError:
                if self._running:
                    raise
                return None

        return permissive


def run_backward(loss: Tensor, launcher: Launcher | None) -> None:
    if launcher is None:
        loss.backward()
    else:
        launcher.of_loss(loss)


def past_refusals(launcher: Launcher | None, network: Network) -> AbstractContextManager[None]:
    """`Launcher.past_refusals`, where there is a launcher."""
    return nullcontext() if launcher is None else launcher.past_refusals(network)
