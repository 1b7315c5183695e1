"""Penalties inside a discriminator step: some need no pass of their own, because the clean pass has what they ask for.

A zero-centred penalty differentiates the input gradient that the clean backward makes anyway: v_i / w_i is grad D(x_i). The
adversarial Lipschitz penalty compares D(X) with D(X'); D(X) are the clean scores, so that its gradient with respect to them is
added to their weights before the one backward. All others run by themselves, when the rest of the step is done; and so do all on
the perturbed images, where a step takes them there too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import waiting
from .adversarial_lipschitz import AdversarialLipschitz
from .arguments import SIDES, Pair
from .batches import Batches
from .conditions import Calls
from .formulas import as_float
from .gradients import GradientSum
from .independence import Forward, ask
from .module_state import Network
from .penalties import ZeroCentred
from .penalty import Addable, Discriminator, Total, applied, as_written, column, over, same_step, with_images
from .processes import Over
from .sharing import is_narrow
from .step_arguments import LossTerms, Penalty, StepArguments, check_penalty, check_range, sides_may_lack


@dataclass(frozen=True)
class Within(Addable):
    """A penalty that is computed inside a context, such as autocast switched off. In a step whose own precision that is anyway
    it joins as the penalty itself does."""

    penalty: Penalty
    context: Callable[[], AbstractContextManager[object]]

    @property
    def over(self) -> Over:
        return over(self.penalty)

    def skip(self) -> None:
        if isinstance(self.penalty, Addable):
            self.penalty.skip()

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        with self.context():
            return applied(self.penalty, discriminator, x_real, x_fake, beside)

    def as_written(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        with self.context():
            return applied(as_written(self.penalty), discriminator, x_real, x_fake, beside)


def parts_of(penalty: Penalty | None, device: str) -> list[Penalty]:
    """The terms of a sum, without contexts that change nothing."""
    if penalty is None:
        return []
    if isinstance(penalty, Total):
        return [part for p in penalty.parts for part in parts_of(p, device)]
    if isinstance(penalty, Within):
        outside = _precision(device)
        with penalty.context():
            changes = _precision(device) != outside
        inside = parts_of(penalty.penalty, device)
        return [Within(part, penalty.context) for part in inside] if changes else inside
    return [penalty]


def _precision(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def wants_one_side(penalty: Penalty | None, device: torch.device) -> bool:
    """Whether only one batch's gradients may be differentiated again: if both were one, the other's would go along, which costs
    more than that saves."""
    return len({p.side for p in parts_of(penalty, device.type) if isinstance(p, ZeroCentred)}) == 1


class StepPenalties:
    """The penalties of one step: those that still have to be computed, and what the others came to."""

    def __init__(self, given: StepArguments, terms: LossTerms, batches: Batches, gradients: GradientSum) -> None:
        self._given, self._terms, self._batches, self._gradients = given, terms, batches, gradients
        self._all = with_images(parts_of(terms.penalty, given.x_real.device.type), given.processes)
        self._left = self._all
        self._values: list[Tensor] = []
        self._alone = True  # each image, in all clean forwards that were seen
        self.retain_graph = False  # of what is done from now on

    def may_join(self, forward: Forward) -> bool:
        """Whether v / weight of each image is its own score's gradient, and the forward as good as one of the penalty's own."""
        has_backward = bool(self._left) and self._terms.lambda_clean > 0
        return has_backward and forward.scores.single and _stays_alone(forward) and not is_narrow(forward.graph)

    def _take(self, wanted: Callable[[Penalty], bool]) -> list[Any]:
        """Those are left no more."""
        found: list[Any] = []
        left: list[Penalty] = []
        for p in self._left:
            (found if wanted(p) else left).append(p)
        self._left = left
        return found

    # Zero-centred penalties

    def clean_backward(self, k: int, forward: Forward, images: Tensor, weights: Tensor) -> Tensor | None:
        """`GradientSum.to_images` for clean batch k, and on through the gradient to the parameters for the penalties on it; None
        where there are none."""
        self._alone &= _stays_alone(forward)
        places = self._batches.places(k)
        if not self.may_join(forward) or forward.graph.is_compiled() or not self._gradients.serves(forward.graph):
            return None
        joining = self._take(lambda p: isinstance(p, ZeroCentred) and SIDES.index(p.side) in places)
        if not joining:
            return None
        factors = column(as_float(weights), images)

        def cotangent(v: Tensor) -> Tensor:
            gradient = (as_float(v) / factors).requires_grad_()
            values = [p.value(gradient[places[SIDES.index(p.side)]]) for p in joining]
            values = [self._part(p, value) for p, value in zip(joining, values, strict=True)]
            self._values += [value.detach() for value in values]
            (slope,) = torch.autograd.grad(values, gradient, [torch.ones_like(value) for value in values])
            return (slope * self._terms.grad_scale / factors).to(v.dtype)

        return self._gradients.to_images_and_again(forward, images, weights, cotangent, self.retain_graph)

    # The adversarial Lipschitz penalty

    def compares_scores(self) -> bool:
        """Whether a penalty compares the clean scores with its own. It may if all that draws random numbers before it has drawn
        them, and if both batches may be one, as they are in the penalty."""
        first = next((p for p in self._left if not isinstance(p, ZeroCentred)), None)
        return isinstance(first, AdversarialLipschitz) and self._go_as_one()

    def _go_as_one(self) -> bool:
        given = self._given
        network = Network(given.network.call)  # as it is now: a penalty's context may exchange its weights
        calls = Calls(network, given.calls.beside, len(given.x_real), len(given.x_fake))
        return ask(calls, given.x_real, given.x_fake).why_not is None

    def add_to_weights(self, x: list[Tensor], logits: list[Tensor], weights: list[Tensor]) -> None:
        """Adds the penalties' gradients with respect to the clean scores to the scores' weights, which become new entries of the
        list; what goes back from the penalties' own scores goes back here."""
        images, scores = (ts[0].detach() if len(ts) == 1 else torch.cat([t.detach() for t in ts]) for ts in (x, logits))
        slopes = [self._compare(p, images, as_float(scores)) for p in self._take(self._draws_next())]
        slope = slopes[0] if len(slopes) == 1 else torch.stack(slopes).sum(0)
        for k, part in enumerate(slope.split([len(t) for t in logits])):
            w = as_float(weights[k])
            weight = w + self._scaled(part)
            # Where the two cancel the direction would be lost.
            least = w.abs() * torch.finfo(w.dtype).eps
            weights[k] = weight.abs().maximum(least).copysign(weight).to(logits[k].dtype)

    def _draws_next(self) -> Callable[[Penalty], bool]:
        """Asked of each in turn: whether it compares scores, and nothing else has had to draw before it."""
        waits = False

        def wanted(p: Penalty) -> bool:
            nonlocal waits
            waits |= not isinstance(p, AdversarialLipschitz | ZeroCentred)
            return isinstance(p, AdversarialLipschitz) and not waits

        return wanted

    def _compare(self, penalty: AdversarialLipschitz, x: Tensor, scores: Tensor) -> Tensor:
        """d penalty / d D(X); goes back from D(X')."""
        given, low, high = self._given, penalty.clip_min, penalty.clip_max
        check_range("penalties.adversarial_lipschitz", given.network, given.x_real, given.x_fake, low, high)
        x_adv = penalty.neighbours(given.calls.by_image, x, scores)
        distance = penalty.distance(x, x_adv)
        # D may change what it is given.
        own = given.calls.by_image(x_adv.clone() if self._looks(x) else x_adv)
        terms = penalty.terms(scores, as_float(own.detach()), distance)
        value, slope, own_slope = (self._part(penalty, t) for t in terms)
        self._values.append(value)
        self._go_back(x_adv, own, own_slope)
        return slope

    def _looks(self, x: Tensor) -> bool:
        return not (waiting.looking_waits(x.device) or self._given.network.compiled)

    def _go_back(self, x: Tensor, scores: Tensor, slope: Tensor) -> None:
        """From D(x) of independent images, from those alone that the penalty punishes where looking for them costs nothing."""
        seed = self._scaled(slope).to(scores.dtype)
        if not self._looks(x):
            return self._gradients.add(scores, seed, self.retain_graph)
        active = slope.nonzero().squeeze(1)
        if 3 * len(active) >= 2 * len(x):
            self._gradients.add(scores, seed, self.retain_graph)
        elif len(active):  # one more forward of few costs less than a backward of all
            del scores
            both = self._given.calls.together
            assert both is not None  # as `_go_as_one` says
            some = both.rows(active)(x.index_select(0, active)).by_image()
            self._gradients.add(some, seed[active], self.retain_graph)

    # What has not joined

    def run_apart(self) -> None:
        self._run_each(self._left, self._batches.clean, (self._given.x_real, self._given.x_fake))

    def run_on_perturbed(self, adv: list[Tensor]) -> None:
        """All of them once more, on the images of the adversarial pass."""
        with same_step():
            self._run_each(self._all, adv, self._batches.sides(adv))

    def _run_each(self, parts: list[Penalty], batches: list[Tensor], sides: Pair) -> None:
        """batches, sides: the same images, as they go through D and as a penalty is given them."""
        with sides_may_lack(self._given):
            for part in parts:
                penalty, context = (part.penalty, part.context) if isinstance(part, Within) else (part, nullcontext)
                with context():
                    if isinstance(penalty, AdversarialLipschitz) and self._alone and self._go_as_one():
                        self._compare_alone(penalty, batches)
                    else:
                        self._run(penalty, sides)

    def _run(self, penalty: Penalty, sides: Pair) -> None:
        given = self._given
        beside = given.calls.beside.given()
        value = check_penalty(applied(penalty, given.network.call, *sides, beside))
        value = self._part(penalty, value)
        if value.requires_grad:
            self._gradients.add(self._scaled(value), retain_graph=self.retain_graph)
        self._values.append(value.detach())

    def _part(self, penalty: Penalty, t: Tensor) -> Tensor:
        """Of what is a mean over this process's images, its part of that over all processes'."""
        processes = self._given.processes
        return t if processes is None else t * processes.share(over(penalty)).to(t.dtype)

    def _scaled(self, gradient: Tensor) -> Tensor:
        scale = self._terms.grad_scale
        return gradient if isinstance(scale, float) and scale == 1 else gradient * scale

    def _compare_alone(self, penalty: AdversarialLipschitz, batches: list[Tensor]) -> None:
        """In another precision than the clean pass, or after another penalty's random numbers, or on perturbed images; D(X) is
        computed once."""
        x = batches[0] if len(batches) == 1 else torch.cat(batches)
        scores = self._given.calls.by_image(x.clone())
        self._go_back(x, scores, self._compare(penalty, x, as_float(scores.detach())))

    def value(self, like: Tensor) -> Tensor:
        """Of all together, 0-d."""
        if len(self._values) > 1:
            return torch.stack([t.to(like.dtype) for t in self._values]).sum()
        return self._values[0] if self._values else torch.zeros_like(like)


def _stays_alone(forward: Forward) -> bool:
    """Whether its images are independent, and no hook of the network's looks at their gradients on the way."""
    return forward.why_not is None and not forward.hooks.hung
