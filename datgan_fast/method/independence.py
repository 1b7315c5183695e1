"""Does a discriminator treat each image by itself? Then one backward serves its weights and its images alike.

Answered from the operations of a forward (batch_flow.py) and from its autograd graph, never from the values of weights or images,
by watching the very forward that is used. What D takes beside the images and has a row for each is the images' too. Only whether
two batches may go through D as one must be known before that forward: it is found out once, and remembered with the program it
was found for. A forward that does anything else has no answer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .autograd_graph import Graph, Hooks, next_number
from .batch_flow import Watch
from .batch_rules import rule_of
from .conditions import Beside, Call, Calls
from .module_state import Network, unchanged_state
from .scores import Scores, scores_in

MOST_GRAPHS = 8  # ways that one batch may take and be known; a network that has more is watched
HOOKED = "a hook on a tensor inside the network may change its gradient"
EXCHANGES = "its layers exchange tensors between processes"
LARGEST_MEMORY = 64  # answers for one network; one that asks for more changes all the time and is not asked again

# Each by the network's anchor.
_answers: WeakKeyDictionary[Any, dict[object, Answer]] = WeakKeyDictionary()
_graphs: WeakKeyDictionary[Any, dict[object, _KnownGraphs]] = WeakKeyDictionary()
_compiled: WeakKeyDictionary[Any, dict[object, list[tuple[list[object], str | None]]]] = WeakKeyDictionary()
_mixing: WeakKeyDictionary[Any, dict[object, str]] = WeakKeyDictionary()


class Answer(NamedTuple):
    why_not: str | None  # why images are not known to stay apart; None if they are
    program: list[object] | None = None  # for which it was found


class Forward(NamedTuple):
    """A batch's way through the discriminator."""

    scores: Scores  # with their graph
    graph: Graph
    why_not: str | None
    hooks: Hooks  # that the network hung on its own tensors on the way
    lends: bool = False  # whether a part of the graph may be wanted by another backward

    @property
    def logits(self) -> Tensor:
        return self.scores.logits


class _KnownGraphs:
    """The graphs of a batch by itself in which its images stay apart."""

    def __init__(self) -> None:
        self.fingerprints: list[list[object]] = []
        self.watch = True  # the next forward


def seen_to_mix(network: Network) -> Answer | None:
    """The answer of an earlier forward; should images no longer meet, it costs time and is right. Where layers exchange tensors
    the answer is there before: all processes must go the same way, whatever each has seen."""
    if network.exchanges:
        return Answer(EXCHANGES)
    why_not = _mixing.get(network.anchor, {}).get(network.modes)
    return Answer(why_not) if why_not else None


def note_mixing(network: Network, reason: str) -> None:
    _mixing.setdefault(network.anchor, {})[network.modes] = reason


def forward(call: Call, images: Tensor, answer: Answer | None = None) -> Forward:
    """D(images) with its graph, and whether the images stayed apart on their way.

    Args:
        images: a leaf. D is given a copy, which it may change.
        answer: for one that was seen to mix its images, or for two batches that go as one.
    """
    network = call.network
    begun = next_number()
    own, call = images.clone(), call.with_own_tensors()
    if answer is not None and answer.why_not:
        result = _unwatched(call, own, begun, answer.why_not)
    elif network.compiled:
        result = _judged(call, own, begun, _unwatched(call, own, begun, None))
    elif answer is None or (call.plain and network.hangs_no_hooks):  # whose graph holds all that they do
        result = _with_known_graph(call, own, begun, answer)
    else:
        result = _watched(call, own, begun, answer.program)
    kept = network.kept()
    if result.why_not is None and any(Graph(t, begun).reaches([images]) for t in kept):
        result = result._replace(why_not="the network keeps a tensor of its graph for the next forward")
    return result._replace(lends=bool(kept) or result.graph.is_borrowed())


def _unwatched(call: Call, own: Tensor, begun: int, why_not: str | None) -> Forward:
    hooks = Hooks()
    plain = call.plain and call.network.hangs_no_hooks
    with nullcontext() if call.network.compiled or plain else hooks:  # no compiler has use for such a mode
        output = call.output(own)
    hooks.end(output)
    scores = scores_in(output, len(own))
    return Forward(scores, Graph(scores.logits, begun), why_not, hooks)


def _judged(call: Call, own: Tensor, begun: int, result: Forward) -> Forward:
    """Of compiled code, which cannot be watched: the Python it was made from is, once for each piece of it that is met."""
    network = call.network
    known = _compiled.setdefault(network.anchor, {}).setdefault((network.modes, own.shape, own.dtype), [])
    fingerprint = result.graph.fingerprint()
    for graph, why_not in known:
        if graph == fingerprint:
            return result._replace(why_not=why_not)
    with unchanged_state(network.module), eager(True):
        why_not = _watched(call, own.detach().clone().requires_grad_().clone(), begun).why_not
    why_not = why_not or _odd(result.graph, compiled=True)
    if fingerprint is not None and len(known) < MOST_GRAPHS:
        known.append((fingerprint, why_not))
    return result._replace(why_not=why_not)


def _with_known_graph(call: Call, own: Tensor, begun: int, answer: Answer | None) -> Forward:
    """What a batch's backward does is in its graph and in hooks, so that the same graph needs no second look."""
    kind, network = own.device.type, call.network
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    graphs = _graphs.setdefault(network.anchor, {})
    known = graphs.setdefault((network.modes, own.shape, own.dtype, autocast), _KnownGraphs())
    if known.watch:
        result = _watched(call, own, begun, answer.program if answer else None)
        fingerprint = result.graph.fingerprint() if result.why_not is None else None
        if fingerprint is not None and len(known.fingerprints) < MOST_GRAPHS and len(graphs) <= LARGEST_MEMORY:
            known.fingerprints.append(fingerprint)
            known.watch = False
        return result
    result = _unwatched(call, own, begun, None)
    if result.graph.is_compiled():  # inside, where the modules do not show it
        return _judged(call, own, begun, result)
    if result.graph.fingerprint() not in known.fingerprints:
        known.watch = True  # a network that goes this way and that
        result = result._replace(why_not="its graph is another than those that were looked at")
    return result


def _watched(call: Call, own: Tensor, begun: int, expected: list[object] | None = None) -> Forward:
    program: list[object] = []
    with Hooks() as hooks, _watch(call, own, program if expected else None) as watch:
        output = call.output(own)
    hooks.end(output)
    scores = scores_in(output, len(own))
    graph = Graph(scores.logits, begun)
    why_not = watch.why_not(output)
    if why_not:
        note_mixing(call.network, why_not)
    elif expected and program != expected:
        why_not = "it does something else than before"
    return Forward(scores, graph, why_not or _odd(graph), hooks)


def _watch(call: Call, images: Tensor, program: list[object] | None) -> Watch:
    known = [*call.network.tensors(), *call.tensors(of_images=False)]
    return Watch(images, rule_of, program, known, call.tensors(of_images=True))


def _odd(graph: Graph, compiled: bool = False) -> str | None:
    """Why one backward of a weighted sum might not be the weighted sum of the images' own backwards."""
    name = graph.unknown()
    if name is None or (compiled and name == "CompiledFunctionBackward"):
        return None
    return f"{name} may not be linear in the gradient, or mix the images'"


def eager(compiled: bool) -> AbstractContextManager[object]:
    """Inside, compiled networks run their Python again."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def treats_images_independently(discriminator: Any, x_real: Tensor, x_fake: Tensor) -> bool:
    """True if D(cat(x_real, x_fake)) is D(x_real) and D(x_fake), whatever the images and the weights are."""
    return ask(Calls(Network(discriminator), Beside(), len(x_real), len(x_fake)), x_real, x_fake).why_not is None


def ask(calls: Calls, x_real: Tensor, x_fake: Tensor) -> Answer:
    """Whether both batches may go through D as one; remembered for the same modules, modes, sizes and kinds of conditions.

    Modules of torch's own ask no batch how large it is, so that one answer serves all sizes: the forward that relies on it is
    watched for each."""
    if x_real.shape[1:] != x_fake.shape[1:] or x_real.dtype != x_fake.dtype:
        return Answer("real and generated images have different shapes or dtypes")
    if not (len(x_real) and len(x_fake)):
        return Answer("one of both batches is empty")
    if calls.together is None:
        return Answer("real and generated images have conditions of different kinds")
    network = calls.network
    keys = _keys(calls, calls.together, x_real, x_fake)
    answers = _answers.setdefault(network.anchor, {})
    found = next((answers[key] for key in keys if key in answers), None)
    if found is not None:
        return found
    if len(answers) >= LARGEST_MEMORY:
        return Answer("the network has changed too often to be asked again")
    if network.exchanges:  # other processes might not ask
        return Answer(EXCHANGES)
    found = _ask(calls, calls.together, x_real.detach(), x_fake.detach())
    if found is None:
        return Answer("its scores are not finite")
    answers.update(dict.fromkeys(keys, found))
    return found


def _keys(calls: Calls, together: Call, x_real: Tensor, x_fake: Tensor) -> list[object]:
    """Under which an answer is remembered: of these sizes, and of all, where it does not depend on them."""
    m, n = len(x_real), len(x_fake)
    known = (
        calls.network.modes,
        (x_real.shape[1:], x_real.dtype, x_real.device),
        torch.is_autocast_enabled(x_real.device.type),
        tuple(side.described() for side in calls.sides),
    )
    of_these: list[object] = [(m, n, *known)]
    if calls.network.hangs_no_hooks and together.plain:  # nothing can meet in a batch of one
        return [*of_these, (m == 1, n == 1, "any size", *known)]
    return of_these


def forget(network: Network, reason: str | None = None) -> None:
    """The network may be asked again, or, for a reason that will last, never."""
    answers = _answers.pop(network.anchor, {})
    if reason:
        _answers[network.anchor] = dict.fromkeys(answers, Answer(reason))


def _ask(calls: Calls, together: Call, x_real: Tensor, x_fake: Tensor) -> Answer | None:
    """Watches both batches alone and together: D must do the same with all three, and nowhere may images meet.

    None where the three cannot be compared, because their scores are not finite.
    """
    network, (real, fake) = calls.network, calls.sides
    programs: list[tuple[list[object], list[object]]] = []
    logits: list[Tensor] = []
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # copies of the weights that were made here are not for the step
    try:
        with unchanged_state(network.module), torch.enable_grad(), eager(network.compiled):
            for call, images in ((together, torch.cat([x_real, x_fake])), (real, x_real), (fake, x_fake)):
                program: list[object] = []
                begun = next_number()
                own, call = images.clone().requires_grad_().clone(), call.with_own_tensors()
                with Hooks() as hooks, _watch(call, own, program) as watch:
                    output = call.output(own)
                hooks.end(output)
                scores = scores_in(output, len(images)).logits
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
    as_one, apart = logits[0], torch.cat(logits[1:])
    if not (as_one.isfinite().all() and apart.isfinite().all()):
        return None
    # Another algorithm for another size rounds otherwise.
    tf32 = as_one.is_cuda and torch.backends.cudnn.allow_tf32
    resolution = 2.0**-10 if tf32 and scores.dtype == torch.float32 else torch.finfo(scores.dtype).eps
    tolerance = min(1e3 * resolution, 0.1) * as_one.abs().max().clamp(min=1e-6)
    if bool((as_one - apart).abs().max() > tolerance):
        return Answer("its scores depend on the size of the batch")
    return Answer(None, programs[0][0])
