"""What the autograd graph of one forward says about the backward that will run through it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

_KNOWN = re.compile(r"(?:AccumulateGrad|CopySlices|[A-Za-z0-9_]*Backward\d+)")  # torch's own nodes
_SHAPING = re.compile(
    r"(?:View|UnsafeView|Reshape|ReshapeAlias|Squeeze|Unsqueeze|Select|Slice|ToCopy|Clone|Expand)Backward\d+"
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
        self.nodes: list[Any] = list(_nodes(self.root))
        self.names = [node.name() for node in self.nodes]

    def reaches(self, images: Sequence[Tensor]) -> bool:
        leaves = [
            node.variable for node, name in zip(self.nodes, self.names, strict=True) if name.endswith("AccumulateGrad")
        ]
        return all(any(leaf is x for leaf in leaves) for x in images)

    def unknown(self) -> str | None:
        """A node whose backward may be no plain derivative: a Function of somebody's own, or a compiled one."""
        for node, name in zip(self.nodes, self.names, strict=True):
            if isinstance(node, BackwardCFunction) or not _KNOWN.fullmatch(name.rpartition("::")[2]):
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
                name,
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


def next_number() -> int:
    """The number that autograd gives to the next node of this thread."""
    with torch.enable_grad():
        return torch.empty(0, dtype=torch.float32, device="cpu", requires_grad=True).view(0).grad_fn._sequence_nr() + 1  # type: ignore[union-attr]


def _nodes(root: Any) -> Iterator[Any]:
    seen, waiting = {None}, [root]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [parent for parent, _ in node.next_functions]
