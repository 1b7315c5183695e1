"""The adversarial Lipschitz penalty: images are compared with neighbours towards which the discriminator changes most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from .autograd_graph import Graph, next_number
from .conditions import Beside
from .drawn import drawn
from .formulas import Bound, as_float, clip, image_norm
from .penalty import Addable, Discriminator, column
from .step_arguments import check_alike, check_graph, check_range, images_of

LEAST = 1e-10  # length that is divided by

Score = Callable[[Tensor], Tensor]  # D: images -> one score for each


@dataclass(frozen=True)
class AdversarialLipschitz(Addable):
    """See `penalties.adversarial_lipschitz`.

    Example:
        >>> dat.penalties.adversarial_lipschitz(10.0, power_iterations=2).power_iterations
        2
    """

    weight: float
    power_iterations: int
    xi: float
    radius: tuple[float, float]
    clip_min: Bound
    clip_max: Bound

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        name = "penalties.adversarial_lipschitz"
        calls, x_real, x_fake = images_of(name, discriminator, x_real, x_fake, Beside.of(beside))
        check_alike(x_real, x_fake)
        check_range(name, calls.network, x_real, x_fake, self.clip_min, self.clip_max)
        x, score = torch.cat([x_real, x_fake]), calls.by_image
        x_adv = self.neighbours(score, x)
        with torch.enable_grad():
            return self.value(_scores(score, x), _scores(score, x_adv), self.distance(x, x_adv))

    def neighbours(self, score: Score, x: Tensor, logits: Tensor | None = None) -> Tensor:
        """X' of X, constant. `logits`: D(X), [len(x)], where they are known; else they are computed in each iteration."""
        d = drawn(torch.empty_like(x), lambda t: t.uniform_(-0.5, 0.5))
        length = image_norm(d).clamp(min=LEAST)
        for _ in range(self.power_iterations):
            d = self._change(score, torch.addcdiv(x, d, column(length, d).to(d.dtype), value=self.xi), x, logits)
            length = image_norm(d).clamp(min=LEAST * len(x) / self.xi)
        e = torch.empty(len(x), device=x.device, dtype=torch.float32)
        e = drawn(e, lambda t: t.uniform_(*self.radius))
        return clip(torch.addcmul(x, column(e / length, x).to(x.dtype), d), self.clip_min, self.clip_max)

    def _change(self, score: Score, moved: Tensor, x: Tensor, logits: Tensor | None) -> Tensor:
        """The direction in which |D(X) - D(clip(moved))| grows: xi / len(X) of it is the gradient of the mean by d."""
        with torch.no_grad():
            base = _scores(score, x) if logits is None else logits.detach()
        clipped = clip(moved, self.clip_min, self.clip_max).requires_grad_()
        with torch.enable_grad():
            begun = next_number()
            scores = _scores(score, clipped)
            check_graph(Graph(scores, begun), [clipped])
            (gradient,) = torch.autograd.grad(scores, clipped, (scores.detach() - base).sign_())
        return gradient if clipped is moved else gradient * (moved == clipped)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """[len(x)]; not 0, which images that the clip has put back would have."""
        return image_norm(x - x_adv).clamp(min=LEAST)

    def value(self, logits: Tensor, logits_adv: Tensor, distance: Tensor) -> Tensor:
        """The penalty, 0-d, of D(X), D(X') and the distances of X and X', each [N]."""
        slope = (logits - logits_adv).abs() / distance
        return self.weight * ((slope - 1).clamp(min=0) ** 2).mean()

    def terms(self, logits: Tensor, logits_adv: Tensor, distance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`value` and its gradients with respect to D(X) and D(X')."""
        if type(self) is not AdversarialLipschitz:  # whose value may be another
            leaves = logits.detach().requires_grad_(), logits_adv.detach().requires_grad_()
            with torch.enable_grad():
                value = self.value(*leaves, distance)
            slope, own_slope = torch.autograd.grad(value, leaves)
            return value.detach(), slope, own_slope
        excess = softshrink((logits - logits_adv) / distance, 1.0)  # of the slope beyond 1, with the difference's sign
        weight = self.weight / len(logits)
        slope = (excess / distance).mul_(2 * weight)
        return torch.dot(excess, excess) * weight, slope, -slope


def _scores(score: Score, x: Tensor) -> Tensor:
    return as_float(score(x.clone()))  # D may change what it is given
