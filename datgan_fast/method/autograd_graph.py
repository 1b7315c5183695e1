"""What the autograd graph of one forward says about the backward that will run through it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

_KNOWN = re.compile(r"(?:AccumulateGrad|CopySlices|[A-Za-z0-9_]*Backward\d+)")  # torch's own nodes
_SHAPING = re.compile(
    r"(?:View|UnsafeView|Reshape|ReshapeAlias|Squeeze|Unsqueeze|Select|Slice|ToCopy|Clone|Expand|Cat)Backward\d+"
)
_PROBABILITIES = re.compile(r"(?:Sigmoid|Softmax)Backward\d+")


class Graph:
    """The nodes between scores and the leaves they were computed from.

    Args:
        scores: [N], with its graph.
        begun: `next_number()` from before the forward.
    """

    def __init__(self, scores: Tensor, begun: int) -> None:
        self.root: Any = scores.grad_fn
        self._begun = begun
        self.edges = edges_below([self.root])
        self.nodes: list[Any] = list(self.edges)
        self.names = [node.name() for node in self.nodes]

    @cached_property
    def leaves(self) -> list[Tensor]:
        return _leaves(self.nodes)

    def reaches(self, images: Sequence[Tensor]) -> bool:
        return all(any(leaf is x for leaf in self.leaves) for x in images)

    def dtypes(self) -> set[torch.dtype]:
        """Of the gradients that go through it."""
        return {m.dtype for node in self.nodes for m in node._input_metadata}

    def unknown(self) -> str | None:
        """A node whose backward may be no plain derivative: a Function of somebody's own, or a compiled one."""
        for node, name in zip(self.nodes, self.names, strict=True):
            if isinstance(node, BackwardCFunction) or not _is_known(name):
                return name.rpartition("::")[2]
        return None

    def is_compiled(self) -> bool:
        return "CompiledFunctionBackward" in self.names

    def is_reentrant(self) -> bool:
        """Whether torch.utils.checkpoint ran with use_reentrant=True, which serves no gradient of the images."""
        return "CheckpointFunctionBackward" in self.names

    def is_borrowed(self) -> bool:
        """Whether a part of it was there before this forward, so that another backward may need it again."""
        return any(
            node._sequence_nr() < self._begun
            for node, name in zip(self.nodes, self.names, strict=True)
            if not name.endswith("AccumulateGrad")
        )

    def fingerprint(self) -> list[object] | None:
        """Which operations with which sizes and dimensions were applied to what; None where that does not say what they do."""
        if "IndexBackward0" in self.names:  # in which dimension is not written down
            return None
        places = {node: k for k, node in enumerate(self.nodes)}
        return [
            (
                node.__class__
                if isinstance(node, BackwardCFunction)
                else name,  # each compiled graph has a class of its own
                [tuple(m.shape) for m in node._input_metadata],
                [(places.get(parent), k) for parent, k in node.next_functions],
                [getattr(node, attribute) for attribute in _settings(node.__class__)],
            )
            for node, name in zip(self.nodes, self.names, strict=True)
        ]

    def ends_in_probabilities(self) -> bool:
        node = self.root
        while node is not None and _SHAPING.fullmatch(node.name()):
            node = node.next_functions[0][0]
        return node is not None and _PROBABILITIES.fullmatch(node.name()) is not None


@cache
def _settings(kind: Any) -> tuple[str, ...]:
    """The numbers a node keeps, such as dimensions; not the tensors, which may have to be computed again to be seen."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_") and not hasattr(kind, "_raw" + name))


class Hooks(TorchFunctionMode):
    """Inside this context the hooks that a forward hangs on its own tensors are noticed, and later what they do."""

    def __init__(self) -> None:
        super().__init__()
        self.hung = False  # on any tensor
        self.inside = False  # on one that is not the output
        self.changed = False
        self.refuse: Exception | None = None  # raised where a hook changes a gradient
        self._tensors: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.register_hook:
            self._tensors.append(args[0])
            hook = args[1] if len(args) > 1 else kwargs["hook"]
            return function(args[0], self._watched(hook))
        if getattr(function, "__self__", None) is Tensor.grad_fn:  # the hooks of a node cannot be seen
            self.hung = self.inside = self.changed = True
        return function(*args, **kwargs)

    def end(self, output: object) -> None:
        """The forward is over and gave this."""
        self.hung |= bool(self._tensors)
        self.inside |= any(t is not output for t in self._tensors)
        self._tensors.clear()

    def _watched(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        def watched(gradient: Tensor) -> Tensor | None:
            version = gradient._version
            result = hook(gradient)
            if result is not None or gradient._version != version:
                self.changed = True
                if self.refuse is not None:
                    raise self.refuse
            return result

        return watched


def next_number() -> int:
    """The number that autograd gives to the next node of this thread."""
    with torch.enable_grad():
        return torch.empty(0, dtype=torch.float32, device="cpu", requires_grad=True).view(0).grad_fn._sequence_nr() + 1  # type: ignore[union-attr]


def leaves_below(output: Tensor) -> list[Tensor]:
    """The tensors that output.backward() reaches."""
    return _leaves(edges_below([output.grad_fn]))


def _leaves(nodes: Iterable[Any]) -> list[Tensor]:
    return [node.variable for node in nodes if not node.next_functions and hasattr(node, "variable")]


def edges_below(nodes: Iterable[Any]) -> dict[Any, tuple[tuple[Any, int], ...]]:
    """Of these nodes and all below them: (node, which of its results) that each was computed from."""
    found: dict[Any, tuple[tuple[Any, int], ...]] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = node.next_functions
            waiting += [parent for parent, _ in found[node]]
    return found


@cache
def _is_known(name: str) -> bool:
    return _KNOWN.fullmatch(name.rpartition("::")[2]) is not None
