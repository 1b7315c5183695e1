"""The real and the generated images on their way through the discriminator, as two batches or as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .arguments import SIDES, Pair, loss_dtype
from .buffered_ops import logit_terms_into
from .conditions import Call
from .formulas import as_float
from .independence import HOOKED, Answer, Forward, ask, forget, forward, seen_to_mix
from .module_state import remember
from .processes import Processes
from .scores import ScoredSides, Scores
from .step_arguments import StepArguments, check_graph


class ChangedError(RuntimeError):
    """The network does something else with the merged batch than when it was asked, or, for a reason that lasts, more."""

    def __init__(self, message: str, lasts: bool = False) -> None:
        super().__init__(message)
        self.lasts = lasts


class Batches:
    """Real and generated images on their way through D, one batch after the other, or merged into one.

    Where images are independent the two are the same, and one batch is faster (`merging_is_faster`).

    merge: make them one; only where `ask` has said that this is the same, or where one of them is empty.
    """

    def __init__(self, given: StepArguments, merge: bool) -> None:
        self.m = len(given.x_real)
        self._network = given.network
        self._attack = given.attack
        self._processes = given.processes
        self.merged = merge
        self._asked = merge and not given.one_sided
        self._calls: Sequence[Call] = given.calls.sides
        if self._asked:
            self._answer: Answer | None = ask(given.calls, given.x_real, given.x_fake)
            assert given.calls.together is not None
            self._calls = [given.calls.together]
        else:
            self._answer = seen_to_mix(given.network)  # without an answer the forward is watched
            if merge:
                self._calls = self._calls[:1] if self.m else self._calls[1:]
        self.clean = self.join(given.x_real, given.x_fake)

    def join(self, real: Tensor, fake: Tensor) -> list[Tensor]:
        return [torch.cat([real, fake])] if self.merged else [real, fake]

    def sides(self, tensors: Sequence[Tensor]) -> Pair:
        return (tensors[0][: self.m], tensors[0][self.m :]) if self.merged else (tensors[0], tensors[1])

    def scored_sides(self, scores: Sequence[Scores]) -> ScoredSides:
        if self.merged:
            return scores[0].rows(slice(self.m)), scores[0].rows(slice(self.m, None))
        return scores[0], scores[1]

    def places(self, k: int) -> dict[int, slice]:
        """Where in batch k the images of a side are (0: real, 1: generated)."""
        return {0: slice(self.m), 1: slice(self.m, None)} if self.merged else {k: slice(None)}

    @property
    def why_not(self) -> str | None:
        """Why images are known not to stay apart, where that is known before a forward."""
        return self._answer.why_not if self._answer else None

    @property
    def serves_attack(self) -> bool:
        """Whether a forward's graph can give the attack its gradients: compiled code gives one backward, which is the clean
        loss's."""
        return not self._network.compiled or self.why_not is None

    def scores(self, k: int, images: Tensor) -> Scores:
        """D's on batch k, for a pass that nothing else is wanted of."""
        return self._calls[k](images)

    def forward(self, k: int, images: Tensor) -> Forward:
        """D's scores of batch k with their graph to the leaf `images`."""
        result = forward(self._calls[k], images, self._answer)
        if self._asked:
            if result.why_not or result.hooks.inside:
                raise ChangedError(result.why_not or HOOKED, lasts=result.hooks.inside)
            result.hooks.refuse = ChangedError(HOOKED, lasts=True)  # the output's come first in the backward
        check_graph(result.graph, [images], self._attack.objective)
        return result

    def terms(self, k: int, scores: Scores, weight: float | Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor]:
        """Of batch k: the weights with which its logits go back, weight times the slopes of the discriminator's loss and like the
        logits; and its part of the loss and of the Wasserstein estimate, the first two of a few numbers. Each scale has a loss
        of its own, over all images and positions."""
        if scores.single:
            return self._terms(k, scores.logits, self.m, weight, floor)
        parts = zip(scores.split(), scores.widths, strict=True)
        found = [self._terms(k, t, self.m * width, weight, floor) for t, width in parts]
        return scores.join([weights for weights, _ in found]), torch.stack([sums for _, sums in found]).sum(0)

    def _terms(self, k: int, logits: Tensor, m: int, weight: float | Tensor, floor: float) -> tuple[Tensor, Tensor]:
        """m: how many of the logits are the real side's, where both are here."""
        if self._processes is not None:
            return self._parts_of_terms(self._processes, k, logits, m, weight, floor)
        scales = isinstance(weight, Tensor)
        t = (
            as_float(logits.detach()) if scales else logits.detach()
        )  # in float16 they would be 0 before they are scaled
        weights = torch.empty_like(t)
        sums = torch.empty(4, dtype=loss_dtype((t, t)), device=t.device)
        logit_terms_into(
            self._two(k, t, m),
            self._two(k, weights, m),
            sums,
            weight=1.0 if isinstance(weight, Tensor) else weight,
            floor=floor,
            objective=self._attack.objective,
            formulation=self._attack.formulation,
        )
        return (weights * weight).to(logits.dtype) if scales else weights, sums

    def _parts_of_terms(
        self, processes: Processes, k: int, logits: Tensor, m: int, weight: float | Tensor, floor: float
    ) -> tuple[Tensor, Tensor]:
        """The same where the means are over the images of all processes: this one's part of them."""
        t = as_float(logits.detach())
        found, total = [], torch.zeros(4, dtype=t.dtype, device=t.device)
        for side, part in zip(SIDES, self._two(k, t, m), strict=True):
            weights, sums, none = torch.empty_like(part), torch.empty_like(total), part[:0]
            if processes.counts(side):  # a mean over no images is none
                own, out = ((part, none), (weights, none)) if side == "real" else ((none, part), (none, weights))
                logit_terms_into(own, out, sums, weight=1.0, floor=floor, objective=self._attack.objective)
                share = processes.share(side).to(t.dtype)
                weights, total = weights * (share * weight), total + sums * share
            found.append(weights)
        return torch.cat(found).to(logits.dtype), total

    def _two(self, k: int, t: Tensor, m: int) -> Pair:
        """Batch k's sides, of which one may be empty."""
        if self.merged:
            return t[:m], t[m:]
        return (t, t[:0]) if k == 0 else (t[:0], t)


# Numbers in both batches' images from which a CPU sends them apart: one batch is then hardly faster, or slower, and holds the
# activations of both, up to twice the memory. docs/performance.md has the measurements.
LARGE_ON_CPU = 2**18


def merging_is_faster(x_real: Tensor, x_fake: Tensor) -> bool:
    """A GPU is given half as many operations; a CPU's fill its cores better."""
    device = x_real.device.type
    return device == "cuda" or (device == "cpu" and x_real.numel() + x_fake.numel() < LARGE_ON_CPU)


def capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


Result = TypeVar("Result")


def merged_or_apart(given: StepArguments, run: Callable[[bool], Result], apart: bool = False) -> Result:
    """run(whether to merge both batches). A network that has changed since it was asked whether that may be shows it in its
    first forward, before anything is kept: then once more with the batches apart.

    apart: never to merge them.
    """
    device = given.x_real.device
    x = given.x_real, given.x_fake
    if given.one_sided:  # one batch goes through D, whatever D does with it
        return run(True)
    merge = not apart and merging_is_faster(*x) and ask(given.calls, *x).why_not is None
    if not merge or capturing(device):  # a captured network does what it did in the warm-up
        return run(merge)
    put_back = remember(given.network.module)
    try:
        return run(True)
    except ChangedError as error:  # and with it goes the graph
        forget(given.network, str(error) if error.lasts else None)
    put_back()
    return run(False)
