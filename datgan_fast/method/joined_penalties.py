"""Penalties inside a discriminator step: some need no pass of their own, because the clean pass has what they ask for.

A zero-centred penalty differentiates the input gradient that the clean backward makes anyway: v_i / w_i is grad D(x_i). The
adversarial Lipschitz penalty compares D(X) with D(X'); D(X) are the clean scores, so that its gradient with respect to them is
added to their weights before the one backward. All others run by themselves, when the rest of the step is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import waiting
from .adversarial_lipschitz import AdversarialLipschitz
from .arguments import SIDES
from .batches import Batches
from .formulas import as_float
from .gradients import GradientSum
from .independence import Forward, ask
from .penalties import ZeroCentred
from .penalty import Addable, Total, as_written, column
from .sharing import is_narrow
from .step_arguments import LossTerms, Penalty, StepArguments, check_penalty, check_range, logits_of


@dataclass(frozen=True)
class Within(Addable):
    """A penalty that is computed inside a context, such as autocast switched off. In a step whose own precision that is anyway
    it joins as the penalty itself does."""

    penalty: Penalty
    context: Callable[[], AbstractContextManager[object]]

    def __call__(self, discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        with self.context():
            return self.penalty(discriminator, x_real, x_fake)

    def as_written(self, discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        with self.context():
            return as_written(self.penalty)(discriminator, x_real, x_fake)


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


class StepPenalties:
    """The penalties of one step: those that still have to be computed, and what the others came to."""

    def __init__(self, given: StepArguments, terms: LossTerms, batches: Batches, gradients: GradientSum) -> None:
        self._given, self._terms, self._batches, self._gradients = given, terms, batches, gradients
        self._left = parts_of(terms.penalty, given.x_real.device.type)
        self._values: list[Tensor] = []
        self._open = bool(terms.lambda_clean)  # what has no clean backward cannot join it

    def may_join(self, forward: Forward) -> bool:
        """Whether each image's v / weight is the gradient of its own score, and this forward as good as one of the penalty's."""
        alone = forward.why_not is None and not forward.hooks.hung
        return self._open and bool(self._left) and alone and not is_narrow(forward.graph)

    # Zero-centred penalties

    def of_gradients(self, k: int, forward: Forward) -> list[tuple[ZeroCentred, slice]]:
        """Those that go with clean batch k, and which of its images each is about. They are left no more."""
        if not self.may_join(forward) or forward.graph.is_compiled() or not self._gradients.serves(forward.graph):
            return []
        where = self._batches.places(k)
        joining = [p for p in self._left if isinstance(p, ZeroCentred) and SIDES.index(p.side) in where]
        self._left = [p for p in self._left if p not in joining]
        return [(p, where[SIDES.index(p.side)]) for p in joining]

    def clean_backward(
        self, joining: list[tuple[ZeroCentred, slice]], logits: Tensor, images: Tensor, weights: Tensor, retain: bool
    ) -> Tensor:
        """`GradientSum.to_images`, and on through the gradient to the parameters, for the penalties on it."""
        factors = column(as_float(weights), images)

        def cotangent(v: Tensor) -> Tensor:
            gradient = (as_float(v) / factors).requires_grad_()
            values = [p.value(gradient[part]) for p, part in joining]
            self._values += [value.detach() for value in values]
            (slope,) = torch.autograd.grad(values, gradient, [torch.ones_like(value) for value in values])
            return (slope * self._terms.grad_scale / factors).to(v.dtype)

        return self._gradients.to_images_and_again(logits, images, weights, cotangent, retain)

    # The adversarial Lipschitz penalty

    def compares_scores(self) -> bool:
        """Whether a penalty compares the clean scores with its own. Only if whatever draws random numbers before it has drawn
        them, and both batches may be one, as they are in the penalty."""
        return (
            bool(self._lipschitz()) and ask(self._given.network, self._given.x_real, self._given.x_fake).why_not is None
        )

    def _lipschitz(self) -> list[AdversarialLipschitz]:
        found = []
        for part in self._left:
            if isinstance(part, AdversarialLipschitz):
                found.append(part)
            elif not isinstance(part, ZeroCentred):
                break
        return found

    def add_to_weights(self, x: list[Tensor], logits: list[Tensor], weights: list[Tensor]) -> None:
        """Adds the penalties' gradients with respect to the clean scores to the scores' weights, which become new entries of the
        list; what goes back from the penalties' own scores goes back here."""
        images, scores = (torch.cat([t.detach() for t in ts]) if len(ts) > 1 else ts[0].detach() for ts in (x, logits))
        found = self._lipschitz()
        self._left = [p for p in self._left if p not in found]
        slopes = torch.stack([self._compare(p, images, as_float(scores)) for p in found]).sum(0)
        for k, slope in enumerate(slopes.split([len(t) for t in logits])):
            w = as_float(weights[k])
            weight = w + slope * self._terms.grad_scale
            # Where the two cancel the direction would be lost.
            least = w.abs() * torch.finfo(w.dtype).eps
            weights[k] = weight.abs().maximum(least).copysign(weight).to(logits[k].dtype)

    def _compare(self, penalty: AdversarialLipschitz, x: Tensor, scores: Tensor) -> Tensor:
        """d penalty / d D(X); goes back from D(X')."""
        given, discriminator = self._given, self._given.network.module
        low, high = penalty.clip_min, penalty.clip_max
        check_range("penalties.adversarial_lipschitz", discriminator, given.x_real, given.x_fake, low, high)
        x_adv = penalty.neighbours(discriminator, x, scores)
        own = logits_of(discriminator, x_adv.clone())
        leaves = scores.detach().requires_grad_(), as_float(own.detach()).requires_grad_()
        value = penalty.value(*leaves, penalty.distance(x, x_adv))
        slope, own_slope = torch.autograd.grad(value, leaves)
        self._values.append(value.detach())
        seed = (own_slope * self._terms.grad_scale).to(own.dtype)
        if waiting.looking_waits(x.device) or given.network.compiled:
            self._gradients.add(own, seed)
            return slope
        active = own_slope.nonzero().squeeze(1)
        if 3 * len(active) >= 2 * len(x):
            self._gradients.add(own, seed)
        elif len(active):  # one more forward of few costs less than a backward of all
            del own
            some = x_adv.index_select(0, active)
            self._gradients.add(logits_of(discriminator, some), seed[active])
        return slope

    # All others

    def run_apart(self) -> None:
        given = self._given
        for part in self._left:
            value = check_penalty(part(given.network.module, given.x_real, given.x_fake))
            if value.requires_grad:
                scale = self._terms.grad_scale
                self._gradients.add(value if isinstance(scale, float) and scale == 1 else value * scale)
            self._values.append(value.detach())

    def value(self, like: Tensor) -> Tensor:
        """Of all together, 0-d."""
        if len(self._values) > 1:
            return torch.stack([t.to(like.dtype) for t in self._values]).sum()
        return self._values[0] if self._values else torch.zeros_like(like)
