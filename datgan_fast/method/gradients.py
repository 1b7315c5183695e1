"""The weight gradients of a step's several backwards, added to .grad by one multi-tensor operation per backward.

torch's own accumulation adds parameter by parameter: on a GPU a launch for each. What is in .grad afterwards is the same. A
launcher with a backward of its own (Fabric, Accelerate, DeepSpeed) makes each of them itself, of a loss with the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .autograd_graph import Graph, leaves_below
from .formulas import as_float
from .independence import Forward
from .launchers import Launcher
from .module_state import Network
from .scores import Scores
from .second_pass import differentiable
from .step_arguments import NO_GRADIENT
from .weight_gradients import faster_weight_gradients


class GradientSum:
    """Backwards through a network's graphs; each leaves what it finds in the .grad of the weights at once.

    launcher: makes them in place of autograd; where gradients land is its business.
    """

    def __init__(self, network: Network, launcher: Launcher | None = None) -> None:
        # DDP and FSDP reduce gradients in the nodes that accumulate them.
        self._by_torch = network.distributed or launcher is not None
        self._launcher = launcher
        self._compiled = network.compiled

    def wide(self, scores: Scores) -> Scores:
        """The logits in a dtype that can hold their weights: a launcher scales them before they go back through float16."""
        return scores if self._launcher is None else scores._replace(logits=as_float(scores.logits))

    def add(self, output: Tensor, seed: Tensor | None = None, retain_graph: bool = False) -> None:
        """output.backward(seed)"""
        self._backward(output, leaves_below(output), None, seed, retain_graph)

    def to_images(self, forward: Forward, images: Tensor, seed: Tensor, retain_graph: bool = False) -> Tensor:
        """logits.backward(seed), of which the part of `images`, a leaf, is returned. Raises ValueError where there is none."""
        gradient = self._backward(forward.logits, forward.graph.leaves, images, seed, retain_graph)
        if gradient is None:
            raise ValueError(NO_GRADIENT)
        return gradient

    def serves(self, graph: Graph) -> bool:
        """Whether `to_images_and_again` can go through it."""
        return not self._by_torch and all(map(_is_plain, graph.leaves))

    def to_images_and_again(
        self,
        forward: Forward,
        images: Tensor,
        seed: Tensor,
        cotangent: Callable[[Tensor], Tensor],
        retain_graph: bool = False,
    ) -> Tensor:
        """`to_images`, and a backward through its result as well: to the weights, from the result's own gradient, which
        `cotangent` makes of it."""
        logits, weights = forward.logits, [leaf for leaf in forward.graph.leaves if leaf is not images]
        with faster_weight_gradients(logits, self._compiled):
            gradient, *found = torch.autograd.grad(
                logits, [images, *weights], seed, create_graph=True, allow_unused=True
            )
        if gradient is None:
            raise ValueError(NO_GRADIENT)
        result = gradient.detach()
        more: Sequence[Tensor | None] = ()
        if gradient.requires_grad:
            again = differentiable(gradient, images)
            more = torch.autograd.grad(again, weights, cotangent(result), retain_graph=retain_graph, allow_unused=True)
        else:
            cotangent(result)
        add_gradients(weights, found, [seed, result])
        if more:
            add_gradients(weights, more)
        return result

    def _backward(
        self, output: Tensor, below: list[Tensor], images: Tensor | None, seed: Tensor | None, retain_graph: bool
    ) -> Tensor | None:
        """below: the leaves of the output's graph, of which all but the images are added to."""
        if self._launcher is not None:
            return self._launcher.of_scores(output, images, seed, retain_graph)
        weights = [leaf for leaf in below if leaf is not images]
        if self._by_torch or not all(map(_is_plain, weights)):
            output.backward(seed, retain_graph=retain_graph)
            return None if images is None else images.grad
        leaves = weights if images is None else [*weights, images]
        with faster_weight_gradients(output, self._compiled):
            found = list(torch.autograd.grad(output, leaves, seed, retain_graph=retain_graph, allow_unused=True))
        gradient = None if images is None else found.pop()
        add_gradients(weights, found, [t for t in (seed, gradient) if t is not None])
        return gradient


def _is_plain(weight: Tensor) -> bool:
    """Neither a subclass with rules of its own nor one with a hook that waits for its sum."""
    return type(weight) in (Tensor, nn.Parameter) and not weight._post_accumulate_grad_hooks


@torch.no_grad()
def add_gradients(weights: Sequence[Tensor], gradients: Sequence[Tensor | None], others: Sequence[Tensor] = ()) -> None:
    """Adds to .grad, as torch does: in place where there is one, in the weight's own layout where there is none.

    others: tensors that stay in use and with which a gradient may share its memory.
    """
    taken: set[int] = set()
    alike: dict[tuple[torch.dtype, torch.dtype], list[tuple[Tensor, Tensor]]] = {}  # what one kernel takes
    for p, g in zip(weights, gradients, strict=True):
        if g is None:
            continue
        total = p.grad
        if total is None or total.is_sparse or g.is_sparse:
            taken = taken or {t.untyped_storage().data_ptr() for t in others}
            p.grad = _sum_of_one(p, g, taken)
            continue
        # Whatever the strides of dimensions with one element, which the kernel compares too.
        if g.stride() != total.stride() and _lies_like(g, total):
            g = g.as_strided(total.shape, total.stride())
        alike.setdefault((total.dtype, g.dtype), []).append((total, g))
    for pairs in alike.values():
        torch._foreach_add_([total for total, _ in pairs], [term for _, term in pairs])


def _sum_of_one(p: Tensor, g: Tensor, taken: set[int]) -> Tensor:
    """Of a parameter that is not added with others: by the first gradient, or by a sparse one."""
    if p.grad is None:
        return g.detach().clone() if g.is_sparse else _own(g.detach(), p, taken)
    if p.grad.is_sparse:
        return p.grad + g if g.is_sparse else g + p.grad
    return p.grad.add_(g)


def _own(g: Tensor, p: Tensor, taken: set[int]) -> Tensor:
    """The gradient itself, if it lies like the weight in memory that nobody else has; else a copy that does."""
    memory = g.untyped_storage().data_ptr()
    if _lies_like(g, p) and memory not in taken:
        taken.add(memory)
        return g
    return torch.empty_like(p).copy_(g)


def _lies_like(g: Tensor, p: Tensor) -> bool:
    return all(a == b != 0 or size == 1 for a, b, size in zip(g.stride(), p.stride(), p.shape, strict=True))
