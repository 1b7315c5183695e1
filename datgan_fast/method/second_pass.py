"""Differentiates an input gradient once more without pushing zeros through the network.

A gradient penalty differentiates g = dD/dx with respect to D's weights. torch then also asks how g depends on the activations of
the forward. Of a network that is piecewise linear between its weights the answer is zero almost everywhere, and torch writes
these zeros down and runs a whole backward of the forward on them. `differentiable(g, x)` finds in the graph of g along which
edges torch's own formulas give zeros, and, where all that leads back to the images does, leaves them out; else g is left
alone. See docs/penalties.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autograd_graph import Graph, edges_below
from .weight_gradients import weight_gradient

Node = Any  # torch.autograd.graph.Node
Place = tuple[Node, int]  # one of the results of the operation that a node belongs to
Edges = dict[Node, list[tuple[int, Node, int]]]  # of each node: number of the edge, and the place where it leads

# Nodes of a gradient's graph, with the edge along which torch's formula for them (derivatives.yaml) gives zeros.
ZERO = {
    f"{operation}BackwardBackward0": 1
    for operation in (
        "LeakyRelu",
        "Threshold",  # relu
        "Hardtanh",
        "RreluWithNoise",
        "Hardshrink",
        "Softshrink",
        "PreluKernel",
        "MaxPool2DWithIndices",
        "MaxPool3DWithIndices",
        "AdaptiveMaxPool2D",
        "AdaptiveMaxPool3D",
        "AvgPool2D",
        "AvgPool3D",
        "AdaptiveAvgPool2D",
        "AdaptiveAvgPool3D",
        "ReflectionPad1D",
        "ReflectionPad2D",
        "ReflectionPad3D",
        "ReplicationPad1D",
        "ReplicationPad2D",
        "ReplicationPad3D",
    )
} | {"SgnBackward0": 0, "SignBackward0": 0}  # of abs
# The same with nothing at all instead of zeros.
NOTHING = {"ConvolutionBackwardBackward0": 1, "NativeBatchNormBackwardBackward0": 1}
# Of these it is true as long as nothing depends on the weights' gradients that they give beside the input's.
GIVE_WEIGHTS_TOO = {"PreluKernelBackwardBackward0", *NOTHING}
OF_REAL_NUMBERS = {"ConvolutionBackwardBackward0", "SgnBackward0"}


def differentiable(gradient: Tensor, images: Tensor, scores: Tensor | None = None) -> Tensor:
    """The same gradient, whose backward gives the weights' gradients without work on zeros where that is exact.

    Args:
        gradient: what `torch.autograd.grad(scores, images, weights, create_graph=True)` gave for `images`; weights' gradients may
            have been asked for in the same call.
        images: what it is the gradient with respect to.
        scores: what it is the gradient of; needed only where the last layer's weight is itself made of others. Without it only
            leaves get gradients then, and of a spectral norm the whole pass runs.

    Returns:
        A tensor of the same value, shape and dtype. A backward through it gives what torch's own gives (zeros where torch's are
        zeros); with `create_graph=True` it is torch's own, so that every higher order is right. Where the network is not
        piecewise linear in the images, or something in its graph is not known, it is `gradient` itself.
    """
    if gradient.grad_fn is None or gradient.is_complex() or not torch.is_grad_enabled():
        return gradient
    plan = _plan(gradient, images, scores)
    return gradient if plan is None else _SecondPass.apply(plan, *plan.weights, *plan.untouched)


class _Plan(NamedTuple):
    """The way of a second pass through the graph of a gradient."""

    gradient: Tensor
    nodes: list[Node]  # those to go through, the first one last
    edges: Edges  # those that may carry something
    ends: dict[Place, int]  # where the way ends: at leaves, or at what the weights' own graphs made of them
    weights: list[Tensor]  # what lies there
    untouched: list[Tensor]  # the images, and leaves, to which torch would bring zeros


def _plan(gradient: Tensor, images: Tensor, scores: Tensor | None) -> _Plan | None:
    """None where torch's whole pass has to be gone."""
    graph = Graph(gradient, 0)
    if graph.unknown() is not None:
        return None
    names = dict(zip(graph.nodes, graph.names, strict=True))
    edges = {node: _edges(name, graph.edges[node]) for node, name in names.items()}
    reached = _ordered(graph.root, edges)
    if any(_made(images, node) for node in reached) or not _as_in_the_tables(reached, names, edges):
        return None
    way = _way(graph.root, edges, _special(reached, names, edges), _Forward(scores))
    if way is None:
        return None
    inner, ends = way
    below = edges_below(m for node, _ in ends for m, _ in graph.edges[node])
    if any(node in below for node, _ in ends):  # a weight that is used as it is and in another's graph
        return None
    zeros = edges_below(graph.edges[node][ZERO[names[node]]][0] for node in inner if names[node] in ZERO)
    untouched = zeros.keys() - below.keys() - {node for node, _ in ends}
    leaves = [node.variable for node in untouched if hasattr(node, "variable")]
    if images.grad_fn in untouched:
        leaves.append(images)
    nodes = [node for node in reached if node in inner]
    places = {place: k for k, place in enumerate(ends)}
    return _Plan(gradient, nodes, {node: edges[node] for node in nodes}, places, list(ends.values()), leaves)


def _edges(name: str, leading: tuple[Place, ...]) -> list[tuple[int, Node, int]]:
    """Those that may carry something."""
    zero = ZERO.get(name, NOTHING.get(name))
    return [(k, m, nr) for k, (m, nr) in enumerate(leading) if m is not None and k != zero]


def _ordered(root: Node, edges: Edges) -> list[Node]:
    """All that the edges lead to from the root, each node after those that it leads to."""
    order, seen, stack = [], {root}, [(root, iter(edges[root]))]
    while stack:
        node, rest = stack[-1]
        for _, m, _ in rest:
            if m not in seen:
                seen.add(m)
                stack.append((m, iter(edges[m])))
                break
        else:
            order.append(node)
            stack.pop()
    return order


def _made(images: Tensor, node: Node) -> bool:
    return node is images.grad_fn if images.grad_fn is not None else getattr(node, "variable", None) is images


def _as_in_the_tables(nodes: list[Node], names: dict[Node, str], edges: Edges) -> bool:
    """Whether what the tables say of the nodes is true of these: not of complex numbers, nor of BatchNorm in training mode."""
    if any(nr != 0 and names[m] in GIVE_WEIGHTS_TOO for node in nodes for _, m, nr in edges[node]):
        return False
    for node in nodes:
        name = names[node]
        if name.startswith("NativeBatchNorm") and getattr(node, "_saved_train", True):
            return False
        if name in OF_REAL_NUMBERS and node._input_metadata[0].dtype.is_complex:
            return False
    return True


def _special(reached: list[Node], names: dict[Node, str], edges: Edges) -> set[Node]:
    """Those with an edge of zeros, and what leads to them; the rest is torch's, such as the graphs of weights."""
    special: set[Node] = set()
    for node in reached:
        if names[node] in ZERO or names[node] in NOTHING or any(m in special for _, m, _ in edges[node]):
            special.add(node)
    return special


def _way(
    root: Node, edges: Edges, special: set[Node], forward: _Forward
) -> tuple[set[Node], dict[Place, Tensor]] | None:
    """The nodes to go through, and the tensors where the way ends; None where there is no such way."""
    inner: set[Node] = set()
    ends: dict[Place, Tensor] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node in inner:
            continue
        inner.add(node)
        for _, m, nr in edges[node]:
            if (m, nr) in ends:
                continue
            tensor = None if m in special else forward.kept(node, m, nr)
            if tensor is not None:
                ends[m, nr] = tensor
            elif m in special or m not in forward.edges:
                waiting.append(m)
            else:
                return None
    return (inner, ends) if root in special else None


def _kept(node: Node, m: Node, nr: int) -> Tensor | None:
    """The tensor at (m, nr), where an edge of the node leads; a product, for one, keeps its factors."""
    if hasattr(m, "variable"):
        return m.variable
    for name in _tensors(node.__class__):
        tensor = getattr(node, name)
        if isinstance(tensor, Tensor) and tensor.grad_fn is m and tensor.output_nr == nr:
            return tensor
    return None


class _Forward:
    """The graph of the scores, which keeps what the gradient's does not: the last layer's weight, if constants multiplied it."""

    def __init__(self, scores: Tensor | None) -> None:
        self._root = None if scores is None else scores.grad_fn

    @cached_property
    def edges(self) -> dict[Node, tuple[Place, ...]]:
        return edges_below([self._root])

    def kept(self, node: Node, m: Node, nr: int) -> Tensor | None:
        """The tensor at (m, nr), where an edge of the node leads, if that or a node of the forward keeps it."""
        if (tensor := _kept(node, m, nr)) is not None or m not in self.edges:
            return tensor
        others = (_kept(other, m, nr) for other, leading in self.edges.items() if (m, nr) in leading)
        return next((tensor for tensor in others if tensor is not None), None)


@cache
def _tensors(kind: Any) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") and hasattr(kind, "_raw" + name)]


class _SecondPass(torch.autograd.Function):
    """(plan, *weights, *untouched) -> the plan's gradient."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *leaves: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return plan.gradient.data  # with a version of its own: what is done to it in place is not done to the graph

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan | None = ctx.plan
        if plan is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time: what it kept has been freed; give retain_graph=True to the "
                "first backward"
            )
        leaves = [*plan.weights, *plan.untouched]
        if cotangent is None:
            return None, *[None] * len(leaves)
        if torch.is_grad_enabled():  # somebody differentiates this backward
            return None, *torch.autograd.grad(plan.gradient, leaves, cotangent, create_graph=True, allow_unused=True)
        weights = _outside(lambda: _went(plan, cotangent), cotangent)
        zeros = [torch.empty_like(leaf) for leaf in plan.untouched]
        for dtype in {zero.dtype for zero in zeros}:
            torch._foreach_zero_([zero for zero in zeros if zero.dtype == dtype])
        if not _keeps_graph():
            ctx.plan = None
        return None, *weights, *zeros


def _keeps_graph() -> bool:
    """Whether the running backward was asked to."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or asked()


def _went(plan: _Plan, cotangent: Tensor) -> list[Tensor | None]:
    """The weights' cotangents."""
    weights: list[Tensor | None] = [None] * len(plan.weights)
    received: dict[Node, dict[int, Tensor]] = {plan.gradient.grad_fn: {plan.gradient.output_nr: cotangent}}
    for node in reversed(plan.nodes):
        if node not in received:
            continue
        given = _through(node, received.pop(node))
        for k, m, nr in plan.edges[node]:
            if (value := given[k]) is None:
                continue
            if (place := plan.ends.get((m, nr))) is not None:
                weights[place] = _sum(weights[place], _fitting(value, plan.weights[place]))
            else:
                there = received.setdefault(m, {})
                there[nr] = _sum(there.get(nr), _fitting(value, m._input_metadata[nr]))
    return weights


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _fitting(value: Tensor, like: Any) -> Tensor:
    """As the engine does between two nodes: what was broadcast is summed, and has its dtype again."""
    if value.shape != like.shape:
        value = value.sum_to_size(like.shape)
    return value if value.dtype == like.dtype else value.to(like.dtype)


def _through(node: Node, cotangents: dict[int, Tensor]) -> Sequence[Tensor | None]:
    if node.name() == "ConvolutionBackwardBackward0":
        return _through_convolution(node, cotangents[0])
    given = node(*(cotangents.get(nr) for nr in range(len(node._input_metadata))))
    return given if isinstance(given, tuple) else (given,)


def _through_convolution(node: Node, u: Tensor) -> Sequence[Tensor | None]:
    """The input's gradient is linear in both others: g's cotangent is the convolution of u, W's its weight gradient at u.

    torch's own formula has a forward convolution with the batch as channels for the latter, which is slower.
    """
    (to_g, _), _, (to_weight, _) = node.next_functions
    g, weight = node._saved_grad_output, node._saved_weight
    how = (node._saved_stride, node._saved_padding, node._saved_dilation)
    more = (node._saved_transposed, node._saved_output_padding, node._saved_groups)
    there = None if to_g is None else torch.ops.aten.convolution(u, weight, None, *how, *more)
    return there, None, None if to_weight is None else weight_gradient(g, u, weight, (*how, *more))


def _outside(work: Callable[[], Any], like: Tensor) -> Any:
    """Runs inside a backward of its own: nodes that are called ask the running one which of their results it wants."""
    results: list[Any] = []
    with torch.enable_grad():
        start = like.new_empty(0).requires_grad_()
        end = _Alone.apply(start, lambda: results.append(work()))
    torch.autograd.backward(end, end.detach())
    return results[0]


class _Alone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start: Tensor, work: Callable[[], None]) -> Tensor:
        ctx.work = work
        return start.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, None]:
        ctx.work()
        return None, None
