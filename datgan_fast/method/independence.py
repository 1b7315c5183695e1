"""Does a discriminator treat each image by itself? Then one backward serves its weights and its images alike.

Answered from the operations of a forward (batch_flow.py) and from its autograd graph, never from the values of weights or images,
by watching the very forward that is used. Only whether two batches may go through D as one must be known before that forward:
it is found out once, and remembered with the program it was found for. A forward that does anything else has no answer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .autograd_graph import Graph, Hooks, next_number
from .batch_flow import Watch
from .batch_rules import rule_of
from .module_state import Network, unchanged_state
from .step_arguments import as_logits

MOST_GRAPHS = 8  # ways that one batch may take and be known; a network that has more is watched
HOOKED = "a hook on a tensor inside the network may change its gradient"
LARGEST_MEMORY = 64  # answers for one network; one that asks for more changes all the time and is not asked again

_answers: WeakKeyDictionary[nn.Module, dict[object, Answer]] = WeakKeyDictionary()
_graphs: WeakKeyDictionary[nn.Module, dict[object, _KnownGraphs]] = WeakKeyDictionary()
_compiled: WeakKeyDictionary[nn.Module, dict[object, list[tuple[list[object], str | None]]]] = WeakKeyDictionary()
_mixing: WeakKeyDictionary[nn.Module, dict[object, str]] = WeakKeyDictionary()


class Answer(NamedTuple):
    why_not: str | None  # why images are not known to stay apart; None if they are
    program: list[object] | None = None  # for which it was found


class Forward(NamedTuple):
    """A batch's way through the discriminator."""

    logits: Tensor  # [N], with their graph
    graph: Graph
    why_not: str | None
    hooks: Hooks  # that the network hung on its own tensors on the way
    lends: bool = False  # whether a part of the graph may be wanted by another backward


class _KnownGraphs:
    """The graphs of a batch by itself in which its images stay apart."""

    def __init__(self) -> None:
        self.fingerprints: list[list[object]] = []
        self.watch = True  # the next forward


def seen_to_mix(network: Network) -> Answer | None:
    """The answer of an earlier forward; should images no longer meet, it costs time and is right."""
    why_not = _mixing.get(network.module, {}).get(network.modes)
    return Answer(why_not) if why_not else None


def note_mixing(network: Network, reason: str) -> None:
    _mixing.setdefault(network.module, {})[network.modes] = reason


def forward(network: Network, images: Tensor, answer: Answer | None = None) -> Forward:
    """D(images) with its graph, and whether the images stayed apart on their way.

    Args:
        images: a leaf. D is given a copy, which it may change.
        answer: for one that was seen to mix its images, or for two batches that go as one.
    """
    begun = next_number()
    own = images.clone()
    if answer is not None and answer.why_not:
        result = _unwatched(network, own, begun, answer.why_not)
    elif network.compiled:
        result = _judged(network, own, begun, _unwatched(network, own, begun, None))
    elif answer is not None:
        result = _watched(network, own, begun, answer.program)
    else:
        result = _with_known_graph(network, own, begun)
    kept = network.kept()
    if result.why_not is None and any(Graph(t, begun).reaches([images]) for t in kept):
        result = result._replace(why_not="the network keeps a tensor of its graph for the next forward")
    return result._replace(lends=bool(kept) or result.graph.is_borrowed())


def _unwatched(network: Network, own: Tensor, begun: int, why_not: str | None) -> Forward:
    hooks = Hooks()
    with nullcontext() if network.compiled or network.hangs_no_hooks else hooks:  # no compiler has use for such a mode
        output = network.module(own)
    hooks.end(output)
    logits = as_logits(output, len(own))
    return Forward(logits, Graph(logits, begun), why_not, hooks)


def _judged(network: Network, own: Tensor, begun: int, result: Forward) -> Forward:
    """Of compiled code, which cannot be watched: the Python it was made from is, once for each piece of it that is met."""
    known = _compiled.setdefault(network.module, {}).setdefault((network.modes, own.shape, own.dtype), [])
    fingerprint = result.graph.fingerprint()
    for graph, why_not in known:
        if graph == fingerprint:
            return result._replace(why_not=why_not)
    with unchanged_state(network.module), eager(True):
        why_not = _watched(network, own.detach().clone().requires_grad_().clone(), begun).why_not
    why_not = why_not or _odd(result.graph, compiled=True)
    if fingerprint is not None and len(known) < MOST_GRAPHS:
        known.append((fingerprint, why_not))
    return result._replace(why_not=why_not)


def _with_known_graph(network: Network, own: Tensor, begun: int) -> Forward:
    """A batch by itself: what its backward does is in its graph and in hooks, so that the same graph needs no second look."""
    kind = own.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    graphs = _graphs.setdefault(network.module, {})
    known = graphs.setdefault((network.modes, own.shape, own.dtype, autocast), _KnownGraphs())
    if known.watch:
        result = _watched(network, own, begun)
        fingerprint = result.graph.fingerprint() if result.why_not is None else None
        if fingerprint is not None and len(known.fingerprints) < MOST_GRAPHS and len(graphs) <= LARGEST_MEMORY:
            known.fingerprints.append(fingerprint)
            known.watch = False
        return result
    result = _unwatched(network, own, begun, None)
    if result.graph.is_compiled():  # inside, where the modules do not show it
        return _judged(network, own, begun, result)
    if result.graph.fingerprint() not in known.fingerprints:
        known.watch = True  # a network that goes this way and that
        result = result._replace(why_not="its graph is another than those that were looked at")
    return result


def _watched(network: Network, own: Tensor, begun: int, expected: list[object] | None = None) -> Forward:
    program: list[object] = []
    with Hooks() as hooks, Watch(own, rule_of, program if expected else None, network.tensors()) as watch:
        output = network.module(own)
    hooks.end(output)
    logits = as_logits(output, len(own))
    graph = Graph(logits, begun)
    why_not = watch.why_not(output)
    if why_not:
        note_mixing(network, why_not)
    elif expected and program != expected:
        why_not = "it does something else than before"
    return Forward(logits, graph, why_not or _odd(graph), hooks)


def _odd(graph: Graph, compiled: bool = False) -> str | None:
    """Why one backward of a weighted sum might not be the weighted sum of the images' own backwards."""
    name = graph.unknown()
    if name is None or (compiled and name == "CompiledFunctionBackward"):
        return None
    return f"{name} may not be linear in the gradient, or mix the images'"


def eager(compiled: bool) -> AbstractContextManager[object]:
    """Inside, compiled networks run their Python again."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def treats_images_independently(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> bool:
    """True if D(cat(x_real, x_fake)) is D(x_real) and D(x_fake), whatever the images and the weights are."""
    return ask(Network(discriminator), x_real, x_fake).why_not is None


def ask(network: Network, x_real: Tensor, x_fake: Tensor) -> Answer:
    """Whether both batches may go through D as one; remembered for the same modules, modes and sizes."""
    if x_real.shape[1:] != x_fake.shape[1:] or x_real.dtype != x_fake.dtype:
        return Answer("real and generated images have different shapes or dtypes")
    key = (
        network.modes,
        (x_real.shape, x_fake.shape, x_real.dtype, x_real.device),
        torch.is_autocast_enabled(x_real.device.type),
    )
    answers = _answers.setdefault(network.module, {})
    if key not in answers:
        if len(answers) >= LARGEST_MEMORY:
            return Answer("the network has changed too often to be asked again")
        answer = _ask(network, x_real.detach(), x_fake.detach())
        if answer is None:
            return Answer("its scores are not finite")
        answers[key] = answer
    return answers[key]


def forget(network: Network, reason: str | None = None) -> None:
    """The network may be asked again, or, for a reason that will last, never."""
    answers = _answers.pop(network.module, {})
    if reason:
        _answers[network.module] = dict.fromkeys(answers, Answer(reason))


def _ask(network: Network, x_real: Tensor, x_fake: Tensor) -> Answer | None:
    """Watches both batches alone and together: D must do the same with all three, and nowhere may images meet.

    None where the three cannot be compared, because their scores are not finite.
    """
    programs: list[tuple[list[object], list[object]]] = []
    logits: list[Tensor] = []
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # copies of the weights that were made here are not for the step
    try:
        with unchanged_state(network.module), torch.enable_grad(), eager(network.compiled):
            for images in (torch.cat([x_real, x_fake]), x_real, x_fake):
                program: list[object] = []
                begun = next_number()
                own = images.clone().requires_grad_().clone()
                with Hooks() as hooks, Watch(own, rule_of, program, network.tensors()) as watch:
                    output = network.module(own)
                hooks.end(output)
                scores = as_logits(output, len(images))
                if why_not := watch.why_not(output) or (HOOKED if hooks.inside else _odd(Graph(scores, begun))):
                    return Answer(why_not)
                programs.append((program, watch.numbers))
                logits.append(scores.detach().float())
    except Exception as error:  # whatever a network says of a batch that it was not made for
        return Answer(f"it does not take both batches as one ({type(error).__name__})")
    finally:
        torch.set_autocast_cache_enabled(cached)
    if programs[0] != programs[1] or programs[0] != programs[2]:
        return Answer("what it computes depends on the size of the batch")
    together, apart = logits[0], torch.cat(logits[1:])
    if not (together.isfinite().all() and apart.isfinite().all()):
        return None
    # Another algorithm for another size rounds otherwise.
    tf32 = together.is_cuda and torch.backends.cudnn.allow_tf32
    resolution = 2.0**-10 if tf32 and scores.dtype == torch.float32 else torch.finfo(scores.dtype).eps
    tolerance = min(1e3 * resolution, 0.1) * together.abs().max().clamp(min=1e-6)
    if bool((together - apart).abs().max() > tolerance):
        return Answer("its scores depend on the size of the batch")
    return Answer(None, programs[0][0])
