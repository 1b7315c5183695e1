"""Does a discriminator treat each image by itself? Then one backward serves its weights and its images alike.

Answered from the operations of a forward (batch_flow.py) and from its autograd graph, never from the values of weights or images,
by watching the very forward that is used. Only whether two batches may go through D as one must be known before that forward:
it is found out once, and remembered with the program it was found for. A forward that does anything else has no answer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .autograd_graph import Graph, next_number
from .batch_flow import Watch
from .batch_rules import rule_of
from .module_state import Network, unchanged_state
from .step_arguments import as_logits, logits_of

LARGEST_MEMORY = 64  # answers for one network; one that asks for more changes all the time and is not asked again

_answers: WeakKeyDictionary[nn.Module, dict[object, Answer]] = WeakKeyDictionary()
_graphs: WeakKeyDictionary[nn.Module, dict[object, list[object] | None]] = WeakKeyDictionary()
_mixing: WeakKeyDictionary[nn.Module, dict[object, str]] = WeakKeyDictionary()


class Answer(NamedTuple):
    why_not: str | None  # why images are not known to stay apart; None if they are
    program: list[object] | None = None  # for which it was found; None: of compiled code, which cannot be watched


class Forward(NamedTuple):
    """A batch's way through the discriminator."""

    logits: Tensor  # [N], with their graph
    graph: Graph
    why_not: str | None


def seen_to_mix(network: Network) -> Answer | None:
    """The answer of an earlier forward; should images no longer meet, it costs time and is right."""
    why_not = _mixing.get(network.module, {}).get(network.modes)
    return Answer(why_not) if why_not else None


def forward(network: Network, images: Tensor, answer: Answer | None = None) -> Forward:
    """D(images) with its graph, and whether the images stayed apart on their way.

    Args:
        images: a leaf. D is given a copy, which it may change.
        answer: for a compiled network, for one that was seen to mix its images, or for two batches that go as one.
    """
    begun = next_number()
    own = images.clone()
    if answer is not None and answer.program is None:
        logits = logits_of(network.module, own)
        graph = Graph(logits, begun)
        return Forward(logits, graph, answer.why_not or _odd(graph, compiled=True))
    if answer is None:
        return _with_known_graph(network, own, begun)
    return _watched(network, own, begun, answer.program)


def _with_known_graph(network: Network, own: Tensor, begun: int) -> Forward:
    """A batch by itself: what its backward does is all in its graph, so that the same graph needs no second look."""
    graphs = _graphs.setdefault(network.module, {})
    key = (network.modes, own.shape, own.dtype)
    known = graphs.get(key)
    if known is None:
        result = _watched(network, own, begun)
        if result.why_not is None and key not in graphs and len(graphs) < LARGEST_MEMORY:
            graphs[key] = result.graph.fingerprint()
        return result
    logits = logits_of(network.module, own)
    graph = Graph(logits, begun)
    if graph.fingerprint() == known:
        return Forward(logits, graph, None)
    graphs[key] = None  # a network that goes this way and that is watched from now on
    return Forward(logits, graph, "its graph is another than the one that was looked at")


def _watched(network: Network, own: Tensor, begun: int, expected: list[object] | None = None) -> Forward:
    program: list[object] = []
    with Watch(own, rule_of, program if expected else None) as watch:
        output = network.module(own)
    logits = as_logits(output, len(own))
    graph = Graph(logits, begun)
    why_not = watch.why_not(output)
    if why_not:
        _mixing.setdefault(network.module, {})[network.modes] = why_not
    elif expected and program != expected:
        why_not = "it does something else than before"
    return Forward(logits, graph, why_not or _odd(graph))


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
    compiled = network.is_compiled()
    key = (
        # What compiled code depends on is looked at, since it cannot be watched.
        _fingerprint(network) if compiled else network.modes,
        (x_real.shape, x_fake.shape, x_real.dtype, x_real.device),
        torch.is_autocast_enabled(x_real.device.type),
    )
    answers = _answers.setdefault(network.module, {})
    if key not in answers:
        if len(answers) >= LARGEST_MEMORY:
            return Answer("the network has changed too often to be asked again")
        answer = _ask(network.module, x_real.detach(), x_fake.detach(), compiled)
        if answer is None:
            return Answer("its scores are not finite")
        answers[key] = answer._replace(program=None) if compiled else answer
    return answers[key]


def forget(discriminator: nn.Module) -> None:
    _answers.pop(discriminator, None)


def _ask(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor, compiled: bool) -> Answer | None:
    """Watches both batches alone and together: D must do the same with all three, and nowhere may images meet.

    None where the three cannot be compared, because their scores are not finite.
    """
    programs: list[tuple[list[object], list[object]]] = []
    logits: list[Tensor] = []
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # copies of the weights that were made here are not for the step
    try:
        with unchanged_state(discriminator), torch.enable_grad(), eager(compiled):
            for images in (torch.cat([x_real, x_fake]), x_real, x_fake):
                program: list[object] = []
                begun = next_number()
                own = images.clone().requires_grad_().clone()
                with Watch(own, rule_of, program) as watch:
                    output = discriminator(own)
                scores = as_logits(output, len(images))
                if why_not := watch.why_not(output) or _odd(Graph(scores, begun)):
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
    tolerance = 0.05 * together.abs().max().clamp(min=1e-6)  # another algorithm for another size rounds otherwise
    if bool((together - apart).abs().max() > tolerance):
        return Answer("its scores depend on the size of the batch")
    return Answer(None, programs[0][0])


def _fingerprint(network: Network) -> object:
    """What the way of images through compiled code can depend on besides weights, as the compiler sees it."""
    plain = (bool, int, float, str, type(None))

    def described(value: Any) -> object:
        if isinstance(value, plain):
            return value
        if isinstance(value, (tuple, list)):
            return tuple(map(described, value))
        if isinstance(value, dict):  # hooks, and the registries of parameters, buffers and modules
            return tuple((k, None if isinstance(v, Tensor) else described(v)) for k, v in value.items())
        return id(value)

    return tuple((id(m), *((k, described(v)) for k, v in vars(m).items())) for m in network.modules)
